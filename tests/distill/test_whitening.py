"""Whitening: the identity on what varies, zero elsewhere, in parts as in one; only scored positions count."""

import pytest
import torch

from modernllm.core.config import InputError
from modernllm.data.encoding import IGNORE
from modernllm.distill.signals import Signal, SignalSettings, TeacherSignal
from modernllm.distill.whitening import layer_states, whitening_statistics


def states(name):
    torch.manual_seed(0)
    x = torch.randn(500, 6)
    if name == "full":
        return x @ torch.randn(6, 6) + 5
    if name == "large mean":
        return x + 1000
    if name == "rank 3":
        return x[:, :3] @ torch.randn(3, 6) + 5
    return torch.cat((x[:, :5], torch.full((500, 1), 7.0)), 1)  # a constant dimension


@pytest.mark.parametrize("name, rank", [("full", 6), ("large mean", 6), ("rank 3", 3), ("constant", 5)])
def test_identity_on_what_varies(name, rank):
    x = states(name)
    found = whitening_statistics(x.split(70))
    white = (x - found.mean) @ found.matrix.T
    assert found.rank == rank and found.matrix.dtype == found.mean.dtype == torch.float32
    torch.testing.assert_close(found.mean, x.mean(0), rtol=1e-5, atol=1e-4)
    variances = torch.linalg.eigvalsh(white.double().T.cov(correction=0))
    torch.testing.assert_close(variances, torch.tensor([0.0] * (6 - rank) + [1.0] * rank).double(), rtol=0, atol=2e-3)


def test_parts_do_not_matter():
    x = states("full")
    whole = whitening_statistics([x])
    for sizes in ([1, 499], [0, 250, 0, 250], [500]):
        parts = whitening_statistics(x.split(sizes))
        torch.testing.assert_close(parts.matrix, whole.matrix, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("x", [[], [torch.empty(0, 3)], [torch.ones(1, 3)], [torch.ones(9, 3)]])
def test_too_little_to_whiten(x):
    with pytest.raises(InputError, match="whitening: (given|all)"):
        whitening_statistics(x)


class Fake(TeacherSignal):
    def signal(self, batch):
        return Signal(hidden={1: batch["input_ids"][:, :, None].float().expand(-1, -1, 4)})


def test_scored_places_only():
    teacher = Fake(SignalSettings(logits="none", hidden=(1,)), 10, 4, 2)
    batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "targets": torch.tensor([[2, IGNORE, 3], [IGNORE, IGNORE, 1]])}
    (found,) = layer_states(teacher, [batch], 1)
    assert found[:, 0].tolist() == [1, 3, 6]
    with pytest.raises(InputError, match="layer 2 are not asked of the teacher; allowed: 1"):
        next(layer_states(teacher, [batch], 2))
