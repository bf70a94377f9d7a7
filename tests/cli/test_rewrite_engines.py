"`modernllm rewrite quantize` and `bench`, on a small model with random weights."

import pytest

from modernllm.cli.app import explain
from modernllm.cli.rewrite_engines import bench, quantize
from modernllm.rewriting.speed import save_random_t5


def call(command, *line):  # exit status, one line of error
    try:
        command.main(list(map(str, line)), standalone_mode=False)
    except Exception as error:
        return explain(error)
    return 0, ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_random_t5(folder, "tiny")
    return folder


def test_quantize(folder, capsys):
    assert call(quantize, folder, "--engine", "int8") == (0, "")
    assert "quantised in memory" in capsys.readouterr().out


def test_a_gguf_file_needs_no_llama_cpp(folder, capsys, monkeypatch):
    monkeypatch.setattr("modernllm.rewriting.quantize.installed_engines", lambda: ["torch"])
    assert call(quantize, folder, "--engine", "gguf") == (0, "")
    assert f"next: modernllm serve {folder} --engine gguf-q8" in capsys.readouterr().out
    assert (folder / "engines/gguf-q8/model.gguf").stat().st_size > 0


def test_bench(folder, capsys):
    engines = ["--engine", "int8"]
    assert call(bench, folder, *engines, "--rows", 3, "--task", "word_problems", "--rounds", 2) == (0, "")
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[1:5]] == ["engine", "torch", "int8", "2"]
    assert "ROUGE-L" in table[1] and table[2].split()[3:5] == ["1.00", "100.0%"]
    assert call(bench, folder, *engines, "--rows", 0, "--rounds", 2) == (0, "")
    table = capsys.readouterr().out.splitlines()
    assert "20 sources of 25 tokens, 12 tokens out, threads: 1" in table[0] and len(table[2].split()) == 5


def test_bench_asks_a_server(folder, capsys):
    assert call(bench, folder, "--engine", "torch", "--server", 32) == (0, "")
    engine, alone, together = capsys.readouterr().out.splitlines()
    assert engine == "torch" and "1 clients: 4 requests, 0 failures" in alone
    assert "32 clients: 32 requests, 0 failures" in together


@pytest.mark.parametrize("command, line, words", [
    (quantize, ["nothing"], "nothing is not a saved model"),
    (bench, [], "a FOLDER or --shape must be given"),
    (bench, ["--shape", "huge"], "unknown shape 'huge'"),
    (bench, ["nothing", "--rows", "0"], "nothing is not a saved model"),
    (bench, ["nothing", "--server", "32"], "the server did not start: error: nothing is not a saved model"),
    (bench, ["nothing", "--rounds", "1"], "--rounds"),
])  # fmt: skip
def test_bad_input(command, line, words):
    status, error = call(command, *line)
    assert status == 2 and words in error and "\n" not in error, error
