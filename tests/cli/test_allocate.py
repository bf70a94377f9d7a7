"""`modernllm allocate`: the table, what is refused, and a small model that is trained."""

import json

import pytest

from modernllm.cli.app import main
from modernllm.core.config import load_yaml

ASKED = ["--total", "42k", "--embedding-ratio", "0.35", "--vocab", "512", "--context", "32"]
TRAINED = [*ASKED, "--train", "--max-tokens", "256", "batch_size=4", "precision=fp32"]


def test_the_table(capsys):
    assert main(["allocate", "--total", "10M", "--embedding-ratio", "0.35", "--glu", "2.66", "--vocab", "16000", "--tied"]) == 0
    out = capsys.readouterr().out
    for word in ("10,000,000", "0.3500", "realised", "embedding", "attention", "feed-forward", "head", "tied", "context 256"):
        assert word in out
    assert main(["allocate", "--total", "10M", "--embedding-ratio", "0.35", "--untied", "--head-ratio", "0.175"]) == 0
    assert "untied head" in capsys.readouterr().out


@pytest.mark.parametrize("words, names", [
    (["--total", "ten"], ["total_params is 'ten'", "10M"]),
    (["--embedding-ratio", "0.01"], ["total_params", "allowed"]),
    (["--embedding-ratio", "0.95"], ["embedding_ratio", "leaves"]),
    (["--head-ratio", "0.1"], ["head_ratio", "tied"]),
    (["--context", "0"], ["max_position_embeddings", "at least 1"]),
    (["--vocab", "12"], ["vocab_size is 12"]),
    (["--max-tokens", "2M"], ["--max-tokens", "--train"]),
    (["--out", "runs/x"], ["--out", "--train"]),
    (["learning_rate=1e-3"], ["learning_rate", "--train"]),
    (["--train", "--max-tokens", "many"], ["max_tokens is 'many'"]),
    (["--train", "--max-tokens", "2M", "max_steps=3"], ["max_steps", "exactly one"]),
    (["--train", "max_tokens=5", "--max-tokens", "2M"], ["max_tokens", "twice"]),
    (["--train", "hidden_size=64"], ["hidden_size", "--total"]),
    (["--train", "data=my.txt"], ["data", "--text"]),
    (["--train", "qk_norm=true"], ["qk_norm", "parameters"]),
    (["--train", "learning_rat=1"], ["learning_rat", "learning_rate"]),
    (["--train", "--text", "wikitxt2"], ["wikitxt2", "wikitext2"]),
    (["--text", "wikitxt2"], ["wikitxt2", "wikitext2"]),
])
def test_what_is_refused(capsys, words, names):
    assert main(["allocate", *ASKED, *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(name in err for name in names), err


def test_a_vocabulary_that_the_text_does_not_support(capsys, tmp_path):
    text = tmp_path / "own.txt"
    text.write_text("The cat sat on the mat, and the dog sat on the cat.\n" * 200)
    for words in ([], ["--train"]):
        assert main(["allocate", *ASKED, "--text", str(text), *words, *(["--out", str(tmp_path / "out")] if words else [])]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "vocab_size is 512; this text supports" in err
    assert not (tmp_path / "out").exists()


def test_it_is_trained_and_leaves_what_train_leaves(capsys, tmp_path, root):
    out = tmp_path / "small"
    assert main(["allocate", *TRAINED, "--text", str(root / "README.md"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 steps, 256 tokens, validation loss" in said and f"modernllm evaluate {out}" in said
    config, recipe = json.loads((out / "model/config.json").read_text()), load_yaml(out / "recipe.yaml")
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"):
        assert config[name] == recipe[name]
    weights = (out / "model/model.safetensors").read_bytes()
    settings = [f"{name}={json.dumps(value)}" for name, value in recipe.items()]
    assert main(["train", *settings, "--out", str(out)]) == 0  # the same training
    assert (out / "model/model.safetensors").read_bytes() == weights
