"""Executes the library notebooks, each in a fresh process: `python tests/notebooks.py [--write] [NOTEBOOK ...]`.

nbdev's own `nbdev_test` runs many notebooks in one process, where what the first one sets (environment variables, classes known
to `transformers`) changes the next. Here each is forked from a server that has imported the heavy libraries and nothing of ours.

What a cell shows must be what the notebook stores: words and whole numbers are compared exactly, decimals to 2 % or one unit of
the last digit, pictures by their pixels. `--write` stores what the cells show now.

A page with a line `#| needs NAME ...` shows what these pretrained models and data sets give. `--write` executes it with them, and
reads MODERNLLM_DATA and MODERNLLM_MODELS; otherwise it is executed on small stand-ins, and what its cells show is not compared.

A cell with a line `#| varies` shows what a training came to, in which the rounding of one processor or another grows until digits
differ: its words are compared, its decimals and pictures are not.
"""

import argparse
import base64
import io
import math
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2
SHOWN = 10
PRELOADED = ["nbdev.test", "transformers.models.t5.modeling_t5", "torch.distributed.tensor", "datasets", "accelerate", "seaborn",
             "pydantic.main", "psutil", "peft", "evaluate", "sklearn.metrics"]
BAR = re.compile(r".*\r(.*?\d%\|[^\]]*\])?")  # what is printed while one is shown stands behind it, on the same line
NEEDS = re.compile(r"^#\| needs (.+)$", re.M)
VARIES = re.compile(r"^#\| varies$", re.M)
PLACES = ("MODERNLLM_DATA", "MODERNLLM_MODELS", "MODERNLLM_ROOT", "MODERNLLM_STUDIES", "MODERNLLM_RUNS", "MODERNLLM_STAND_INS")
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+\.\d+(?:[eE][+-]?\d+)?(?![\w.]*\.\d)")  # a decimal, not a part of a version


def needs(nb) -> list[str]:
    "The pretrained models and data sets that a page's stored outputs come from."
    found = [NEEDS.search("".join(cell.source)) for cell in nb.cells if cell.cell_type == "code"]
    return [name for match in found if match for name in match[1].split()]


def set_places(needed: bool, write: bool) -> None:
    "Data and models of this machine are for pages with needs that are to be stored; else these pages run on stand-ins."
    for name in PLACES:
        if not (needed and write and name in ("MODERNLLM_DATA", "MODERNLLM_MODELS")):
            os.environ.pop(name, None)
    if needed and not write:
        os.environ["MODERNLLM_STAND_INS"] = "1"


def shown(cell) -> dict[str, str]:
    "What a cell stores, by kind: stdout, stderr, and the media types of what it displays (plain text where there is no other)."
    found = {}
    for output in without_bars(cell.get("outputs", [])):
        pieces = {output.get("name", "error"): output.get("text", "")} if "data" not in output else dict(output["data"])
        if len(pieces) > 1:
            pieces.pop("text/plain", None)
        for kind, text in pieces.items():
            found[kind] = found.get(kind, "") + "".join(text)
    return {kind: text for kind, text in found.items() if text.strip()}


def without_bars(outputs: list) -> list:
    "Outputs without progress bars, which tell times."
    kept = []
    for output in outputs:
        if output["output_type"] == "stream":
            pairs = [(line, BAR.sub("", line)) for line in re.findall(r".*\n|.+", "".join(output["text"]))]
            output = {**output, "text": [rest for line, rest in pairs if rest.strip() or rest == line]}
        if output["output_type"] != "stream" or output["text"]:
            kept.append(output)
    return kept


def same_words(stored: str, now: str) -> bool:
    "Whether two texts have equal words and whole numbers."
    return NUMBER.sub("#", stored).split() == NUMBER.sub("#", now).split()


def same_text(stored: str, now: str) -> bool:
    "Whether two texts have equal words and whole numbers, and decimals that agree to 2 % or one unit of the last digit."
    if not same_words(stored, now):
        return False
    pairs = zip(NUMBER.findall(stored), NUMBER.findall(now))
    return all(math.isclose(float(a), float(b), rel_tol=0.02, abs_tol=1.01 * last_digit(a)) for a, b in pairs)


def last_digit(number: str) -> float:
    "One unit of the last digit that a decimal shows."
    mantissa, _, exponent = number.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def same_picture(stored: str, now: str) -> bool:
    "Whether two PNG files have one size, and all but 2 % of their pixels agree."
    import matplotlib.image
    import numpy as np

    a, b = (matplotlib.image.imread(io.BytesIO(base64.b64decode(png)), format="png") for png in (stored, now))
    return a.shape == b.shape and float((np.abs(a - b).max(-1) > 0.1).mean()) < 0.02


def differences(before, after) -> list[str]:
    "One line for each cell whose stored outputs are not what it shows now. A cell that stores nothing is not looked at."
    lines = []
    for place, (old, new) in enumerate(zip(before.cells, after.cells)):
        stored, now, varies = shown(old), shown(new), VARIES.search("".join(old.source))
        for kind in stored.keys() | now.keys() if stored else ():
            same = same_words if varies else same_text
            if kind == "image/png":
                same = same_picture if not varies else lambda *_: True
            if kind not in stored or kind not in now or not same(stored[kind], now[kind]):
                excerpt = " is " + repr(now.get(kind, "")[:200]) if kind != "image/png" else " differs"
                lines.append(f"cell {place} ({old.id}): its stored {kind}{excerpt}")
    return lines


def test(path: Path, write: bool) -> tuple[Path, list[str]]:
    "Execute one notebook and compare, or store, what its cells show."
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from fastcore.xtras import working_directory

    sys.path.insert(0, str(ROOT))
    os.environ["IN_TEST"] = "1"
    before, nb, shell = read_nb(path), read_nb(path), CaptureShell(path, mpl_format="png")
    needed = bool(needs(nb))
    set_places(needed, write)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    try:
        with working_directory(path.parent):
            shell.run_all(nb, exc_stop=True, preproc=lambda cell: cell.cell_type != "code")
    except BaseException:
        return path, [shell.prettytb(fname=path)]
    if not write:
        return path, [] if needed else differences(before, nb)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = without_bars(cell.outputs)
    write_nb(nb, path)
    return path, []


def timed(path: Path, write: bool) -> tuple[Path, list[str], float]:
    "What `test` says, and the CPU seconds of this process and of those that the page started and waited for."
    path, lines = test(path, write)
    return path, lines, sum(os.times()[:4])


def tested(path: Path) -> bool:
    "Whether a notebook is executed when none is named: not below a folder with a file `.notest`."
    return ".ipynb_checkpoints" not in path.parts and not any((folder / ".notest").exists() for folder in path.parents)


def main(names: list[str], write: bool) -> int:
    found = [path for path in sorted((ROOT / "nbs").rglob("*.ipynb")) if tested(path)]
    paths = [Path(name).absolute() for name in names] or found
    cache = tempfile.mkdtemp(prefix="modernllm-notebooks-")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # see the Makefile
    os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="agg", MODERNLLM_CACHE=cache)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in `make test`: two threads round otherwise and spin while they wait
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    failed, seconds = [], {}
    with ProcessPoolExecutor(WORKERS, context, max_tasks_per_child=1) as pool:  # a notebook may start processes of its own
        for n, done in enumerate(as_completed([pool.submit(timed, path, write) for path in paths]), 1):
            path, lines, seconds[path] = done.result()
            failed += [path] if lines else []
            word = "FAILED" if lines else "passed"
            print(f"[{n}/{len(paths)}] {path.relative_to(ROOT)} {word}", *lines, sep="\n  ", flush=True)
    shutil.rmtree(cache, ignore_errors=True)
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:SHOWN]
    lines = [f"{n:6.1f} {path.relative_to(ROOT)}" for path, n in slowest]
    print(f"{sum(seconds.values()):.0f} CPU seconds, of which", *lines, sep="\n")
    print(f"notebooks: {len(paths) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store what the cells show now")
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK")
    given = parser.parse_args()
    sys.exit(main(given.notebooks, given.write))
