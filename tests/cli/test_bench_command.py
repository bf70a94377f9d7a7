"What `modernllm bench` refuses, before anything is measured or written."

import pytest

from modernllm.cli.app import main


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
