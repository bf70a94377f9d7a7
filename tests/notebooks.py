"""`nbdev_test` with a fresh process for each notebook: `python tests/notebooks.py [NOTEBOOK ...]`.

nbdev's own command runs many notebooks in one process, where what the first one sets (environment variables, classes known to
`transformers`) changes the next. Here each is forked from a server that has imported the heavy libraries and nothing of ours.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2


def test(path: Path) -> tuple[Path, bool, float]:
    "Run one notebook; its errors go to stderr."
    from nbdev.config import get_config
    from nbdev.test import test_nb

    return path, *test_nb(path, skip_flags=get_config(cfg_name=ROOT / "settings.ini").tst_flags.split(), basepath=ROOT)


def main(names: list[str]) -> int:
    paths = [Path(name).absolute() for name in names] or sorted((ROOT / "nbs").rglob("*.ipynb"))
    paths = [path for path in paths if names or not (path.parent / ".notest").exists() and ".ipynb_checkpoints" not in path.parts]
    cache = tempfile.mkdtemp(prefix="modernllm-notebooks-")
    for name in ("MODERNLLM_DATA", "MODERNLLM_ROOT", "MODERNLLM_STUDIES", "MODERNLLM_RUNS"):
        os.environ.pop(name, None)
    os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="agg", MODERNLLM_CACHE=cache)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nbdev.test", "torch", "transformers", "datasets", "accelerate", "seaborn"])
    failed = []
    with ProcessPoolExecutor(WORKERS, context, max_tasks_per_child=1) as pool:  # a notebook may start processes of its own
        for n, done in enumerate(as_completed([pool.submit(test, path) for path in paths]), 1):
            path, passed, seconds = done.result()
            failed += [] if passed else [path]
            word = "passed" if passed else "FAILED"
            print(f"[{n}/{len(paths)}] {path.relative_to(ROOT)} {word} in {seconds:.1f} s", flush=True)
    shutil.rmtree(cache, ignore_errors=True)
    print(f"notebooks: {len(paths) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
