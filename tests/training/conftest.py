import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    "The models of these tests are so small that a second thread only waits."
    torch.set_num_threads(1)
