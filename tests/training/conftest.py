import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    "The models of these tests are so small that a second thread only waits."
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def processes():
    "Real processes, forked from a server that has already imported torch."
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:  # the server looks for modules here, not in this process's sys.path
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        context.set_forkserver_preload(["workers", "parallel_workers"])
        forkserver.ensure_running()
    return context
