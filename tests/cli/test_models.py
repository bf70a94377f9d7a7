"""`modernllm models`: what is listed, shown and fetched, and what is said where nothing can be had."""

import pytest

from modernllm.cli.app import main
from modernllm.models.pretrained import PRETRAINED


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MODERNLLM_MODELS", str(tmp_path))


def test_every_model_has_a_line_with_its_place(capsys, tmp_path):
    (tmp_path / "gpt2").mkdir()
    assert main(["models", "list"]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == PRETRAINED.keys() and lines["gpt2"][3] == "folder" and lines["t5-small"][3] == "hub"


@pytest.mark.parametrize("words", [["show", "t5-small"], ["fetch", "t5-small"], ["show", "gpt9"], ["fetch", "./nowhere"]])
def test_what_cannot_be_had_is_one_line_and_status_2(words, capsys):
    assert main(["models", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("words", [["evaluate", "gpt9"], ["generate", "gpt9", "a prompt"], ["export", "gpt9", "--to", "llama"]])
def test_commands_that_take_a_model_take_its_name(words, capsys):
    assert main(words) == 2
    assert "no model 'gpt9'" in capsys.readouterr().err
