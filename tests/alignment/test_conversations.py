"""Conversations: what is refused, with file and line; no prompt on two sides; sets of instructions."""

import json

import pytest

from modernllm.alignment.conversations import ConversationRows, instruction_messages, read_conversations
from modernllm.core.config import InputError

USER, SAID = {"role": "user", "content": "Is 7 odd?"}, {"role": "assistant", "content": "Yes."}
SYSTEM = {"role": "system", "content": "Be brief."}


def write(folder, *rows):
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(("row", "said"), [
    ({"messages": [USER]}, "has no assistant turn"),
    ({"messages": [SYSTEM, USER]}, "has no assistant turn"),
    ({"messages": [SAID]}, "roles are out of order: assistant follows nothing"),
    ({"messages": [SAID, USER]}, "roles are out of order: assistant follows nothing"),
    ({"messages": [SYSTEM, SAID]}, "roles are out of order: assistant follows system"),
    ({"messages": [USER, USER, SAID]}, "roles are out of order: user follows user"),
    ({"messages": [USER, SAID, SAID]}, "roles are out of order: assistant follows assistant"),
    ({"messages": [USER, SYSTEM, SAID]}, "roles are out of order: system follows user"),
    ({"messages": [USER, SAID, USER]}, "roles are out of order: nothing follows user"),
    ({"messages": [USER, {"role": "robot", "content": "Yes."}]}, "message 2 has role 'robot'; allowed: system, user, assistant"),
    ({"messages": [USER, {"role": "assistant", "content": " "}]}, "has content ' '"),
    ({"messages": [USER, {"role": "assistant"}]}, "has content None"),
    ({"messages": "Is 7 odd?"}, "messages is Is 7 odd"),
    ({"messages": []}, "messages is"),
    ({"prompt": "Is 7 odd?"}, "has columns prompt; allowed: messages, or prompt and response"),
    ({"prompt": "Is 7 odd?", "response": 1}, "has content 1"),
])
def test_what_is_no_conversation_is_refused_with_file_and_line(tmp_path, row, said):
    path = write(tmp_path, {"messages": [USER, SAID]}, row)
    with pytest.raises(InputError) as caught:
        read_conversations(path, "all")
    assert f"{path}:2: " in str(caught.value) and said in str(caught.value) and "\n" not in str(caught.value)
    if "messages" in row:
        with pytest.raises(InputError, match="data set 'made', split 'train', conversation 1: "):
            ConversationRows("made", "train", [row])


def test_own_conversations_are_read_in_both_forms_and_split_by_prompt(tmp_path):
    rows = [{"prompt": f"Is {k % 15} odd?", "response": f"answer {k}"} for k in range(30)]
    path = write(tmp_path, *rows, {"messages": [SYSTEM, USER, SAID, USER, SAID]})
    sides = [read_conversations(path, split) for split in ("train", "validation")]
    assert sum(map(len, sides)) == len(read_conversations(path, "all")) == 31
    assert not {str(p) for p in sides[0].prompts} & {str(p) for p in sides[1].prompts}
    assert "held out for validation, by prompt" in sides[1].note and sides[0].source == "own"
    assert [USER, SAID, USER] == next(m for m in read_conversations(path, "all").prompts if len(m) == 4)[1:]


@pytest.mark.parametrize(("name", "split", "said"), [
    ("nowhere.jsonl", "train", "there is no such file"), ("alpacka", "train", "did you mean 'alpaca'"),
    ("gsm8k", "train", "unknown set"),
    ("alpaca", "test", "allowed: train, validation"), ("user_oriented_instructions", "train", "is held out"),
])
def test_sets_and_splits_that_do_not_exist(name, split, said):
    with pytest.raises(InputError, match=said):
        read_conversations(name, split)


def test_too_few_and_none(tmp_path):
    with pytest.raises(InputError, match="needed: 10 or more"):
        read_conversations(write(tmp_path, *[{"messages": [USER, SAID]}] * 12), "train")
    with pytest.raises(InputError, match="holds no conversation"):
        read_conversations(write(tmp_path), "all")


def test_rows_of_instruction_sets():
    alpaca = instruction_messages({"instruction": "Add.", "input": "1 2", "output": "3 "})
    human = instruction_messages({"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}]})
    assert alpaca == human == [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}]
    assert instruction_messages({"instruction": "Greet.", "input": "", "output": "Hi"})[0]["content"] == "Greet."


def test_real_sets(real_mirror):
    train, validation = (read_conversations("alpaca", split) for split in ("train", "validation"))
    assert len(train) + len(validation) == 4998 and "2 of 5,000 rows without an answer left out" in train.note
    assert len(read_conversations("user_oriented_instructions", "test")) == 252
