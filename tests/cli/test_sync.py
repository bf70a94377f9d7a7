"""Either side of a pair may be edited; both at once is refused and changes nothing."""

import json
import shutil

import pytest

from modernllm.cli.app import main

NOTEBOOK, MODULE = "nbs/00_core/thing.ipynb", "modernllm/core/thing.py"


def cell(kind, source):
    more = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "id": source[:4].strip("#| ") or "x", "metadata": {}, "source": source, **more}


@pytest.fixture
def pair(root, tmp_path, monkeypatch):
    "A project of one notebook and its module, in sync."
    shutil.copy(root / "settings.ini", tmp_path)
    (tmp_path / "modernllm/core").mkdir(parents=True)
    (tmp_path / "modernllm/__init__.py").write_text('__version__ = "0.1.0"\n')
    (tmp_path / "modernllm/core/__init__.py").write_text("")
    (tmp_path / NOTEBOOK).parent.mkdir(parents=True)
    cells = [cell("markdown", "# thing\n> A thing"), cell("code", "#| default_exp core.thing"),
             cell("code", "#| export\ndef f():\n    return 1")]
    (tmp_path / NOTEBOOK).write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("modernllm.reporting.readme.write_readme", lambda: None)
    assert main(["sync"]) == 0
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_edits_go_either_way_and_back_again(pair, capsys):
    assert main(["sync", "--check"]) == 0
    edit(pair / NOTEBOOK, "return 1", "return 2")
    assert main(["sync", "--check"]) == 1
    assert f"{MODULE}: an export changes it" in capsys.readouterr().out
    assert main(["sync"]) == 0
    assert "return 2" in (pair / MODULE).read_text()
    edit(pair / MODULE, "return 2", "return 3")
    assert main(["sync"]) == 0
    assert "return 3" in (pair / NOTEBOOK).read_text() and main(["sync", "--check"]) == 0


def test_edits_on_both_sides_are_refused(pair, capsys):
    edit(pair / NOTEBOOK, "return 1", "return 2")
    edit(pair / MODULE, "return 1", "return 3")
    assert main(["sync"]) == 2
    err = capsys.readouterr().err
    assert NOTEBOOK in err and MODULE in err and err.count("\n") == 1
    assert "return 2" in (pair / NOTEBOOK).read_text() and "return 3" in (pair / MODULE).read_text()


def test_a_notebook_that_was_run_is_cleaned(pair, capsys):
    edit(pair / NOTEBOOK, '"execution_count": null', '"execution_count": 7')
    assert main(["sync", "--check"]) == 1
    assert f"{NOTEBOOK}: not clean" in capsys.readouterr().out
    assert main(["sync"]) == 0 and main(["sync", "--check"]) == 0


def test_a_module_without_its_notebook_is_named(pair, capsys):
    (pair / NOTEBOOK).rename(pair / "elsewhere.ipynb")
    assert main(["sync", "--check"]) == 1
    assert f"{MODULE}: made from {NOTEBOOK}, which is gone" in capsys.readouterr().out


def test_it_must_be_run_at_the_root(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sync"]) == 2
    assert "settings.ini" in capsys.readouterr().err
