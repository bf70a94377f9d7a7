"""`modernllm train data=my.txt` and what follows it: evaluate, go on with init=, keep a tokenizer, list and compare runs."""

import json
import shutil
import signal
import time

import pytest
from test_train import SMALL

from modernllm.cli.app import main
from modernllm.core.config import load_yaml
from modernllm.data.text_files import RULE

SENTENCES = [f"Sentence number {i} tells of {i * i} trees and of the river behind them." for i in range(60)]
TEXT = "\n\n\n".join(SENTENCES)
TINY = [word for word in SMALL if not word.startswith(("vocab_size", "limit_documents"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with a text and a model that was trained on it."
    folder = tmp_path_factory.mktemp("own")
    (folder / "my.txt").write_text(TEXT)
    assert main(["train", *TINY, f"data={folder / 'my.txt'}", "--out", str(folder / "first")]) == 0
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("MODERNLLM_RUNS", str(place))
    return place


def refused(capsys, *line):
    assert main([*line]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


def weights(folder):
    return (folder / "model/model.safetensors").read_bytes()


def test_the_record_names_the_text_and_no_machine(here):
    for folder in (here / "first", here / "first/model"):
        record = json.loads((folder / "record.json").read_text())
        assert [(read["name"], read["source"], read["split"]) for read in record["data"]] == [
            ("my.txt", "own", "train"), ("my.txt", "own", "validation")]
        assert len(record["contents"]["data"]) == 64 and record["tokenizer_hash"]
        assert load_yaml(folder / "recipe.yaml")["data"] == "my.txt"
        assert str(here) not in json.dumps(record) + (folder / "recipe.yaml").read_text()


def test_evaluate_own_text(here, capsys):
    (here / "other.txt").write_text("A tale of other trees. " * 100)
    for words, shown in (([], "my.txt validation"), (["--data", "other.txt", "--split", "all"], "other.txt all"),
                         (["--data", str(here / "my.txt"), "--convention", "lm-eval"], "3 documents")):
        assert main(["evaluate", "first", *words]) == 0
        assert shown in capsys.readouterr().out
    assert "'test'" in refused(capsys, "evaluate", "first", "--data", "my.txt", "--split", "test")
    assert "'none.txt'" in refused(capsys, "evaluate", "first", "--data", "none.txt")


def test_the_vocabulary_is_told(here, capsys, tmp_path):
    assert main(["train", *TINY, "data=my.txt", "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "in 57 documents for training" in out and "all that this text supports" in out
    assert weights(tmp_path / "a") == weights(here / "first")
    assert "tokens at most" in refused(capsys, "train", *TINY, "data=my.txt", "vocab_size=4096", "--out", str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_go_on_from_a_saved_model(here, capsys, tmp_path):
    (here / "more.txt").write_text(TEXT.upper())
    line = ["train", "data=more.txt", "init=first", "batch_size=2", "max_steps=1", "learning_rate=1e-9", "precision=fp32"]
    assert main([*line, "num_hidden_layers=1", "--out", str(tmp_path / "next")]) == 0
    assert "of first" in capsys.readouterr().out
    from modernllm.models.pretrained import weights_sha256
    from modernllm.models.sources import load_pretrained
    (old, tokenizer), (new, kept) = load_pretrained(here / "first"), load_pretrained(tmp_path / "next")
    assert kept.get_vocab() == tokenizer.get_vocab()
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(old.parameters(), new.parameters()))
    record = json.loads((tmp_path / "next/record.json").read_text())
    assert record["contents"]["init"] == weights_sha256(here / "first/model")
    for word, parts in (("hidden_size=32", ["hidden_size is 32, but 16", "init=first"]),
                        ("vocab_size=300", ["vocab_size is 300", "first"]),
                        ("init=none", ["none is not a saved model"]), ("tokenizer=none", ["none is not a saved model"])):
        err = refused(capsys, *line, word, "--out", str(tmp_path / "not"))
        assert all(part in err for part in parts), err
    assert not (tmp_path / "not").exists()


def test_a_tokenizer_is_kept_where_it_belongs(here, capsys, tmp_path):
    assert main(["train", *TINY, "data=my.txt", "vocab_size=300", "--out", str(tmp_path / "narrow")]) == 0
    line = ["train", *TINY, "data=my.txt", f"tokenizer={tmp_path / 'narrow'}"]
    assert main([*line, "--out", str(tmp_path / "a")]) == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "narrow")
    assert "does not belong" in refused(capsys, *line, "init=first", "--out", str(tmp_path / "b"))
    shutil.copytree(tmp_path / "narrow/model", tmp_path / "mixed")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(here / "first/model" / file, tmp_path / "mixed" / file)
    assert "does not belong" in refused(capsys, "evaluate", str(tmp_path / "mixed"))


def test_a_changed_text_is_another_run(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODERNLLM_RUNS", str(tmp_path / "runs"))
    folders = []
    for text in (TEXT, TEXT + "\n\n\nThe end."):
        (tmp_path / "my.txt").write_text(text)
        assert main(["train", *TINY, "data=my.txt"]) == 0
        folders.append({path.name for path in (tmp_path / "runs/train").iterdir()})
    assert [len(names) for names in folders] == [1, 2]
    shutil.copytree(place / "first", tmp_path / "copy")
    assert "data=my.txt has changed" in refused(capsys, "train", *TINY, "data=my.txt", "--out", "copy")
    assert main(["evaluate", "copy"]) == 0
    assert "my.txt has changed since it was trained" in capsys.readouterr().err


def test_killed_and_continued_on_own_text(here, processes, tmp_path):
    line = [*TINY[:-2], "max_steps=120", "precision=fp32", f"data={here / 'my.txt'}", "checkpoint_every_steps=10", "log_every=1"]
    folder = tmp_path / "killed"
    process = processes.Process(target=main, args=(["train", *line, "--out", str(folder)],))
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline and not list(folder.rglob("weights.safetensors")):
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (folder / "model").exists()
    assert main(["train", *line, "--out", str(folder)]) == 0
    assert main(["train", *line, "--out", str(tmp_path / "whole")]) == 0
    assert weights(folder) == weights(tmp_path / "whole")


def test_runs_are_listed_and_compared(here, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MODERNLLM_RUNS", str(tmp_path))
    assert main(["runs"]) == 0 and "no runs" in capsys.readouterr().out
    shutil.copytree(here / "first", tmp_path / "train/first")
    assert main(["train", *TINY, "data=my.txt", "learning_rate=2e-3", "--out", str(tmp_path / "train/second")]) == 0
    capsys.readouterr()
    assert main(["runs"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 and all(word in row for row in rows for word in ("2 steps", "validation", "finished", "my.txt"))
    assert main(["runs", "first", "train/second"]) == 0
    out = capsys.readouterr().out
    assert ["learning_rate", "not", "set", "0.002"] in map(str.split, out.splitlines())
    assert "hidden_size" not in out and list((tmp_path / "compare").glob("*first*second.png"))
    assert "did you mean 'first'" in refused(capsys, "runs", "frist", "second")
    assert "two runs" in refused(capsys, "runs", "first")
    assert "no run" in refused(capsys, "runs", "first", str(here))


def test_a_run_of_a_study_is_listed(project, capsys):
    from modernllm.cli.runs import all_runs
    from modernllm.core.runs import Run

    folder = project / "runs/smoke/tiny/a/s0"
    run = Run.start(study="tiny", variant="a", seed=0, profile="smoke", run_dir=folder, params={"dataset": "my.txt"})
    run.telemetry.event("step", step=3, tokens=30, loss=2.5)
    assert all_runs()[0].status == "running"
    run.finish()
    assert [found.row()[2:] for found in all_runs()] == [("3 steps", "2.500 training", "finished", "my.txt")]


def test_help_says_how_own_text_is_cut(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert " ".join(RULE.split()) in " ".join(out.split()) and "data=my.txt" in out
    assert main(["evaluate", "--help"]) == 0 and "--data my.txt" in capsys.readouterr().out
