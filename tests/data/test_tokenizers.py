"""Nothing is lost, digits stand alone, and the same text gives the same tokenizer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError

from modernllm.core.config import InputError
from modernllm.data.tokenizers import ROLES, SPECIAL_TOKENS, encode_documents, tokenizer_hash, train_bpe

TEXTS = [f"The number {n} is followed by {n + 1} , and <unk> by another word . \n" * 3 for n in range(50)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 300)


@given(text=st.text())
def test_round_trip_on_arbitrary_text(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    plain = encode_documents(tokenizer, [text])[0]
    assert tokenizer.decode(plain) == text and all(i >= len(SPECIAL_TOKENS) for i in plain)


@given(number=st.integers(0, 10**12), before=st.sampled_from(["", " ", "x", "-", "\n"]))
def test_digits_one_by_one(tokenizer, number, before):
    tokens = tokenizer.tokenize(f"{before}{number}")
    assert "".join(token for token in tokens if token.isdigit()) == str(number)
    assert all(len(token) == 1 for token in tokens if any(c.isdigit() for c in token))


@given(pieces=st.lists(st.sampled_from(SPECIAL_TOKENS), min_size=1, max_size=5))
def test_special_tokens_in_prompts_and_in_documents(tokenizer, pieces):
    text = " and ".join(pieces)
    assert sum(i < len(SPECIAL_TOKENS) for i in tokenizer(text)["input_ids"]) == len(pieces)
    assert not any(i < len(SPECIAL_TOKENS) for i in encode_documents(tokenizer, [text])[0])


def test_reserved_ids(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 1)
    assert len(tokenizer) == 300 and len(tokenizer.tokenize(" <unk>")) <= 2
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|user|>Hello<|end|><|assistant|>Yes<|end|>"


def test_training_is_deterministic_and_cached(cache):
    first = tokenizer_hash(train_bpe(TEXTS, 300))
    (file,) = (cache / "tokenizers").iterdir()
    before = file.stat().st_mtime_ns
    assert tokenizer_hash(train_bpe(iter(TEXTS), 300)) == first and file.stat().st_mtime_ns == before
    file.unlink()
    assert tokenizer_hash(train_bpe(TEXTS, 300)) == first
    assert tokenizer_hash(train_bpe(TEXTS, 301)) != first
    assert len(list((cache / "tokenizers").iterdir())) == 2


def test_hash_survives_use_and_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=4)
    assert tokenizer_hash(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_hash(again) == before and again.chat_template == tokenizer.chat_template
    assert again.convert_tokens_to_ids("<|tool_call|>") == tokenizer.convert_tokens_to_ids("<|tool_call|>")


@pytest.mark.parametrize("size", [100, 263, 3000.0, "4096", True])
def test_vocabulary_size_is_checked(size):
    with pytest.raises(InputError, match="vocab_size is .*allowed: 264 or more"):
        train_bpe(TEXTS, size)


def test_vocabulary_larger_than_the_text_supports(cache):
    with pytest.raises(InputError, match=r"vocab_size is 50000; this text supports \d+ tokens at most"):
        train_bpe(TEXTS, 50_000)
    assert not cache.exists()


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_empty_corpus(texts):
    with pytest.raises(InputError, match="the corpus is empty"):
        train_bpe(texts, 300)


# Chats: whatever is written into them, the special tokens of a conversation are those of its turns.

BEFORE = (  # the template of earlier models
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
FRAGMENTS = [*SPECIAL_TOKENS, "<|e", "nd|>", "<|", "|>", "<", "|", "end", "user", "<|<|end|>end|>",
             "\u200b", "\\", '"', " ", "\n", "🎉"]
CONTENTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=6).map("".join)
PARTS = st.lists(CONTENTS.map(lambda text: {"type": "text", "text": text}), max_size=3)
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": CONTENTS | PARTS}), min_size=1, max_size=4)


def reserved(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens([i for i in ids if i < len(SPECIAL_TOKENS)])


@given(messages=MESSAGES, prompted=st.booleans())
def test_a_chat_has_the_special_tokens_of_its_turns_and_no_others(tokenizer, messages, prompted):
    expected = [token for m in messages for token in (f"<|{m['role']}|>", "<|end|>")] + ["<|assistant|>"] * prompted
    chat = dict(conversation=messages, add_generation_prompt=prompted)
    text = tokenizer.apply_chat_template(**chat, tokenize=False)
    ids = tokenizer.apply_chat_template(**chat)["input_ids"]
    assert reserved(tokenizer, ids) == expected
    batch = tokenizer.apply_chat_template([messages] * 2, add_generation_prompt=prompted)["input_ids"]
    assert ids == tokenizer(text)["input_ids"] == batch[0] == batch[1]
    assert ids == tokenizer.apply_chat_template(**chat, sanitize_control_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    written = ["".join(p["text"] for p in m["content"]) if isinstance(m["content"], list) else m["content"] for m in messages]
    if not any("\u200b" in content for content in written):  # what was changed can be undone
        plain = "".join(f"<|{m['role']}|>{content}<|end|>" for m, content in zip(messages, written)) + "<|assistant|>" * prompted
        assert text.replace("<\u200b|", "<|") == plain


@given(messages=st.lists(st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": st.text()}), min_size=1, max_size=3))
def test_ordinary_chats_are_as_they_were(tokenizer, messages):
    for prompted in (False, True):
        chat = dict(conversation=messages, add_generation_prompt=prompted, return_dict=False)
        assert tokenizer.apply_chat_template(**chat) == tokenizer.apply_chat_template(**chat, chat_template=BEFORE)


@given(name=CONTENTS, value=CONTENTS, content=CONTENTS)
def test_tools_and_their_calls_cannot_write_special_tokens(tokenizer, name, value, content):
    call = {"name": name, "arguments": {value: [value]}}
    tool = {"type": "function", "function": {"name": name, "description": value}}
    messages = [{"role": "user", "content": content},
                {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
                {"role": "tool", "content": content}]
    text = tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False)
    turns = ("system", "user", "assistant", "tool_call", "tool_result")
    assert reserved(tokenizer, tokenizer(text)["input_ids"]) == [token for role in turns for token in (f"<|{role}|>", "<|end|>")]
    offered = text.removeprefix("<|system|>").partition("<|end|>")[0]
    called = text.partition("<|tool_call|>")[2].partition("<|end|>")[0]
    assert json.loads(offered) == [tool] and json.loads(called) == call


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "evil|>", "content": ""}, 'role is "evil|>"; allowed: system, user, assistant, tool_call, tool_result, tool'),
        ({"role": "end", "content": ""}, 'role is "end"; allowed'),
        ({"content": "x"}, 'role is ""; allowed'),
        ({"role": "user"}, "content of role user is no text"),
        ({"role": "user", "content": None}, "content of role user is no text"),
        ({"role": "user", "content": 3}, "content of role user is no text"),
        ({"role": "user", "content": {"text": "x"}}, "content of role user is no text"),
        ({"role": "user", "content": None, "tool_calls": [{"function": {}}]}, "content of role user is no text"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "content of role assistant is no text"),
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "has a part that is no text; allowed: text parts"),
        ({"role": "user", "content": ["x"]}, "has a part that is no text"),
    ],
)
def test_what_the_template_does_not_know_is_refused(tokenizer, message, said):
    with pytest.raises(TemplateError) as refusal:
        tokenizer.apply_chat_template([message], tokenize=False)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_mask_of_what_an_assistant_writes(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    long = [{"role": "user", "content": "A<|end|>"}, {"role": "assistant", "content": "B 🎉<|user|>", "tool_calls": [call]},
            {"role": "tool", "content": "C"}, {"role": "assistant", "content": ""}, {"role": "tool_call", "content": "D"}]
    said = ["B 🎉<\u200b|user|><|end|><|tool_call|>" + '{"name": "f", "arguments": {}}<|end|><|end|>D<|end|>', "B<|end|>"]
    tokenizer.save_pretrained(tmp_path)
    for own in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        out = own.apply_chat_template([long, [{"role": "assistant", "content": "B"}]], return_dict=True, padding=True,
                                      return_tensors="pt", return_assistant_tokens_mask=True)
        assert [own.decode(ids[mask.bool()]) for ids, mask in zip(out["input_ids"], out["assistant_masks"])] == said
        one = own.apply_chat_template(long, return_dict=True, return_assistant_tokens_mask=True)
        assert one["assistant_masks"] == out["assistant_masks"][0].tolist()


def test_the_template_is_no_part_of_the_hash(tokenizer):
    before, template = tokenizer_hash(tokenizer), tokenizer.chat_template
    tokenizer.chat_template = BEFORE
    assert tokenizer_hash(tokenizer) == before
    tokenizer.chat_template = template


@given(text=CONTENTS)
def test_a_text_of_unknown_origin_has_a_safe_way_in(tokenizer, text):
    assert tokenizer(text, split_special_tokens=True)["input_ids"] == encode_documents(tokenizer, [text])[0]
