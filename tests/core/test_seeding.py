"""Seeds are pure functions of integers, and threads are what was asked."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.core.seeding import mix, numpy_rng, seed_everything, set_threads, step_seed

parts = st.lists(st.integers() | st.text(max_size=3), max_size=4)


@given(parts, parts)
def test_mix_tells_lists_apart(one, other):
    assert 0 <= mix(*one) < 2**63
    assert (mix(*one) == mix(*other)) == (one == other)


def test_the_values_are_fixed():
    "They may never change: checkpoints of other machines and versions depend on them."
    assert mix(0, "shuffle", 1) == 835788608695469523
    assert step_seed(3, 5) == mix(3, "step", 5) == mix(np.int64(3), "step", np.int32(5))
    assert numpy_rng(0).permutation(5).tolist() == numpy_rng(0).permutation(5).tolist()


def test_torch_generators_do_not_touch_each_other():
    import torch

    from modernllm.core.seeding import generator

    seed_everything(5)
    first = torch.rand(3), np.random.rand(3), random.random()
    seed_everything(5)
    torch.rand(1, generator=generator(1, 2))
    assert torch.equal(torch.rand(3), first[0]) and (np.random.rand(3) == first[1]).all() and random.random() == first[2]
    assert torch.equal(torch.rand(3, generator=generator(1, 2)), torch.rand(3, generator=generator(1, 2)))
    assert not torch.equal(torch.rand(3, generator=generator(1, 2)), torch.rand(3, generator=generator(2, 1)))


@pytest.mark.parametrize("n", [0, -1, 1.0, True, "2", None])
def test_bad_thread_counts(n):
    with pytest.raises(InputError, match="threads is .*; allowed: a whole number, 1 or more"):
        set_threads(n)


def test_threads_are_set_for_what_is_loaded_later():
    program = "import os; from modernllm.core.seeding import set_threads; set_threads(1); print(os.environ['OMP_NUM_THREADS'])"
    environ = {**os.environ, "OMP_NUM_THREADS": "2"}
    assert subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True).stdout == "1\n"
