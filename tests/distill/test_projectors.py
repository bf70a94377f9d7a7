"""Layer maps, projectors and whitening; layers that do not exist, students that are too wide, singular covariances."""

import pytest
import torch

from modernllm.core.config import InputError
from modernllm.distill.layers import LAYER_MAPS, LearntMap, layer_map, unit_rms
from modernllm.distill.projectors import PROJECTORS, OrthogonalProjector, Whiten, new_projector
from modernllm.distill.whitening import whitening_statistics


@pytest.mark.parametrize("kind", LAYER_MAPS)
@pytest.mark.parametrize("layers", [(1, 1), (1, 6), (3, 6), (4, 30), (5, 2)])
def test_every_map_stays_in_range(kind, layers):
    pairs = layer_map(kind, *layers)
    assert pairs and len(set(pairs)) == len(pairs)
    assert all(1 <= s <= layers[0] and 1 <= t <= layers[1] for s, t in pairs) and layers in pairs
    if kind == "uniform":
        assert [s for s, _ in pairs] == list(range(1, layers[0] + 1)) and pairs == sorted(pairs)


def test_own_pairs():
    assert layer_map([(0, 0), [2, 5]], 2, 5) == [(0, 0), (2, 5)]
    for pair in ((3, 1), (1, 6), (-1, 2), (1, 2, 3)):
        with pytest.raises(InputError) as error:
            layer_map([(1, 1), pair], 2, 5)
        assert f"{pair} is out of range" in str(error.value)
    for wrong, match in [([], "no pairs"), ([(1, 1), (1, 1)], "each of them once")]:
        with pytest.raises(InputError) as error:
            layer_map(wrong, 2, 5)
        assert match in str(error.value)
    with pytest.raises(InputError, match="allowed: pairs of a layer of the student, 1 to 2, and one of the teacher, 1 to 5"):
        layer_map([(0, 1)], 2, 5, lowest=1)
    with pytest.raises(InputError, match="unknown layer map 'unifrom'; did you mean 'uniform'"):
        layer_map("unifrom", 2, 5)


def test_learnt_map_mixes_and_learns():
    mixture = LearntMap(2, 5)
    states = {t: torch.randn(7, 3) for t in range(1, 6)}
    expected = sum(mixture.weights()[1, t - 1] * states[t] for t in states)
    torch.testing.assert_close(mixture(2, states), expected)
    mixture(2, states).square().sum().backward()
    grad = mixture.scores.grad.view(2, 5)
    assert grad[1].any() and not grad[0].any()
    assert torch.allclose(unit_rms(100 * states[1]).square().mean(-1), torch.ones(7)) and not unit_rms(torch.zeros(2, 3)).any()


@pytest.mark.parametrize("widths", [(1, 1), (4, 4), (3, 8)])
def test_an_orthogonal_projector_stays_one(widths):
    "Also with large steps and weight decay, where the parametrisation by reflections collapses."
    torch.manual_seed(0)
    projector = OrthogonalProjector(*widths)
    start = projector.weight().detach().clone()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=0.3, weight_decay=1.0)
    x, y = torch.randn(20, widths[0]), torch.randn(20, widths[1])
    for _ in range(15):
        optimizer.zero_grad()
        (projector(x) - y).square().mean().backward()
        optimizer.step()
    weight = projector.weight()
    torch.testing.assert_close(weight.T @ weight, torch.eye(widths[0]), rtol=0, atol=1e-5)
    assert widths == (1, 1) or not torch.allclose(weight, start, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert projector.weight().equal(weight) and projector(x).dtype == torch.bfloat16


def test_a_student_wider_than_the_projector_allows():
    with pytest.raises(InputError, match="the student is 9 wide, the teacher 8; allowed: a student that is not wider"):
        new_projector("orthogonal", 9, 8)
    assert new_projector("linear", 9, 8)(torch.ones(2, 9)).shape == (2, 8)
    with pytest.raises(InputError, match="'none': the student is 7 wide, the teacher 8; allowed: the same width, or linear"):
        new_projector("none", 7, 8)
    with pytest.raises(InputError, match="unknown projector 'lineal'; did you mean 'linear'"):
        new_projector("lineal", 7, 8)


def test_projectors():
    x = torch.randn(5, 6)
    assert new_projector("none", 6, 6)(x) is x
    ensemble = new_projector("ensemble", 6, 8)
    torch.testing.assert_close(ensemble(x), torch.stack([member(x) for member in ensemble.members]).mean(0))
    zero = ensemble(0 * x)
    assert not torch.allclose(ensemble(x) + ensemble(-x), 2 * zero, atol=1e-3)  # it is no linear map
    for kind in PROJECTORS[1:]:
        projector = new_projector(kind, 6, 8)
        projector(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in projector.parameters())


def spread(states):
    "Eigenvalues of the covariance of the whitened states, largest first, and the rank that was found."
    statistics = whitening_statistics(states.split(37))
    assert statistics.mean.isfinite().all() and statistics.matrix.isfinite().all()
    return torch.linalg.eigvalsh(torch.cov(Whiten(statistics)(states).double().T, correction=0)).flip(0), statistics.rank


def assert_projection(values, rank):
    torch.testing.assert_close(values, (torch.arange(len(values)) < rank).double(), rtol=0, atol=1e-3)


def case(name):
    torch.manual_seed(0)
    states = torch.randn(400, 6) @ torch.randn(6, 6) + torch.randn(6)
    return {
        "full": (states, 6),
        "outlier": (states * torch.tensor([1e4, 1, 1, 1, 1, 1e-3]), 6),
        "constant dimension": (torch.cat((states, torch.full((400, 1), 123.456)), 1), 6),
        "dead dimension": (torch.cat((states, torch.zeros(400, 1)), 1), 6),
        "copied dimension": (torch.cat((states, -2 * states[:, :1]), 1), 6),
        "low rank": (states[:, :2] @ torch.randn(2, 9), 2),
        "fewer states than dimensions": (states[:4], 3),
    }[name]


@pytest.mark.parametrize("name", ["full", "outlier", "constant dimension", "dead dimension", "copied dimension", "low rank",
                                  "fewer states than dimensions"])
def test_whitening_is_the_identity_on_what_varies(name):
    states, rank = case(name)
    values, found = spread(states)
    assert found == rank
    assert_projection(values, rank)


def test_whitening_in_one_pass_is_that_of_all_states():
    states, _ = case("full")
    parts, whole = whitening_statistics(states.split(37)), whitening_statistics([states])
    torch.testing.assert_close(parts.mean, states.mean(0))
    torch.testing.assert_close(parts.matrix, whole.matrix)
    new = torch.randn(3, 6)
    deviation, correlations = states.std(0, correction=0), torch.corrcoef(states.T)
    values, vectors = torch.linalg.eigh(correlations)
    expected = (new - states.mean(0)) / deviation @ (vectors / values.sqrt() @ vectors.T)
    torch.testing.assert_close(Whiten(whole)(new), expected, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert Whiten(whole)(new.bfloat16()).dtype == torch.float32 and Whiten(whole)(new).equal(Whiten(whole)(new.float()))
    assert not list(Whiten(whole).state_dict())


def test_whitening_refuses():
    for states, match in [([torch.ones(1, 4)], "given 1 states"), ([], "given 0 states"), ([torch.empty(0, 4)], "given 0 states"),
                          ([torch.ones(9, 4)], "all 9 states are the same"),
                          ([torch.randn(3, 4), torch.full((2, 4), torch.nan)], "NaN or infinite")]:
        with pytest.raises(InputError, match=match):
            whitening_statistics(states)
