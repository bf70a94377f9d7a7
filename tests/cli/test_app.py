import os
import subprocess
import sys

import click
import pytest

from modernllm.cli import report
from modernllm.cli.app import cli, explain, main
from modernllm.core.config import InputError, RunFailed
from modernllm.workflow import batch


@pytest.fixture
def failing(monkeypatch):
    "A subcommand that raises what it is given."
    def install(error):
        @click.command()
        def boom():
            raise error
        get = type(cli).get_command
        monkeypatch.setattr(type(cli), "get_command", lambda s, c, n: boom if n == "boom" else get(s, c, n))
    return install


@pytest.mark.parametrize("error, status", [
    (InputError("seed: -1 is not allowed"), 2),
    (RunFailed("loss is nan at step 3"), 1),
    (OSError(28, "No space left on device"), 1),
    (KeyboardInterrupt(), 130),
    (click.Abort(), 130),
])
def test_an_error_is_one_line_and_a_status(failing, capsys, error, status):
    failing(error)
    assert main(["boom"]) == status
    out, err = capsys.readouterr()
    assert out == "" and err.strip().count("\n") == 0 and "Traceback" not in err


@pytest.mark.parametrize("line", [["--debug", "boom"], ["boom", "--debug"]])
def test_debug_shows_where(failing, line):
    failing(RunFailed("broken"))
    with pytest.raises(RunFailed):
        main(line)


@pytest.mark.parametrize("line, words", [
    (["trian"], ["trian", "train"]),
    (["study", "ru"], ["ru", "study --help"]),
    (["data", "show"], ["NAME"]),
    (["study", "run", "--jobs", "0"], ["0", ">=1"]),
    (["report", "build", "papr"], ["papr", "paper"]),
    (["evaluate", "no/such/folder"], ["no/such/folder"]),
])
def test_wrong_words_are_named(capsys, line, words):
    assert main(line) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words)


@pytest.mark.parametrize("line, words", [
    (["study", "run", "lm_baseline"], ["lm_baseline", "lm_baselines"]),
    (["study", "run", "--profile", "smok"], ["smok", "smoke"]),
    (["study", "status", "--profile", "cpus"], ["cpus", "cpu"]),
    (["report", "build", "--profile", "gpus"], ["gpus", "gpu"]),
    (["data", "show", "wikitxt2"], ["wikitxt2", "wikitext2"]),
    (["data", "fetch", "tinystory"], ["tinystory", "tinystories"]),
    (["data", "show", "embedded_docs", "--split", "tst"], ["tst", "test"]),
    (["study", "exec", "."], ["spec.json"]),
])
def test_unknown_names_get_a_proposal(capsys, line, words):
    assert main(line) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words)


@pytest.mark.parametrize("line", [
    ["data", "show", "caf\udce9"], ["train", "data=\ud800"], ["train", "--config", "\udce9.yaml"], ["evaluate", "\udce9"],
    ["generate", ".", "caf\udce9"], ["study", "run", "--profile", "\udce9"], ["study", "exec", "\udce9"], ["\udce9"],
    ["train", "--out", "\udce9"], ["export", ".", "--to", "\udce9"], ["report", "build", "--profile=\udce9"],
])  # fmt: skip
def test_what_is_not_utf8_is_one_line(capsys, line):
    assert main(line) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "argument '" in err and "allowed: UTF-8 text" in err and err.encode()


def test_a_byte_that_is_not_utf8_from_a_shell(root):
    program = "import sys; from modernllm.cli import main; sys.exit(main())"
    for environ in ({}, {"PYTHONIOENCODING": "ascii"}):
        command = [sys.executable, "-c", program, "generate", ".", b"caf\xe9"]
        done = subprocess.run(command, capture_output=True, cwd=root, env={**os.environ, **environ})
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1) and b"argument 'caf\\udce9' holds" in done.stderr


def every_command(group, path=()):
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        yield [*path, name], command
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


@pytest.mark.parametrize("path, command", every_command(cli), ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_every_command_teaches_by_example(capsys, path, command):
    assert main([*path, "--help"]) == 0
    out = capsys.readouterr().out
    assert command.help and "Examples:" in out and f"modernllm {' '.join(path)}" in out


def test_messages_lose_their_line_breaks():
    assert explain(InputError("a\n  b")) == (2, "a b")


def test_with_report_documents_are_built_after_runs_and_not_after_a_failure(monkeypatch):
    called = []
    monkeypatch.setattr(batch, "run_studies", lambda names, profile, **_: called.append(("runs", profile)))
    monkeypatch.setattr(report.build, "callback", lambda **given: called.append(given))
    assert main(["study", "run", "--profile", "cpu", "--report"]) == 0
    assert called == [("runs", "cpu"), {"what": "all", "profile": "cpu", "renderer": None}]

    def fail(*_, **__):
        raise RunFailed("lm_baselines/small/s0 failed")

    monkeypatch.setattr(batch, "run_studies", fail)
    assert main(["study", "run", "--report"]) == 1 and len(called) == 2
