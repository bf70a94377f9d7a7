import json
import os
import shutil

import pytest

from modernllm.cli.app import main
from modernllm.core.locks import lock, unlock
from modernllm.core.telemetry import Telemetry

SMALL = ["vocab_size=512", "limit_documents=20", "hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2",
         "max_position_embeddings=32", "batch_size=2", "max_steps=2", "precision=fp32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("train") / "small"
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    return out


def test_a_trained_model_is_evaluated_and_continued(trained, capsys):
    assert main(["evaluate", str(trained), "--batch-size", "64"]) == 0
    card = capsys.readouterr().out
    assert "word_ppl_closed" in card and "bits_per_byte" in card and "embedded_docs validation" in card
    assert main(["generate", str(trained), "The function", "--max-new-tokens", "4"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("The function")
    assert main(["generate", str(trained), "The function", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out == first


def test_the_same_line_again_changes_nothing(trained):
    weights = (trained / "model/model.safetensors").read_bytes()
    assert main(["train", *SMALL, "--out", str(trained)]) == 0
    assert (trained / "model/model.safetensors").read_bytes() == weights


def test_another_training_does_not_go_into_the_same_folder(trained, capsys):
    assert main(["train", *SMALL, "seed=1", "--out", str(trained)]) == 2
    assert "seed" in capsys.readouterr().err


def test_two_trainings_at_once(trained, capsys):
    held = lock(trained)
    try:
        assert main(["train", *SMALL, "--out", str(trained)]) == 2
    finally:
        unlock(held)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"process {os.getpid()} is running" in err


def test_what_happened_is_in_the_event_log(trained):
    events = [event for event in Telemetry.read(trained) if event["session"] == 1]
    assert [event["kind"] for event in events] == ["start", "limit", "step", "eval", "checkpoint", "stop"]


def refused(capsys, *line):
    assert main(["train", *line]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("word, names", [
    ("hiden_size=64", ["hiden_size", "hidden_size"]),
    ("learning_rat=1", ["learning_rat", "learning_rate"]),
    ("limit_document=1", ["limit_document", "limit_documents"]),
    ("learning_rate=fast", ["learning_rate", "fast"]),
    ("batch_size=0", ["batch_size", "0"]),
    ("num_attention_heads=3", ["num_attention_heads", "3", "hidden_size"]),
    ("vocab_size=1000000", ["vocab_size", "1000000"]),
    ("max_position_embeddings=100000000", ["block"]),
    ("data=wikitext", ["wikitext", "wikitext2"]),
    ("word", ["word", "name=value"]),
])
def test_a_wrong_setting_is_named(capsys, tmp_path, word, names):
    err = refused(capsys, "limit_documents=20", "vocab_size=512", word, "--out", str(tmp_path / "out"))
    assert all(name in err for name in names), err
    assert not (tmp_path / "out").exists()


def test_a_config_that_does_not_parse_is_named_with_its_line(capsys, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("max_steps: 3\nhidden_size: [1\n")
    assert f"{path}:3" in refused(capsys, "--config", str(path))


def test_the_line_wins_over_the_file(tmp_path, monkeypatch):
    from modernllm.cli import train
    path, seen = tmp_path / "small.yaml", []
    path.write_text("max_steps: 3\nhidden_size: 16\n")
    monkeypatch.setattr(train, "fit", lambda recipe, out: seen.append(recipe) or (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["train", "--config", str(path), "max_steps=4", "--out", str(tmp_path / "out")]) == 130
    assert seen[0].training.max_steps == 4 and seen[0].model == {"hidden_size": 16}


def test_a_folder_without_a_model_is_refused(capsys, tmp_path):
    for command in (["evaluate", str(tmp_path)], ["generate", str(tmp_path), "x"]):
        assert main(command) == 2
        assert "config.json" in capsys.readouterr().err


def narrow(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))


def cut(model):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize("damage, words", [
    (narrow, ["model.layers.0.mlp.down_proj.weight is (16, 48), not (16, 8)", "gate_proj"]),
    (cut, ["weights cannot be read"]),
    (lambda model: (model / "config.json").write_text("{}"), ["cannot be loaded", "model_type"]),
    (lambda model: (model / "config.json").write_text("x"), ["cannot be loaded", "not a valid JSON file"]),
    (lambda model: (model / "config.json").write_text('{"model_type": "t5"}'), ["is a seq2seq model", "causal"]),
    (lambda model: (model / "model.safetensors").unlink(), ["cannot be loaded", "no file named model.safetensors"]),
    (lambda model: (model / "tokenizer.json").write_text("x"), ["cannot be loaded"]),
    (lambda model: (model / "tokenizer.json").write_text("{}"), ["cannot be loaded", "added_tokens"]),
])  # fmt: skip
def test_a_model_that_does_not_fit_or_was_cut_short_is_named_and_left_alone(trained, tmp_path, capsys, damage, words):
    model = tmp_path / "model"
    shutil.copytree(trained / "model", model)
    damage(model)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    for command in (["evaluate", str(tmp_path)], ["generate", str(tmp_path), "x"], ["export", str(tmp_path)]):
        assert main(command) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1 and all(word in said[0] for word in [str(model), *words])
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_a_prompt_longer_than_the_context_is_refused(trained, capsys):
    assert main(["generate", str(trained), "a b c " * 40]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "more than the context of 32" in err
