"""What all tests share: no network, two threads at most, and folders of their own for caches and runs."""

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# Packages are installed without bytecode: where Python may not keep it, each process that a test starts compiles all that
# it imports anew, which takes longer than all tests together.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Set before any test module imports a library that reads them. The folder is shared by the workers of one test run, so
# that a tokenizer is trained once, and is not the person's cache, which a test must never touch.
_shared = Path(tempfile.gettempdir()) / f"modernllm-tests-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=str(_shared / "hf"),
    MODERNLLM_CACHE=str(_shared / "cache"),
    MODERNLLM_RUNS=str(_shared / "runs"),
    MPLBACKEND="agg",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
REAL_MIRROR = os.environ.get("MODERNLLM_DATA", "")  # for the tests that read real data
for name in ("MODERNLLM_DATA", "MODERNLLM_ROOT", "MODERNLLM_STUDIES", "WANDB_API_KEY", "SNAKEMAKE_PROFILE"):
    os.environ.pop(name, None)

# The same examples in every run; `HYPOTHESIS_PROFILE=default` looks at new ones.
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):  # the controller, or the only process
        import shutil

        shutil.rmtree(_shared, ignore_errors=True)


@pytest.fixture
def root() -> Path:
    "The root of the project."
    return ROOT


@pytest.fixture(scope="session")
def processes():
    "Real processes, forked from a server that has imported what they need: with the environment of its start."
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:  # the server looks for modules here, not in this process's sys.path
        for folder in ("training", "release", "distill"):
            patch.setenv("PYTHONPATH", str(ROOT / "tests" / folder), prepend=os.pathsep)
        context.set_forkserver_preload(["workers", "parallel_workers", "machines", "ternary_workers", "student_worker"])
        forkserver.ensure_running()
    return context


# Where a training can be killed: in the middle of an evaluation, and while each part of a checkpoint is written.
PLACES = ["evaluation", "weights.safetensors", "optimizer.pt", "state.json", "manifest.json", "rename", "removal"]


@pytest.fixture
def kill_everywhere():
    """Kill a training at all PLACES and at further moments, in a random order, and begin it again each time. After each kill the
    newest checkpoint can be loaded, and is no older than before."""
    from modernllm.training.checkpoint import load_latest, saved_steps

    chance = random.Random(0)

    def kill(start, folder, log, more, seconds):  # `start`: a session that dies at a place; `more`: further ends
        ends, newest = PLACES + more, None
        chance.shuffle(ends)
        log.touch()
        for end in ends:
            size, process = log.stat().st_size, start(None if end == "moment" else end)
            if end == "moment":
                while process.is_alive() and log.stat().st_size == size:
                    time.sleep(0.001)
                time.sleep(chance.uniform(0, seconds))
                process.kill()
            process.join(60)
            assert process.exitcode == -signal.SIGKILL, f"{end}: ended with {process.exitcode}"
            if newest is not None or saved_steps(folder):
                found = load_latest(folder)
                assert found is not None, f"{end}: no state of the trainer"
                assert newest is None or found.state["step"] >= newest, end
                newest = found.state["step"]
        assert newest is not None

    return kill


@pytest.fixture
def shared_cache(project, monkeypatch):
    "In a project of one's own, the cache that all tests share: text is extracted and tokenizers are trained once."
    monkeypatch.setenv("MODERNLLM_CACHE", str(_shared / "cache"))


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    "An empty project of one's own: runs, caches, records and studies all lie in it."
    for folder in ("nbs/studies", "runs", "data/cache"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("MODERNLLM_ROOT", str(tmp_path))
    for name in ("MODERNLLM_RUNS", "MODERNLLM_CACHE", "MODERNLLM_STUDIES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def real_mirror(monkeypatch):
    "The mirror that MODERNLLM_DATA named when the tests were started; skipped without one."
    if not Path(REAL_MIRROR, "manifest.json").is_file() or not REAL_MIRROR:
        pytest.skip("MODERNLLM_DATA names no mirror")
    monkeypatch.setenv("MODERNLLM_DATA", REAL_MIRROR)
    return Path(REAL_MIRROR)
