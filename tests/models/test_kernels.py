"Hand-written gradients against autograd's, and the statistics of dropout."

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modernllm.models import kernels


@settings(max_examples=25, deadline=None)
@given(
    time=st.integers(1, 200), kv_heads=st.integers(1, 2), groups=st.integers(1, 3), pairs=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_attention_equals_the_fused_kernel(time, kv_heads, groups, pairs, seed):
    torch.manual_seed(seed)
    make = lambda heads: torch.randn(2, time, heads, 2 * pairs, dtype=torch.float64).transpose(1, 2).requires_grad_()
    q, k, v = make(kv_heads * groups), make(kv_heads), make(kv_heads)
    ours = kernels.causal_attention(q, k, v)
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    grad = torch.randn_like(plain)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(ours, (q, k, v), grad), torch.autograd.grad(plain, (q, k, v), grad))


@settings(max_examples=40, deadline=None)
@given(
    time=st.integers(1, 200), window=st.none() | st.integers(1, 220), sunk=st.booleans(), groups=st.integers(1, 2),
    borders=st.none() | st.sets(st.integers(0, 199), max_size=6), seed=st.integers(0, 2**31),
)
def test_windows_sinks_and_documents_equal_the_definition(time, window, sunk, groups, borders, seed):
    torch.manual_seed(seed)
    make = lambda heads: torch.randn(2, heads, time, 4, dtype=torch.float64, requires_grad=True)
    q, k, v = make(2 * groups), make(2), make(2)
    sinks = torch.randn(2 * groups, dtype=torch.float64, requires_grad=True) if sunk else None
    seen, starts = torch.ones(time, time, dtype=torch.bool).tril().triu(1 - (window or time)), None
    if borders is not None:  # the second row is one document
        starts = torch.tensor([[max({0, *(b for b in borders if b <= at)}) for at in range(time)], [0] * time])
        seen = seen & (starts[:, None, :, None] == starts[:, None, None])  # of one document
    scores = (q @ k.repeat_interleave(groups, 1).transpose(2, 3) / 2).masked_fill(~seen, float("-inf")).exp()
    total = scores.sum(-1, keepdim=True) + (sinks.exp()[:, None, None] if sunk else 0)
    plain = scores / total @ v.repeat_interleave(groups, 1)
    grad, inputs = torch.randn_like(plain), [q, k, v] + [sinks] * sunk
    expected = torch.autograd.grad(plain, inputs, grad)
    for ours in (
        kernels.causal_attention(q, k, v, sinks=sinks, window=window, starts=starts),
        kernels.masked_attention(q, k, v, seen, sinks=sinks),
    ):
        torch.testing.assert_close(ours, plain)
        torch.testing.assert_close(torch.autograd.grad(ours, inputs, grad), expected)


def test_a_long_window_is_masked_and_a_float_mask_adds():
    q, k, v = torch.randn(3, 1, 2, kernels.MAX_KERNEL_LENGTH + 60, 4, dtype=torch.float64)
    sinks = torch.tensor([0.5, -1.0], dtype=torch.float64)
    long = kernels.causal_attention(q, k, v, sinks=sinks, window=70)[:, :, -50:]
    torch.testing.assert_close(long, kernels.causal_attention(*(x[:, :, -130:] for x in (q, k, v)), 0.0, sinks, 70)[:, :, -50:])
    seen = torch.ones(9, 9, dtype=torch.bool).tril()
    added = torch.zeros(9, 9, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    q, k, v = (x[:, :, :9] for x in (q, k, v))
    same = (kernels.masked_attention(q, k, v, mask, sinks=sinks) for mask in (seen, added))
    torch.testing.assert_close(*same)


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), dim=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_norm_equals_torch(shape, dim, seed):
    torch.manual_seed(seed)
    x = torch.randn(*shape, dim, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(dim, dtype=torch.float64, requires_grad=True)
    ours, plain = kernels.rms_norm(x, weight, 1e-6), F.rms_norm(x, (dim,), weight, 1e-6)
    grad = torch.randn_like(plain)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(ours, (x, weight), grad), torch.autograd.grad(plain, (x, weight), grad))


def test_norm_of_zeros_is_zero_and_finite():
    x = torch.zeros(2, 4, requires_grad=True)
    y = kernels.rms_norm(x, torch.ones(4), 1e-6)
    y.sum().backward()
    assert not y.any() and x.grad.isfinite().all()


def test_norm_keeps_its_precision_in_bfloat16():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 256).bfloat16(), torch.ones(256).bfloat16()
    exact = F.rms_norm(x.double(), (256,), eps=1e-6)
    assert (kernels.rms_norm(x, weight, 1e-6).double() - exact).norm() / exact.norm() < 0.003
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.rms_norm(x.float(), weight.float(), 1e-6).dtype == torch.bfloat16


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_the_share(p):
    torch.manual_seed(0)
    x = kernels.dropout(torch.ones(999, 1001), p, True)
    assert abs((x == 0).float().mean().item() - p) < 0.002
    assert abs(x.mean().item() - 1) < 0.01
    assert len(x.unique()) == 2


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    x = (kernels.dropout(torch.ones(1_000_000), 0.5, True) == 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8):
        assert abs((x[distance:] * x[:-distance]).mean().item() * 4) < 0.005


def test_dropout_is_off_outside_training():
    x = torch.randn(10)
    assert kernels.dropout(x, 0.5, False) is x


def test_attention_dropout_repeats_with_the_seed_and_keeps_the_mean():
    q, k = torch.randn(2, 1, 1, 64, 8)
    v = torch.ones(1, 1, 64, 8)
    out = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        out.append(kernels.causal_attention(*(x.expand(64, 4, 64, 8) for x in (q, k, v)), 0.2))
    assert torch.equal(out[0], out[1]) and not torch.equal(out[0], out[2])
    assert abs(out[0].mean().item() - 1) < 0.02
