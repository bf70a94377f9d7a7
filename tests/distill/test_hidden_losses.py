"""Losses of hidden states and attention maps, and regularisation, against plain formulas; few positions, narrow types."""

import math

import pytest
import torch
import torch.nn.functional as F

from modernllm.core.config import InputError
from modernllm.distill import hidden_losses
from modernllm.distill.attention_losses import ATTENTION_LOSSES, attention_loss
from modernllm.distill.hidden_losses import EPSILON, HIDDEN_LOSSES, hidden_loss
from modernllm.distill.regularise import add_noise, batch_statistics_loss


def example(n=40, d=6):
    torch.manual_seed(n + d)
    return torch.randn(n, d, requires_grad=True), torch.randn(n, d)


def naive_transport(costs):
    "Log-domain Sinkhorn iterations with their graph, to convergence."
    f, g = torch.zeros(len(costs)), torch.zeros(costs.shape[1])
    n, m = math.log(len(costs)), math.log(costs.shape[1])
    for _ in range(200):
        f = -EPSILON * ((g - costs) / EPSILON - m).logsumexp(1)
        g = -EPSILON * ((f[:, None] - costs) / EPSILON - n).logsumexp(0)
    return f.mean() + g.mean()


def naive(kind, x, y):
    n = len(x)
    if kind == "mse":
        return F.mse_loss(x, y) * n
    if kind == "cosine":
        return sum(1 - a @ b / (a.norm() * b.norm()) for a, b in zip(x, y))
    if kind == "cka":  # by the Gram matrices of the positions
        centre = torch.eye(n) - 1 / n
        k, m = (centre @ t @ t.T @ centre for t in (x, y))
        return n * (1 - (k * m).sum() / (k.norm() * m.norm()))
    x, y = (t / t.norm(dim=-1, keepdim=True) for t in (x, y))
    if kind == "infonce":
        return F.cross_entropy(x @ y.T / 0.1, torch.arange(n), reduction="sum")
    return n * (naive_transport(1 - x @ y.T) - (naive_transport(1 - x @ x.T) + naive_transport(1 - y @ y.T)) / 2)


@pytest.mark.parametrize("kind", HIDDEN_LOSSES)
def test_equals_the_plain_formula(kind):
    x, y = example()
    ours, theirs = hidden_loss(kind, x, y), naive(kind, x, y)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, theirs)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_cka_of_any_scale(scale):
    states = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    assert hidden_loss("cka", scale * states, states).abs() < 1e-4


def test_cka_of_two_widths():
    x, y = example(d=6)[0], example(d=9)[1]
    torch.testing.assert_close(hidden_loss("cka", x, y), naive("cka", x, y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", HIDDEN_LOSSES)
def test_under_autocast(kind):
    x, y = example(300, 32)
    y = x.detach() + y  # near enough that the gradients of all losses are well above rounding
    exact = torch.autograd.grad(hidden_loss(kind, x, y), x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = hidden_loss(kind, x.bfloat16(), y.bfloat16())
    gradient = torch.autograd.grad(loss, x)[0]
    assert loss.dtype == torch.float32 and (gradient - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("kind", HIDDEN_LOSSES)
@pytest.mark.parametrize("n", [0, 1])
def test_few_places(kind, n):
    x, y = example()
    loss = hidden_loss(kind, x[:n], y[:n])
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all() and (n or loss == 0)
    if n and kind == "cka":
        assert loss == 1  # one position has no similarities


@pytest.mark.parametrize("kind", ["mse", "cosine", "cka", "sinkhorn"])
def test_nothing_is_lost_by_the_teacher_itself(kind):
    _, y = example()
    assert abs(hidden_loss(kind, y.clone(), y)) < 1e-4


@pytest.mark.parametrize("kind", HIDDEN_LOSSES)
def test_states_of_zeros_have_a_gradient_that_is_finite(kind):
    x, y = torch.zeros(5, 4, requires_grad=True), torch.randn(5, 4)
    loss = hidden_loss(kind, x, y)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


def test_sinkhorn_compares_in_blocks(monkeypatch):
    x, y = example(70)
    monkeypatch.setattr(hidden_losses, "PLACES", 32)
    expected = sum(naive("sinkhorn", x[first : first + 32], y[first : first + 32]) for first in (0, 32, 64))
    ours = hidden_loss("sinkhorn", x, y)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (ours, expected)), rtol=1e-4, atol=1e-5)


def test_sinkhorn_needs_no_cdist(monkeypatch):
    x, y = example()
    monkeypatch.setattr(torch, "cdist", None)
    with torch.autocast("cpu", torch.bfloat16):
        assert hidden_loss("sinkhorn", x, y) > 0


def test_refused_states():
    x, y = example()
    with pytest.raises(InputError, match=r"'mse': the student's states have shape \(40, 6\), the teacher's \(40, 5\)"):
        hidden_loss("mse", x, y[:, 1:])
    with pytest.raises(InputError, match="'cka': the student's states have shape"):
        hidden_loss("cka", x, y[1:])
    with pytest.raises(InputError, match="unknown loss of hidden states 'cosin'; did you mean 'cosine'"):
        hidden_loss("cosin", x, y)
    with pytest.raises(InputError, match="batch regularisation: the student's states have shape"):
        batch_statistics_loss(x, y[:, 1:])


def maps(heads, time=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, heads, time, time, generator=generator).requires_grad_()
    return scores, scores.masked_fill(torch.ones(time, time, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


SCORED = torch.tensor([[True, True, True, True, True], [False, True, True, False, False]])


@pytest.mark.parametrize("kind", ATTENTION_LOSSES)
@pytest.mark.parametrize("heads", [(2, 2), (2, 3), (1, 4)])
def test_attention_maps(kind, heads):
    (scores, q), (_, p) = maps(heads[0]), maps(heads[1], seed=1)
    ours, expected = attention_loss(kind, q, p.detach(), SCORED), 0
    if heads[0] != heads[1]:
        q, p = q.mean(1, keepdim=True), p.mean(1, keepdim=True)
    for row, query in SCORED.nonzero().tolist():
        for head in range(q.shape[1]):
            a, b = p[row, head, query, : query + 1].detach(), q[row, head, query, : query + 1]
            term = (a * (a / b).log()).sum() if kind == "kl" else (a - b).square().sum()
            expected = expected + term / q.shape[1]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, scores, retain_graph=True)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert not gradients[0][1, :, [0, 3, 4]].any()  # of queries that are not scored


@pytest.mark.parametrize("kind", ATTENTION_LOSSES)
def test_attention_maps_in_bfloat16(kind):
    (scores, q), (_, p) = maps(2), maps(2, seed=1)
    exact = attention_loss(kind, q, p, SCORED)
    with torch.autocast("cpu", torch.bfloat16):
        loss = attention_loss(kind, q.bfloat16(), p.bfloat16(), SCORED)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert torch.autograd.grad(loss, scores)[0].isfinite().all()


def test_attention_sinks_and_weights_that_underflow():
    (_, p), (scores, q) = maps(2), maps(2, seed=1)
    assert abs(attention_loss("kl", 0.3 * p, p, SCORED)) < 1e-5  # what goes to the sink is no key's
    zeros = torch.where(q == q.amax(-1, keepdim=True), 1.0, 0.0 * q)
    loss = attention_loss("kl", zeros, p, SCORED)
    assert loss.isfinite() and torch.autograd.grad(loss, scores)[0].isfinite().all()
    assert attention_loss("kl", q, p, torch.zeros_like(SCORED)) == 0


def test_refused_maps():
    _, p = maps(2)
    with pytest.raises(InputError, match=r"attention maps have shapes \(2, 2, 5, 5\) and \(2, 2, 5, 4\)"):
        attention_loss("kl", p, p[..., 1:], SCORED)
    with pytest.raises(InputError, match=r"with the batch and time of \(2, 4\)"):
        attention_loss("kl", p, p, SCORED[:, 1:])
    with pytest.raises(InputError, match="unknown loss of attention maps 'cosine'"):
        attention_loss("cosine", p, p, SCORED)


def test_batch_loss():
    x, y = example()
    expected = 40 * (F.mse_loss(x.mean(0), y.mean(0)) + F.mse_loss(torch.cov(x.T, correction=0), torch.cov(y.T, correction=0)))
    torch.testing.assert_close(batch_statistics_loss(x, y), expected, rtol=1e-5, atol=1e-6)
    slopes = [torch.autograd.grad(loss, x)[0] for loss in (batch_statistics_loss(x, y), expected)]
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert batch_statistics_loss(x.bfloat16(), y.bfloat16()).item() == pytest.approx(expected.item(), rel=0.02)
    assert batch_statistics_loss(x[:0], y[:0]) == 0 and batch_statistics_loss(x[:1], y[:1]).isfinite()


def test_noise():
    x = torch.randn(200, 300) * torch.logspace(-2, 2, 200)[:, None]
    torch.manual_seed(3)
    noisy = add_noise(x, 0.5)
    ratio = (noisy - x).norm(dim=-1) / x.norm(dim=-1)
    assert 0.4 < ratio.min() and ratio.max() < 0.6
    torch.manual_seed(3)
    assert add_noise(x, 0.5).equal(noisy)  # the Trainer's seed of a step determines it
    for scale in (-0.1, math.nan, math.inf):
        with pytest.raises(InputError, match="noise is"):
            add_noise(x, scale)
