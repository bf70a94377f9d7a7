import ast
import json
import re
import shutil
from pathlib import Path

import pytest

from modernllm.core.config import InputError
from modernllm.reporting.docs import build, pages, prepared, symbols
from modernllm.reporting.readme import first_lines

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A site of one floor, a study and the front page."
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "nbs/70_cli", folder / "nbs/70_cli")
    for name in ("00_core/config.ipynb", "studies/lm_baselines/run.ipynb"):
        (folder / "nbs" / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / "nbs" / name, folder / "nbs" / name)
    build(folder / "site", folder / "nbs")
    return folder / "site"


def anchors(path):
    return set(re.findall(r' id="([^"]+)"', path.read_text(encoding="utf-8")))


def test_links_within_the_site_lead_somewhere(site):
    found = 0
    for page in site.rglob("*.html"):
        for target in re.findall(r'\b(?:href|src)="([^"]+)"', page.read_text(encoding="utf-8")):
            if re.match(r"https?:|#|data:", target) or "index.html" in target:
                continue
            file, _, anchor = target.partition("#")
            there = (page.parent / file).resolve()
            assert there.exists(), (page.name, target)
            assert not anchor or anchor in anchors(there), (page.name, target)
            found += 1
    assert found > 50


def test_search_knows_sections_and_definitions(site):
    index = json.loads((site / "index.js").read_text(encoding="utf-8").removeprefix("const INDEX = ").rstrip().rstrip(";"))
    urls = {entry["title"]: entry["url"] for entry in index}
    assert urls["InputError"] == "00_core/config.html#InputError"
    for url in urls.values():
        file, _, anchor = url.partition("#")
        assert not anchor or anchor in anchors(site / file), url


def test_nothing_comes_from_another_host(site):
    for page in [*site.rglob("*.html"), *site.glob("*.css"), *site.glob("search.js")]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'(src|<link[^>]*href)="https?:|url\(["\']?https?:|@import', text), page


def test_directives_and_hidden_cells_are_not_shown(site):
    text = (site / "00_core/config.html").read_text(encoding="utf-8")
    assert "default_exp" not in text and "#|" not in text


def test_a_notebook_without_a_title_is_named(tmp_path):
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "no title"}]}))
    with pytest.raises(InputError, match="x.ipynb"):
        first_lines(path)


def test_every_public_name_has_an_anchor():
    "What a module's notebook exports is what its page can be asked for."
    found = 0
    for page in pages(ROOT / "nbs"):
        module = ROOT / "modernllm" / page.group / f"{page.notebook.stem}.py"
        if page.group and module.is_file():
            body = ast.parse(module.read_text(encoding="utf-8")).body
            public = next(ast.literal_eval(node.value) for node in body
                          if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
            elsewhere = {alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
            _, names = prepared(page)
            assert set(names) == set(public) - elsewhere, page.url
            assert all(where == f"{page.url}#{name}" for name, where in names.items())
            found += len(public)
    assert found > 500


@pytest.mark.parametrize("source, names", [
    ("A, B = 1, 2", ["A", "B"]), ("a = b = 1", ["a", "b"]), ("[a, (b, *c)] = x", ["a", "b", "c"]), ("a: int = 1", ["a"]),
    ("x.y = z[0] = _a = 1", []), ("async def f(): pass", ["f"]), ("a = 1\na = 2", ["a"]),
])
def test_names_that_a_cell_defines(source, names):
    assert symbols(source) == names


def test_a_name_of_two_pages_is_that_of_its_own(tmp_path):
    folder = tmp_path / "nbs/00_core"
    for name in ("one", "two"):
        cells = [f"# {name}\n> It.", f"#| default_exp core.{name}", "#| export\nFIRST, LAST = 1, 2", "`LAST` is last."]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.ipynb").write_text(json.dumps({"metadata": {}, "nbformat": 4, "nbformat_minor": 5, "cells": [
            {"cell_type": "code" if text.startswith("#|") else "markdown", "metadata": {}, "source": text, "outputs": [],
             "execution_count": None} for text in cells]}))
    (tmp_path / "nbs/site").mkdir()
    build(tmp_path / "site", tmp_path / "nbs")
    assert {"FIRST", "LAST"} <= anchors(tmp_path / "site/00_core/two.html")
    assert "one.html#LAST" not in (tmp_path / "site/00_core/two.html").read_text(encoding="utf-8")
