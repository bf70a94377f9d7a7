"Ternary layers against the formulas of `transformers`, against a naive implementation, and by hand."

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.bitnet import ActQuant, AutoBitLinear, WeightQuant

from modernllm.distill.bitlinear import BitLinear, eight_bit, ternary
from modernllm.distill.bitnet_convert import to_bitnet
from modernllm.models import transformer
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM


@pytest.fixture(autouse=True)
def eager():
    "`transformers` compiles parts of its layers."
    with torch.compiler.set_stance("force_eager"):
        yield


def layer_of(inputs=24, outputs=16, bias=True, **settings):
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.__class__ = BitLinear
    vars(layer).update(settings)
    return layer


def naive(layer, x, strength=1.0):
    "The straight-through formula as papers write it."
    def mixed(t, codes, scale):
        return t + (strength * (codes / scale - t)).detach()

    scale = 1 / layer.weight.abs().mean().clamp(min=1e-5)
    weight = mixed(layer.weight, (layer.weight * scale).round().clamp(-1, 1), scale)
    scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return F.linear(mixed(x, (x * scale).round().clamp(-128, 127), scale), weight, layer.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_that_of_transformers(dtype):
    torch.manual_seed(0)
    for t in (torch.randn(16, 24), 1e-7 * torch.randn(16, 24), torch.zeros(4, 8), torch.full((4, 4), 3.0), torch.eye(8)):
        t = t.to(dtype)
        for ours, theirs in ((ternary, WeightQuant), (eight_bit, ActQuant)):
            codes, scale = ours(t)
            assert torch.equal((codes / scale).to(dtype), theirs.apply(t))
        assert set(ternary(t)[0].unique().tolist()) <= {-1, 0, 1} and eight_bit(t)[0].abs().max() <= 127


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_outputs_and_gradients_are_those_of_the_formula(bias, strength):
    torch.manual_seed(0)
    layer = layer_of(bias=bias, strength=strength)
    x, upstream = torch.randn(2, 5, 24, requires_grad=True), torch.randn(2, 5, 16)
    wanted = [x, *layer.parameters()]
    ours, reference = layer(x), naive(layer, x, strength)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
    grads = (torch.autograd.grad(out, wanted, upstream) for out in (ours, reference))
    for got, expected in zip(*grads):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_it_is_the_layer_that_transformers_trains():
    torch.manual_seed(0)
    layer, theirs, x = layer_of(), AutoBitLinear(24, 16, online_quant=True), torch.randn(7, 24)
    theirs.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), theirs(x), atol=1e-5, rtol=1e-5)
    layer(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, theirs.weight.grad, atol=1e-4, rtol=1e-5)


def test_the_warm_up_ends_without_a_jump():
    torch.manual_seed(0)
    layer, x = layer_of(), torch.randn(7, 24)
    layer.strength = 1 - 1e-7
    nearly = layer(x)
    layer.strength = 1.0
    torch.testing.assert_close(layer(x), nearly, atol=1e-5, rtol=1e-5)


def test_under_autocast_only_sums_are_rounded():
    torch.manual_seed(0)
    layer, x = layer_of(256, 16), 3 * torch.randn(5, 256)
    (codes, x_scale), (values, w_scale) = eight_bit(x), ternary(layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    sums = (codes @ values.T).to(torch.bfloat16).float()  # exact before the rounding: whole numbers below 2**24
    assert torch.equal(out, (sums / (x_scale * w_scale)).to(torch.bfloat16) + layer.bias.to(torch.bfloat16))
    layer.strength = 0.5
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_eight_bit_backward_by_hand():
    layer = layer_of(2, 2, bias=False, eight_bit_backward=True)
    layer.weight.data = torch.tensor([[2.0, -2.0], [2.0, 2.0]])  # codes 1, -1, 1, 1 with a scale of 1/2
    x, upstream = torch.tensor([[1.0, 0.5]], requires_grad=True), torch.tensor([[127.0, 10.4]])  # 10.4 becomes 10
    grad_x, grad_weight = torch.autograd.grad(layer(x), [x, layer.weight], upstream)
    torch.testing.assert_close(grad_x, torch.tensor([[2 * (127.0 + 10), 2 * (-127.0 + 10)]]))
    torch.testing.assert_close(grad_weight, upstream.T @ torch.tensor([[1.0, 64 / 127]]))  # of 10.4: not rounded


def test_small_gradients_are_rounded_as_large_ones():
    torch.manual_seed(0)
    layer, x, upstream = layer_of(eight_bit_backward=True), torch.randn(5, 24, requires_grad=True), torch.randn(5, 16)
    large, small = (torch.autograd.grad(layer(x), x, size * upstream)[0] for size in (1.0, 2.0**-40))
    assert large.abs().min() > 0
    torch.testing.assert_close(small * 2.0**40, large)


def test_a_row_without_gradient_gives_none():
    layer, x = layer_of(eight_bit_backward=True), torch.randn(2, 24, requires_grad=True)
    upstream = torch.stack((torch.zeros(16), torch.ones(16)))
    grad = torch.autograd.grad(layer(x), x, upstream)[0]
    assert grad[0].abs().max() == 0 and grad[1].abs().max() > 0 and grad.isfinite().all()


def test_what_waits_for_the_backward_pass_is_in_eight_bits():
    layer, x, kept = layer_of(bias=False), torch.randn(6, 24, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert sum(t.numel() * t.element_size() for t in kept) == 6 * 24 + 4 * 6 + 16 * 24 + 4


def test_no_fast_path_uses_the_stored_weights():
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
    model, ids = ModernDecoderLM(ModernLLMConfig(**shape)).eval(), torch.randint(1, 60, (1, 6))
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with patch.object(transformer, "decode", wraps=transformer.decode) as ours:
        raw = model.generate(ids, **settings)
        assert ours.call_count == 1  # of full precision
        to_bitnet(model)
        rounded = model.generate(ids, **settings)
        assert ours.call_count == 1
    row = ids
    with torch.no_grad():
        for _ in range(12):
            row = torch.cat((row, model(row).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(rounded, row) and not torch.equal(rounded, raw)
