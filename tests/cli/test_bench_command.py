"What `modernllm bench` refuses, before anything is measured or written."

import json

import pytest

from modernllm.benchmarking.processes import Compared
from modernllm.cli import bench
from modernllm.cli.app import main
from modernllm.rewriting.speed import save_random_t5


@pytest.mark.parametrize("line, words", [
    (["trian"], ["trian", "train"]),
    (["train", "10n"], ["shape", "10n", "did you mean '10m'"]),
    (["memory", "mediun"], ["shape", "mediun", "did you mean 'medium'"]),
    (["generate", "--threads", "0"], ["--threads", "0"]),
    (["eval", "--rounds", "0"], ["--rounds", "0"]),
    (["train", "--seconds", "-1"], ["--seconds", "-1"]),
    (["train", "tiny", "10m"], ["10m"]),
    (["train", "--seconds", "few"], ["--seconds", "few"]),
])  # fmt: skip
def test_bad_input(monkeypatch, tmp_path, capsys, line, words):
    monkeypatch.setenv("MODERNLLM_RUNS", str(tmp_path))
    assert main(["bench", *line]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words), err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["dpo", "distill"])
def test_a_peer_that_is_not_installed(monkeypatch, tmp_path, capsys, task):
    monkeypatch.setenv("MODERNLLM_RUNS", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", task]) == 2 and "trl is not installed: `pip install trl" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_measurements_of_a_saved_model_leave_a_record(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MODERNLLM_RUNS", str(tmp_path))
    given = []

    def measured(model, student, **how):
        given.append((model, student, how))
        return [Compared("work", [10, 10], {"modernllm": [1.0, 1.0], peer: [2.0, 4.0]}, {"modernllm": 5.0, peer: 10.0},
                         {"modernllm": 0.1, peer: 0.1}) for peer in ("one", "two")]

    monkeypatch.setattr(bench, "need_trl", lambda: None)
    monkeypatch.setattr("modernllm.distill.speed.compare_distillation", measured)
    folder = tmp_path / "tiny"
    save_random_t5(folder, "tiny")
    assert main(["bench", "distill", str(folder), "--rounds", "2", "--student", "layers=1 hidden=64"]) == 0
    assert given == [(str(folder), "layers=1 hidden=64", {"threads": 2, "rounds": 2})]
    assert capsys.readouterr().out.count("3.00 times as fast") == 2
    (path,) = tmp_path.rglob("bench/*.json")
    record = json.loads(path.read_text())
    assert record["metrics"]["distill_ratio"]["value"] == record["metrics"]["distill_1_ratio"]["value"] == 3
    assert record["command"].endswith("--threads 2 --rounds 2 --student 'layers=1 hidden=64'")
