"Looking for a learning rate and a batch size, and a few tokens learnt by heart: what is found, what is refused, what is left."

import shlex

import pytest

from modernllm.cli.app import main

TINY = ["vocab_size=300", "limit_documents=3", "hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2",
        "max_position_embeddings=16", "batch_size=4", "precision=fp32"]
OVERFIT = ["train", *TINY, "--overfit-tokens", "32"]


@pytest.fixture(autouse=True)
def runs(monkeypatch, tmp_path):
    "Where runs go by default."
    monkeypatch.setenv("MODERNLLM_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def next_line(out):
    "The settings of the line that is proposed at the end."
    command, what, *settings = shlex.split(out.strip().splitlines()[-1])
    assert (command, what) == ("modernllm", "train")
    return dict(word.split("=") for word in settings)


def test_a_learning_rate_is_found_drawn_and_proposed(runs, capsys):
    assert main(["lr-find", *TINY, "optimizer=muon", "--lowest", "1e-4", "--steps", "40"]) == 0
    found = next_line(capsys.readouterr().out)
    assert 1e-4 < float(found["learning_rate"]) < 1 and found["optimizer"] == "muon" and found["hidden_size"] == "32"
    assert sorted(path.name for path in runs.rglob("*.*")) == ["lr_find.png", "lr_find.svg"]
    assert main(["train", *(f"{n}={v}" for n, v in found.items()), "max_steps=1", "--out", str(runs / "next")]) == 0


def test_a_batch_size_is_found_and_proposed(runs, capsys):
    assert main(["batch-find", *TINY, "--most", "3", "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["1", "2", "3"]
    assert "largest batch" in out and ": 3, the most that was asked for" in out
    assert next_line(out)["batch_size"] in ("1", "2", "3") and not runs.exists()


def test_tokens_are_learnt_by_heart_and_nothing_is_saved(runs, capsys):
    assert main([*OVERFIT, "learning_rate=3e-2", "max_steps=300"]) == 0
    assert "32 tokens memorised, loss below 0.05" in capsys.readouterr().out
    assert not runs.exists()


@pytest.mark.parametrize("line, status, words", [
    (["lr-find", *TINY, "--lowest", "1", "--highest", "0.1"], 2, ["lowest < highest", "1.0", "0.1"]),
    (["lr-find", *TINY, "--lowest", "0"], 2, ["0 < lowest"]),
    (["lr-find", *TINY, "--highest", "nan"], 2, ["nan"]),
    (["lr-find", *TINY, "--highest", "much"], 2, ["--highest", "much"]),
    (["lr-find", *TINY, "--steps", "5"], 2, ["at least 20 steps", "5"]),
    (["lr-find", *TINY, "--steps", "20", "--lowest", "1e-9", "--highest", "1e-8"], 1, ["did not fall", "another range"]),
    (["lr-find", "hiden_size=3"], 2, ["hiden_size", "did you mean 'hidden_size'"]),
    (["lr-fnd"], 2, ["lr-fnd", "lr-find"]),
    (["batch-find", "batchsize=3"], 2, ["batchsize", "did you mean 'batch_size'"]),
    (["batch-find", "--memory", "lots"], 2, ["--memory", "lots", "4GB"]),
    (["batch-find", "--memory", "0GB"], 2, ["--memory", "0GB"]),
    (["batch-find", "--memory", "-4GB"], 2, ["--memory", "-4GB"]),
    (["batch-find", *TINY, "--memory", "1KB"], 1, ["one row", "smaller model"]),
    (["batch-find", "--most", "0"], 2, ["--most", "0"]),
    (["batch-find", "--steps", "1"], 2, ["--steps", "1"]),
    ([*OVERFIT, "learning_rate=1e-6", "max_steps=5"], 1, ["after 5 steps", "0.05", "learning_rate"]),
    ([*OVERFIT, "residual_dropout=0.5", "max_steps=5"], 1, ["dropout off", "residual_dropout=0.5"]),
    ([*OVERFIT, "learning_rate=5", "warmup_steps=0", "max_steps=20", "grad_clip=100"], 1, ["learning_rate=5"]),
    ([*OVERFIT, "--out", "somewhere"], 2, ["--overfit-tokens", "--out"]),
    (["train", "--overfit-tokens", "0"], 2, ["--overfit-tokens", "0"]),
])  # fmt: skip
def test_what_is_wrong_or_does_not_work_is_said_in_one_line(runs, capsys, line, status, words):
    assert main(line) == status
    out, err = capsys.readouterr()
    said = [text for text in err.splitlines() if text.startswith("error: ")]
    assert (out == "" or "(too much)" in out) and len(said) == 1 and all(word in said[0] for word in words), err
    assert not runs.exists()
