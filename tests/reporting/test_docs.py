import json
import re
import shutil
from pathlib import Path

import pytest

from modernllm.core.config import InputError
from modernllm.reporting.docs import build
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
