"Ternary layers for inference: equal to those of training, in both dtypes and for every shape."

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.bitnet import AutoBitLinear
from transformers.integrations.bitnet import BitLinear as PackedLinear

from modernllm.core.config import InputError
from modernllm.distill import ternary_generate
from modernllm.distill.bitlinear import BitLinear
from modernllm.distill.bitnet_convert import to_bitnet
from modernllm.distill.bitnet_pack import pack_ternary
from modernllm.distill.ternary_generate import FEW, TernaryLinear, compare_generation, fast_ternary, packed_in_memory
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM

SHAPE = {"vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def llama(**fields):
    torch.manual_seed(0)
    return to_bitnet(LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.2, **fields)).eval())


def both(inputs, outputs, bias, dtype):
    "A layer of training, and the one for inference."
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias).to(dtype)
    layer.__class__ = BitLinear
    return layer, ternary_generate._inference_layer(layer, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs, outputs", [(64, 48), (32, 16), (40, 48), (64, 20), (96, 4)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_equal_layers(dtype, inputs, outputs, bias):
    layer, fast = both(inputs, outputs, bias, dtype)
    assert (fast.fours is not None) == (dtype == torch.bfloat16 and inputs % 32 == 0 and outputs % 16 == 0)
    for rows in (1, FEW, FEW + 1, 40):
        x = torch.randn(rows, inputs).to(dtype)
        out = fast(x)
        assert out.dtype == dtype and out.shape == (rows, outputs)
        if dtype == torch.float32 or (fast.fours is not None and rows <= FEW):
            assert torch.equal(out, layer(x))
        else:  # int8 sums are exact; those of the reference are rounded to bfloat16
            torch.testing.assert_close(out, layer(x), atol=0.02, rtol=0.01)
    x = torch.randn(2, 3, inputs).to(dtype)
    each = torch.cat([fast(row[None]) for row in x.flatten(0, 1)])
    torch.testing.assert_close(fast(x).flatten(0, 1), each, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("fields", [{}, {"attention_bias": True, "num_key_value_heads": 2}])
def test_the_same_text(fields):
    model = llama(**fields)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p)
    fast, ids = fast_ternary(copy.deepcopy(model)), torch.randint(3, 60, (2, 7))
    assert sum(isinstance(layer, TernaryLinear) for layer in fast.modules()) == 14
    texts = [m.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0) for m in (model, fast)]
    assert torch.equal(*texts) and len(texts[0][0].unique()) > 5
    with torch.no_grad():
        assert torch.equal(model(ids).logits, fast(ids).logits)


@torch.no_grad()
def test_a_model_of_this_package_and_the_packed_one_of_transformers():
    torch.manual_seed(0)
    ours = to_bitnet(ModernDecoderLM(ModernLLMConfig(**SHAPE, initializer_range=0.2)).eval())
    ids = torch.randint(3, 60, (2, 7))
    assert torch.equal(fast_ternary(copy.deepcopy(ours))(ids).logits, ours(ids).logits)
    model = llama()
    packed = packed_in_memory(copy.deepcopy(model))
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(packed(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fast_ternary(packed)(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [PackedLinear, AutoBitLinear])
@torch.no_grad()
def test_a_norm_of_the_input_is_kept(kind):
    torch.manual_seed(0)
    more = {"online_quant": True} if kind is AutoBitLinear else {"dtype": torch.float32}
    layer, x = kind(64, 48, bias=False, use_rms_norm=True, **more), 3 * torch.randn(5, 64)
    layer.rms_norm.weight.uniform_(0.5, 2)
    if kind is PackedLinear:
        layer.weight.copy_(pack_ternary(torch.randint(-1, 2, (48, 64))))
    with torch.compiler.set_stance("force_eager"):
        expected = layer(x)
    torch.testing.assert_close(ternary_generate._inference_layer(layer, torch.float32)(x), expected, atol=1e-4, rtol=1e-4)


def test_what_is_refused():
    with pytest.raises(InputError, match="rounded with strength 0.5"):
        model = llama()
        model.model.layers[0].mlp.up_proj.strength = 0.5
        fast_ternary(model)
    with pytest.raises(InputError, match="LlamaForCausalLM has no ternary layers"):
        fast_ternary(LlamaForCausalLM(LlamaConfig(**SHAPE)))
    fast = fast_ternary(llama())
    with pytest.raises(InputError, match="packed ternary weights cannot be trained"):
        fast(torch.arange(4)[None], labels=torch.arange(4)[None])
    with torch.device("meta"):
        elsewhere = LlamaForCausalLM(LlamaConfig(**SHAPE))
    for layer in elsewhere.model.layers:
        layer.mlp.up_proj.__class__ = BitLinear
    with pytest.raises(InputError, match="is for a CPU; the model is on 'meta'"):
        fast_ternary(elsewhere)


def test_the_comparison_has_all_sides():
    threads = torch.get_num_threads()
    found = compare_generation(64, 96, 1, tokens=2, rounds=1)
    assert list(found) == ["bfloat16", "ternary, float32", "ternary, bfloat16", "packed, as transformers runs it"]
    assert found["bfloat16"][1] == 1 and all(0 < milliseconds < 1e4 for milliseconds, _ in found.values())
    assert torch.get_num_threads() == threads
