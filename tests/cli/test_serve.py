"""`modernllm serve` and `modernllm rewrite chat`: bad input is one line, exit status 2; a conversation in the terminal."""

import socket
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi")

from click.testing import CliRunner

from modernllm.cli import main
from modernllm.cli import serve as commands
from modernllm.rewriting import server as server_module
from modernllm.rewriting.rewriter import Rewriter


class Shouts:
    def generate(self, ids, max_new_tokens):
        return [[ord("A")] * 3 for _ in ids]

    def close(self):
        pass


@pytest.fixture
def shouting(monkeypatch):
    "Every folder holds a model that says AAA."
    coder = SimpleNamespace(encode=lambda query, history: SimpleNamespace(ids=[0] * (1 + len(history)), cut_turns=0),
                            decode=lambda ids: bytes(ids).decode())
    monkeypatch.setattr(Rewriter, "load", classmethod(lambda cls, folder, engine, threads, *limit: cls(Shouts(), coder, *limit)))


def line(capsys) -> str:
    (only,) = capsys.readouterr().err.strip().splitlines()
    return only


def test_a_port_in_use(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "no-such-folder", "--port", str(port)]) == 2
    assert line(capsys) == (f"error: port: {port} of '127.0.0.1' cannot be had: Address already in use; allowed: another "
                            "--port, or 0 for a free one")


@pytest.mark.parametrize("given, error", [
    (["folder", "--host", "0.0.0.0"], "host: '0.0.0.0' can be reached from other machines; needed: a token in MODERNLLM_TOKEN"),
    (["folder", "--host", "::"], "host: '::' can be reached"),
    (["folder", "--host", "no.such.host.invalid"], "is no address of this machine"),
    (["folder", "--port", "70000"], "70000 is not in the range"),
    (["folder", "max_batch=0", "--port", "0"], "max_batch is 0; allowed: greater than or equal to 1"),
    (["folder", "max_batsh=1", "--port", "0"], "did you mean 'max_batch'?"),
    (["no-such-folder", "--port", "0"], "is not a saved model: it has no config.json"),
])
def test_bad_input(capsys, monkeypatch, given, error):
    monkeypatch.delenv("MODERNLLM_TOKEN", raising=False)
    assert main(["serve", *given]) == 2 and error in line(capsys)


def test_an_address_in_the_settings(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("modernllm.rewriting.server_settings.bind", lambda host, port, token: asked.append((host, port)))
    (tmp_path / "serve.yaml").write_text("port: 1234\nhost: 127.0.0.2\n")
    for given in (["--config", str(tmp_path / "serve.yaml")], ["port=1234", "host=127.0.0.2"],
                  ["port=1", "host=127.0.0.3", "--port", "1234", "--host", "127.0.0.2"]):
        assert main(["serve", "no-such-folder", *given]) == 2
    assert asked == [("127.0.0.2", 1234)] * 3


def test_settings_are_listed(capsys):
    assert main(["serve", "folder", "--fields"]) == 0
    assert "server    max_batch=16\n" in capsys.readouterr().out


def test_a_bad_token(capsys, monkeypatch):
    monkeypatch.setenv("MODERNLLM_TOKEN", "brief")
    assert main(["serve", "folder", "--port", "0"]) == 2
    assert "MODERNLLM_TOKEN: has 5 characters; allowed: 16 to 512" in line(capsys)


def test_a_model_of_another_task(capsys, tmp_path):
    for name, text in (("config.json", "{}"), ("tokenizer.json", "{}"), ("recipe.yaml", "task: samsum\n")):
        (tmp_path / name).write_text(text)
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert "was trained on the task samsum; allowed: one trained on query_rewriting" in line(capsys)


def test_a_language_model(capsys, tmp_path):
    for name, text in (("config.json", "{}"), ("tokenizer.json", "{}"), ("recipe.yaml", "data: tinystories\n")):
        (tmp_path / name).write_text(text)
    assert main(["rewrite", "chat", str(tmp_path)]) == 2
    assert "was trained on text, on no task; allowed: one trained on query_rewriting" in line(capsys)


def test_an_address_is_told_when_requests_are_answered(capsys, shouting, monkeypatch):
    monkeypatch.setattr(server_module, "run_server", lambda app, bound, settings, started: (bound.close(), started("http://x:1/")))
    assert main(["serve", "folder", "--port", "0", "--engine", "torch"]) == 0
    assert capsys.readouterr().out == "folder by torch: http://x:1/ (chat), http://x:1/docs (API); Ctrl-C ends\n"


def test_a_conversation_through_a_pipe(shouting):
    written = "Who?\n+ A physicist.\nWhen?\n/undo\n/quit\nlost\n"
    said = CliRunner().invoke(commands.chat, ["folder", "--engine", "torch"], input=written)
    assert said.exit_code == 0 and said.stdout == "AAA\n\nAAA\n"
    notes = said.stderr.splitlines()
    assert "1 tokens read, 3 written" in notes[0] and notes[1] == "[remembered as an answer]" and "3 tokens read" in notes[2]
    assert notes[3] == "[taken back; turns left: 2]"
