import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.models import logprobs
from modernllm.models.logprobs import chunk_loss, chunks_by, linear_logprobs, linear_loss
from modernllm.training.compiling import compiled_loss


def example(n, d, v, dtype=torch.float32):
    torch.manual_seed(n + d + v)
    hidden = torch.randn(n, d, dtype=dtype, requires_grad=True)
    weight = torch.randn(v, d, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, v, (n,))
    targets[::3] = -100
    return hidden, weight, targets


def reference(hidden, weight, targets, softcap):
    logits = hidden @ weight.T
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    return -F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), chunk=st.integers(1, 50), softcap=st.sampled_from([None, 5.0]), summed=st.booleans())
def test_equals_cross_entropy(n, chunk, softcap, summed):
    hidden, weight, targets = example(n, 8, 33)
    upstream = torch.tensor(-0.7) if summed else torch.randn(n)
    ours = linear_logprobs(hidden, weight, targets, chunk=chunk, softcap=softcap, reduction="sum" if summed else "none")
    grads = torch.autograd.grad(ours, (hidden, weight), upstream)
    theirs = reference(hidden, weight, targets, softcap)
    theirs = theirs.sum() if summed else theirs
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, other in zip(grads, torch.autograd.grad(theirs, (hidden, weight), upstream)):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(reduction, softcap):
    hidden, weight, targets = example(7, 3, 5, torch.float64)

    def function(h, w):
        return linear_logprobs(h, w, targets, reduction=reduction, softcap=softcap, chunk=3)

    assert torch.autograd.gradcheck(function, (hidden, weight))


def test_under_autocast_as_close_as_plain_autocast():
    hidden, weight, targets = example(300, 64, 500)
    weight = (weight.detach() * 0.1).requires_grad_()
    exact = reference(hidden, weight, targets, None).sum()
    exact_grads = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_logprobs(hidden, weight, targets, reduction="sum", chunk=64)
        plain = -F.cross_entropy((hidden @ weight.T).float(), targets, ignore_index=-100, reduction="sum")
    assert ours.dtype == torch.float32
    grads, plain_grads = (torch.autograd.grad(total, (hidden, weight)) for total in (ours, plain))
    assert [g.dtype for g in grads] == [torch.float32, torch.float32]
    for mine, other, true in zip(grads, plain_grads, exact_grads):
        assert (mine - true).norm() < 1.1 * (other - true).norm()


def test_extreme_logits_stay_finite():
    hidden, weight = torch.full((2, 1), 100.0), torch.tensor([[10.0], [-10.0]])
    assert linear_logprobs(hidden, weight, torch.tensor([0, 1])).tolist() == [0.0, -2000.0]


def test_only_one_gradient_wanted():
    hidden, weight, targets = example(9, 4, 11)
    linear_logprobs(hidden.detach(), weight, targets, reduction="sum").backward()
    assert weight.grad is not None


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_a_frozen_head_gets_no_gradient_and_changes_no_other(reduction):
    hidden, weight, targets = example(9, 4, 11)
    grads = []
    for head in (weight, weight.detach()):
        linear_logprobs(hidden, head, targets, reduction=reduction).sum().backward()
        grads.append(hidden.grad.clone())
        hidden.grad = None
    assert grads[0].equal(grads[1]) and weight.grad is not None


@pytest.mark.parametrize("extras", [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}])
def test_ignored_positions_are_left_out_of_the_products(extras, monkeypatch):
    "The loss of the scored positions alone, bit for bit; hidden states of the others may even be NaN."
    hidden, weight, targets = example(30, 4, 11)
    kept, sizes, prepare = targets >= 0, [], logprobs._prepare
    monkeypatch.setattr(logprobs, "_prepare", lambda h, *rest: sizes.append(len(h)) or prepare(h, *rest))
    few = hidden.detach()[kept].requires_grad_()
    alone, _ = linear_loss(few, weight, targets[kept], **extras)
    alone.backward()
    spoilt = hidden.detach().masked_fill(~kept[:, None], torch.nan).requires_grad_()
    total, nats = linear_loss(spoilt, weight, targets, **extras)
    total.backward()
    assert total.equal(alone) and nats.isfinite() and sizes == [20, 20]
    assert spoilt.grad[kept].equal(few.grad) and not spoilt.grad[~kept].any()


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_nothing_to_score(reduction):
    hidden, weight, _ = example(3, 4, 11)
    out = linear_logprobs(hidden, weight, torch.full((3,), -100), reduction=reduction)
    out.sum().backward()
    assert not out.any() and not hidden.grad.any() and not weight.grad.any()


EXTRAS = [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"softcap": 3.0},
          {"label_smoothing": 0.2, "z_loss": 3e-3, "softcap": 5.0}]  # fmt: skip


def chunk_results(function, bf16, takes_out, extras):
    "Loss, nats and gradients where chunks are computed by a function; at two positions p is near 1."
    hidden, weight, targets = example(100, 16, 203)
    weight = (0.5 * weight.detach()).requires_grad_()
    with torch.no_grad():
        hidden[[1, 50]] = 4 * weight[targets[[1, 50]]]
    with pytest.MonkeyPatch.context() as patch, chunks_by(function), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        patch.setattr(logprobs, "TAKES_OUT", {"cpu"} if takes_out else set())
        total, nats = linear_loss(hidden, weight, targets, chunk=40, **extras)
    total.backward()
    return total.detach(), nats, hidden.grad, weight.grad


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("takes_out", [False, True])
def test_a_chunk_as_one_function_equals_passes_over_buffers(extras, bf16, takes_out):
    ours, theirs = (chunk_results(function, bf16, takes_out, extras) for function in (chunk_loss, None))
    for found, expected in zip(ours, theirs):
        assert found.dtype == expected.dtype and (found - expected).norm() <= (2e-4 if bf16 else 1e-6) * expected.norm()


@pytest.mark.parametrize("bf16", [False, True])
def test_a_compiled_chunk_equals_passes_over_buffers(bf16):
    "By Inductor, with two numbers of positions and other settings each time."
    torch._dynamo.reset()
    made = compiled_loss()
    for extras in EXTRAS:
        ours, theirs = (chunk_results(function, bf16, False, extras) for function in (made, None))
        for found, expected in zip(ours, theirs):
            assert found.dtype == expected.dtype and (found - expected).norm() <= (2e-4 if bf16 else 1e-6) * expected.norm()


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck_of_a_chunk_as_one_function(softcap):
    hidden, weight, targets = example(7, 3, 5, torch.float64)

    def function(h, w):
        with chunks_by(chunk_loss):
            return linear_loss(h, w, targets, label_smoothing=0.1, z_loss=1e-2, softcap=softcap, chunk=3)[0]

    assert torch.autograd.gradcheck(function, (hidden, weight))


def test_unknown_reduction():
    hidden, weight, targets = example(2, 2, 2)
    with pytest.raises(InputError, match="mean"):
        linear_logprobs(hidden, weight, targets, reduction="mean")
