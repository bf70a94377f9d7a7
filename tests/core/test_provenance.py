"""Hashes change with what code does and with nothing else; the closure covers what a run imports, or the record says so."""

import ast
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.core import provenance
from modernllm.core.code_facts import code_sha256
from modernllm.core.config import InputError
from modernllm.core.provenance import (
    json_sha256,
    notebook_hash,
    path_sha256,
    source_hash,
    source_hashes,
    source_problem,
    static_closure,
)
from modernllm.core.installation import environment, git_state

# Programs: nested functions and classes around assignments, told in more or fewer words.
names = st.sampled_from(["a", "b", "total"])
statements = st.builds("{} = {!r}".format, names, st.integers(-9, 9) | st.text("xyz#\"'\n", max_size=3) | st.floats(0, 1))
blocks = st.recursive(
    st.lists(statements, min_size=1, max_size=3),
    lambda inner: st.tuples(st.sampled_from(["def f(x):", "class C:", "async def g():"]), inner),
    max_leaves=4,
)


def write(block, told, depth=0):
    "A program, when `told` with comments, docstrings and blank lines."
    indent = "    " * depth
    lines = [f'{indent}"What this is for."'] if told and depth else []
    if isinstance(block, tuple):
        lines += [indent + block[0] + ("  # why" if told else "")]
        return lines + write(block[1], told, depth + 1)
    for statement in block:
        lines += [f"{indent}# why"] * told + [indent + statement] + [""] * told
    return lines


@given(blocks)
def test_words_do_not_count_but_code_does(block):
    plain, told = ("\n".join(write(block, told)) for told in (False, True))
    assert code_sha256(plain) == code_sha256(told) == code_sha256(f'"A module."\n{told}')
    assert code_sha256(plain) == code_sha256(ast.unparse(ast.parse(plain)))
    assert code_sha256(plain) != code_sha256(plain + "\nlast = 1")
    tree = ast.parse(plain)
    constant = next(node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    constant.value = "another"
    assert code_sha256(plain) != code_sha256(ast.unparse(tree))


@pytest.mark.parametrize("one, other", [
    ("x = 1", "x = 1.0"), ("x = 1", "x = True"), ("x = 'a'", "x = b'a'"), ("x = None", "x = ..."), ("f(a)", "f(*a)"),
    ("def f(a, b=1): pass", "def f(a=1, b=1): pass"), ("def f(a, /): pass", "def f(a): pass"), ("x = a < b", "x = a <= b"),
    ("f'{a}'", "f'{a!r}'"), ("def f(): 'doc'", "def f(): f'doc'"), ("x = 1; 'doc'", "x = 1"), ("x: int", "x: str"),
    ("def f(): return", "def f(): return None"), ("async def f(): pass", "def f(): pass"), ("{1: 2, **a}", "{**a, 1: 2}"),
])  # fmt: skip
def test_different_code(one, other):
    assert code_sha256(one) != code_sha256(other)


def notebook(path, *cells, tags=()):
    cells = [{"cell_type": "code", "metadata": {"tags": list(tags)}, "source": cell} for cell in cells]
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "metadata": {}, "source": "# Why"}, *cells]}))
    return path


def test_a_notebook_counts_by_its_code(tmp_path):
    one = notebook_hash(notebook(tmp_path / "a.ipynb", "a = 1", "# only words", "print(a)"))
    assert one == notebook_hash(notebook(tmp_path / "b.ipynb", "a = 1  # one", "print( a )"))
    assert one != notebook_hash(notebook(tmp_path / "c.ipynb", "a = 2", "print(a)"))
    assert one != notebook_hash(notebook(tmp_path / "d.ipynb", "print(a)", "a = 1"))


LOW = {"lib", "lib.low"}


@pytest.mark.parametrize("cell", [
    "%%time\ny = 1", "%%timeit -n 1\ny = 1", "%%capture out\ny = 1", "%%prun\ny = 1", "%%bash\necho 1", "%%sh\necho 1",
    "%%writefile a.txt\n1", "%%python\ny = 1", "%%script bash\necho 1", "%%capture\n%time y = 1", "%time y = 1",
    "%timeit -n 1 y = 1", "%prun f(1)", "x = %time 1", "x = !echo 1", "!echo 1", "!!echo 1", "if a:\n    !echo 1", "%env A=1",
    "%run other1.py", "%load other1.py", "%matplotlib agg1", "f1?", "?f1", "%pinfo f1", "%%time\n# a comment\ny = 1",
    "\n\n%%time\ny = 1", "!echo \\\n  1", "for i in x:\n    %time f(1)", "get_ipython().system('echo 1')", "%cd 1",
])  # fmt: skip
def test_what_is_given_to_ipython_counts(tmp_path, cell):
    told = {notebook_hash(notebook(tmp_path / "a.ipynb", "a = 0", text)) for text in (cell, cell.replace("1", "2"), "")}
    assert len(told) == 3


@pytest.mark.parametrize("cell, modules", [
    ("%%time\nfrom lib.low import thing", {"lib", "lib.low", "lib.low.one", "lib.low.two"}),
    ("%time import lib.low.two", {"lib", "lib.low", "lib.low.two"}),
    ("%timeit -n 3 import lib.low.two", {"lib", "lib.low", "lib.low.two"}),
    ("%%capture out\n%time from lib.low import dotted", {"lib", "lib.low", "lib.low.two"}),
    ("x = !python -c 'from lib.low.two import b'", {"lib", "lib.low", "lib.low.two"}),
    ("!python -m lib.high.deep -v", LOW | {f"lib.{n}" for n in ("high", "high.eager", "high.deep", "low.one", "low.two")}),
    ("%load_ext lib.low.two", {"lib", "lib.low", "lib.low.two"}),
    ("%%time\nx = 1", set()), ("!ls library", set()),
])  # fmt: skip
def test_what_magics_import_is_in_the_closure(library, tmp_path, cell, modules):
    assert set(static_closure(notebook(tmp_path / "run.ipynb", cell))) == modules


def test_a_command_of_the_library_can_run_all_of_it(library, tmp_path):
    assert set(static_closure(notebook(tmp_path / "run.ipynb", "!lib train"))) == provenance._modules_of("lib")


@pytest.mark.parametrize("cell", [
    "import tools", "from tools import x", "%run tools.py", "!python tools.py", "exec(open('tools.py').read())",
    "%%time\nimport tools", "import package.inner", "import before",
])  # fmt: skip
def test_code_beside_the_notebook_counts(library, tmp_path, cell):
    (tmp_path / "before.py").write_text("import tools")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "package/inner.py").write_text("import tools")
    (tmp_path / "tools.py").write_text("from lib.low.two import b")
    (tmp_path / "unnamed.py").write_text("x = 1")
    start = notebook(tmp_path / "run.ipynb", cell)
    before = source_hashes(start)
    assert "tools.py" in before and "lib.low.two" in before and "unnamed.py" not in before
    (tmp_path / "tools.py").write_text("from lib.low.two import b  # again")
    assert source_hashes(start) == before
    (tmp_path / "tools.py").write_text("from lib.low.two import b as c")
    assert source_problem(start, before) == "changed during the run: tools.py"


def test_other_files_beside_the_notebook(tmp_path):
    start = notebook(tmp_path / "run.ipynb", "%run other.ipynb", "table = read('table.csv')")
    notebook(tmp_path / "other.ipynb", "import modernllm.core.seeding", "%time y = 1")
    notebook(tmp_path / "summary.ipynb", "x = 1")
    (tmp_path / "plan.yaml").write_text("a: 1")
    (tmp_path / "table.csv").write_text("1")
    before = source_hashes(start)
    assert {"other.ipynb", "table.csv", "modernllm.core.seeding"} < set(before)
    assert not {"run.ipynb", "summary.ipynb", "plan.yaml"} & set(before)
    (tmp_path / "table.csv").write_text("2")
    notebook(tmp_path / "other.ipynb", "import modernllm.core.seeding", "%time y = 2")
    assert source_problem(start, before).endswith("changed during the run: other.ipynb, table.csv")
    (tmp_path / "other.py").write_text("def")
    with pytest.raises(InputError, match=r"other\.py: is not Python"):
        source_hashes(start)


def test_names_of_modules_in_texts(library, tmp_path):
    for cell, modules in {
        "__import__('lib.low.two')": {"lib", "lib.low", "lib.low.two"},
        "exec('import lib.low.two')": {"lib", "lib.low", "lib.low.two"},
        "load('lib.low.two:b')": {"lib", "lib.low", "lib.low.two"},
        "import_module('.two', 'lib.low')": {"lib", "lib.low"},  # the module itself is told after the run
    }.items():
        assert set(static_closure(notebook(tmp_path / "run.ipynb", cell))) == modules


def test_a_broken_notebook_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"a\.ipynb: cell 2: line 1 is not Python"):
        notebook_hash(notebook(tmp_path / "a.ipynb", "def"))
    (tmp_path / "b.ipynb").write_text("{}")
    for name in ("b.ipynb", "none.ipynb"):
        with pytest.raises(InputError, match="cannot be read as a notebook"):
            notebook_hash(tmp_path / name)


@pytest.fixture
def library(tmp_path, monkeypatch):
    "A small library with every kind of import."
    files = {
        "__init__.py": "'The library.'",
        "low/__init__.py": "_MAP = {'thing': 'one', 'far': 'lib.high.deep', 'dotted': '.two'}\n"
        "def __getattr__(name):\n    return name",
        "low/one.py": "def later():\n    from .two import b\n    return b",
        "low/two.py": "b = 1",
        "low/alone.py": "import os",
        "low/hidden.py": "name = 'lib.low.alone'",
        "high/__init__.py": "from lib.high.eager import e",
        "high/eager.py": "e = 1",
        "high/deep.py": "import lib.low.one as one",
        "high/loop.py": "from ..low import two\nfrom . import loop",
    }
    for name, text in files.items():
        path = tmp_path / "lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "lib")
    return tmp_path / "lib"


@pytest.mark.parametrize("code, modules", [
    ("import os, numpy", set()),
    ("import lib", {"lib"}),
    ("import lib.low.two", LOW | {"lib.low.two"}),
    ("from lib.low.one import later", LOW | {"lib.low.one", "lib.low.two"}),
    ("from lib.low import thing", LOW | {"lib.low.one", "lib.low.two"}),
    ("from lib.low import dotted as d", LOW | {"lib.low.two"}),
    ("from lib.low import two", LOW | {"lib.low.two"}),
    ("def f():\n    from lib.low import dotted", LOW | {"lib.low.two"}),
    ("from lib.low import far", LOW | {f"lib.{n}" for n in ("high", "high.eager", "high.deep", "low.one", "low.two")}),
    ("from lib.high import e", {"lib", "lib.high", "lib.high.eager"}),
    ("from lib.high import loop", LOW | {"lib.high", "lib.high.eager", "lib.high.loop", "lib.low.two"}),
    ("import lib.low.hidden", LOW | {"lib.low.hidden", "lib.low.alone"}),
    ("from lib.low import nobody", LOW | {f"lib.low.{n}" for n in ("one", "two", "alone", "hidden")}),
    ("import lib.low", LOW | {f"lib.low.{n}" for n in ("one", "two", "alone", "hidden")}),
    ("from lib import low", LOW | {f"lib.low.{n}" for n in ("one", "two", "alone", "hidden")}),
    ("from lib.low import *", LOW | {f"lib.low.{n}" for n in ("one", "two", "alone", "hidden")}),
    ("import lib.nowhere", set()),
])  # fmt: skip
def test_closure(library, tmp_path, code, modules):
    assert set(static_closure(notebook(tmp_path / "run.ipynb", code))) == modules


def test_only_code_that_can_be_imported_makes_a_result_stale(library, tmp_path):
    start = notebook(tmp_path / "run.ipynb", "from lib.low import thing")
    before = source_hash(start)
    (library / "low/alone.py").write_text("import sys")
    (library / "low/two.py").write_text("b = 1  # said better")
    assert source_hash(start) == before
    (library / "low/two.py").write_text("b = 2")
    assert source_hash(start) != before


def test_code_changed_during_the_run_is_told(library, tmp_path, monkeypatch):
    start = notebook(tmp_path / "run.ipynb", "from lib.low import thing")
    hashes = source_hashes(start)
    assert source_problem(start, hashes) == ""
    (library / "low/two.py").write_text("b = 2")
    assert source_problem(start, hashes) == "changed during the run: lib.low.two"


def test_a_module_imported_unseen_is_told(tmp_path):
    start = notebook(tmp_path / "run.ipynb", "from modernllm.core.config import Config")
    program = f"""
from importlib import import_module
from modernllm.core import provenance as p
start = {str(start)!r}
hashes = p.source_hashes(start)
seen = p.source_hashes(["modernllm.core.provenance", *hashes])
assert p.source_problem(["modernllm.core.provenance", *hashes], seen) == ""
import_module("modernllm.core." + "".join(["see", "ding"]))
print(p.source_problem(start, hashes))
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.strip() == (
        "imported outside the closure: modernllm.core.code_facts, modernllm.core.notebooks, modernllm.core.project, "
        "modernllm.core.provenance, modernllm.core.seeding"
    )


def test_the_real_library_is_covered(root):
    "Whatever a module of the library imports when it is loaded is in its closure."
    names = [name for name in provenance._modules_of("modernllm.core") if name.count(".") == 2]
    program = f"""
import sys
from importlib import import_module
for name in {sorted(names)!r}:
    before = [n for n in sys.modules if n.startswith("modernllm")]
    for n in before:
        del sys.modules[n]
    import_module(name)
    from modernllm.core.provenance import imported_sources, static_closure
    missed = set(imported_sources()) - set(static_closure([name, "modernllm.core.provenance"]))
    assert not missed, (name, missed)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


def test_dirty_means_code_not_results(tmp_path):
    def git(*command):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *command], check=True, capture_output=True)

    git("init", "-q")
    for name in ("code.py", "data/records/cpu/a.json", "figures/a.svg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    git("add", ".")
    git("commit", "-qm", "start")
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "data/records/cpu/a.json").write_text("2")
    (tmp_path / "figures/new.svg").write_text("2")
    assert git_state(tmp_path)["dirty"] is False
    (tmp_path / "new.py").write_text("2")
    assert git_state(tmp_path)["dirty"] is True
    (tmp_path / "new.py").unlink()
    (tmp_path / "code.py").write_text("2")
    assert git_state(tmp_path)["dirty"] is True


def test_the_environment_holds_no_variables(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value")
    found = environment()
    assert "very-secret-value" not in json.dumps(found)
    assert found["packages"]["hypothesis"] and "modernllm" not in found["packages"]
    assert found["hardware"]["memory_mb"] > 100 and found["python"].count(".") == 2


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé☃", max_size=3)
nested = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner), max_leaves=6)


@given(nested)
def test_equal_values_have_equal_hashes(value):
    assert json_sha256(value) == json_sha256(json.loads(json.dumps(value)))
    assert json_sha256(value) != json_sha256([value])


def test_hash_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("1")
    first = path_sha256(tmp_path / "a")
    assert first[1] == 1
    os.rename(tmp_path / "a/x", tmp_path / "a/y")
    assert path_sha256(tmp_path / "a")[0] != first[0]
    with pytest.raises(InputError, match="No such file"):
        path_sha256(tmp_path / "none")
