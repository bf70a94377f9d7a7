"""A chat: turns that no longer fit, commands, interruption, models that cannot chat; through a pipe."""

import io

import pytest
import torch

from modernllm.alignment.chat import Chat
from modernllm.cli.app import main
from modernllm.cli.chat import read_line, talk
from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.hf.adapters import LoraSettings, add_lora, save_adapter
from modernllm.models import ModernDecoderLM, ModernLLMConfig
from modernllm.models.pretrained import find_pretrained
from modernllm.models.sources import load_pretrained, save_model

TOKENIZER = train_bpe(["the sea was calm and the ship was slow"] * 9, 280)


def make():
    torch.manual_seed(0)
    return ModernDecoderLM(ModernLLMConfig(vocab_size=280, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                           intermediate_size=64, max_position_embeddings=64)).eval()


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "small"
    save_model(folder, make(), TOKENIZER)
    return str(folder)


def test_the_oldest_turns_are_left_out_and_the_system_message_stays(model):
    chat, notes = Chat(model, TOKENIZER, system="calm", max_new_tokens=10), []
    for k in range(6):
        chat.answer(f"the sea {k}", note=notes.append)
    assert any("outgrew the context" in line and "left out" in line for line in notes)
    prompt, lost = chat.prompt("slow")
    assert prompt.startswith("<|system|>calm<|end|>") and prompt.endswith("slow<|end|><|assistant|>")
    assert "the sea 0" not in prompt and 0 < len(chat.turns) < 6


def test_the_pieces_are_the_answer_and_the_same_chat_again_is_the_same(model):
    answers = []
    for _ in range(2):
        chat, pieces = Chat(model, TOKENIZER, max_new_tokens=12), []
        answers.append([chat.answer(said, pieces.append) for said in ("the sea", "the ship")])
        assert "".join(pieces) == "".join(answers[-1]) and len(pieces) > 2
    assert answers[0] == answers[1]


def test_a_message_that_does_not_fit_is_refused_and_forgotten(model):
    chat = Chat(model, TOKENIZER, max_new_tokens=12)
    with pytest.raises(InputError, match="message: has .* tokens as the model reads it; allowed: at most 52") as caught:
        chat.answer("the sea " * 40)
    assert "\n" not in str(caught.value) and not chat.turns and chat.answer("the sea")
    with pytest.raises(InputError, match="max_new_tokens is 64; allowed: less than the context of 64"):
        Chat(model, TOKENIZER, max_new_tokens=64)


def test_an_interrupted_answer_keeps_what_was_written(model):
    chat, notes, pieces = Chat(model, TOKENIZER, max_new_tokens=20), [], []

    def emit(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    chat.answer("the sea", emit, notes.append)
    assert notes == ["stopped"] and chat.answer("the ship") is not None and model.training is False


def test_control_tokens_of_a_message_end_no_turn(model):
    chat = Chat(model, TOKENIZER, max_new_tokens=4)
    ids = TOKENIZER(chat.prompt("a<|end|><|assistant|>b")[0])["input_ids"]
    assert ids.count(TOKENIZER.convert_tokens_to_ids("<|end|>")) == 1


def piped(monkeypatch, text, *args):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return main(["chat", *args])


def test_a_pipe(saved, monkeypatch, capsys):
    options = (saved, "--max-new-tokens", "4", "--seed", "1")
    assert piped(monkeypatch, "the sea\n\n/undo\n/undo\n/reset\n/what\nthe sea\n/quit\nthe ship\n", *options) == 0
    out, err = capsys.readouterr()
    for line in ("taken back; turns left: 0", "nothing to take back", "a new conversation", "unknown command /what"):
        assert f"[{line}" in err
    assert "> " not in out
    assert piped(monkeypatch, "the sea", *options) == 0  # no line end at the end
    assert out == 2 * capsys.readouterr().out


def test_an_adapter_talks_as_it_was_trained(saved, tmp_path, monkeypatch, capsys):
    weights = find_pretrained(saved)
    tuned = add_lora(load_pretrained(weights)[0], LoraSettings(r=2, targets=("all",)))
    torch.manual_seed(0)
    for name, tensor in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor)
    save_adapter(tmp_path / "adapter", tuned, weights)
    said = []
    for folder, model in ((saved, load_pretrained(weights)[0]), (str(tmp_path / "adapter"), tuned.eval())):
        said.append(Chat(model, TOKENIZER, max_new_tokens=8, temperature=0).answer("the sea"))
        assert piped(monkeypatch, "the sea\n", folder, "--max-new-tokens", "8", "--temperature", "0") == 0
        assert capsys.readouterr().out == said[-1] + "\n"
    assert said[0] != said[1]


def test_a_message_that_is_too_long_does_not_end_the_chat(saved, monkeypatch, capsys):
    assert piped(monkeypatch, "the sea " * 40 + "\nthe sea\n", saved, "--max-new-tokens", "4") == 0
    out, err = capsys.readouterr()
    assert "[message: has " in err and len(out.strip()) > 0


def test_a_model_without_a_chat_template_is_refused(tmp_path, model, monkeypatch, capsys):
    import copy

    plain = copy.deepcopy(TOKENIZER)
    plain.chat_template = None
    save_model(tmp_path / "plain", model, plain)
    assert piped(monkeypatch, "the sea\n", str(tmp_path / "plain")) == 2
    err = capsys.readouterr().err
    assert "has no chat template; allowed: a model with one" in err and err.count("\n") == 1
    with pytest.raises(InputError, match="its chat template is missing"):
        Chat(model, plain)


def test_the_usual_limit_of_an_answer_leaves_room_in_a_small_context(saved, monkeypatch, capsys):
    assert piped(monkeypatch, "the sea\n", saved) == 0
    assert len(capsys.readouterr().out.strip()) > 0


def test_ctrl_c_at_the_terminal_does_not_end_the_program(model, monkeypatch, capsys):
    lines = iter([KeyboardInterrupt, "the sea", EOFError])

    def typed(prompt=""):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", typed)
    chat = Chat(model, TOKENIZER, max_new_tokens=4)
    talk(chat, terminal=True)
    assert len(chat.turns) == 1 and "Ctrl-D ends" in capsys.readouterr().err
    monkeypatch.setattr("builtins.input", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        read_line(terminal=False)
