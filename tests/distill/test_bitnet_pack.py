"Packed files: their bytes, the logits that `transformers` computes from them, and files that are wrong."

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.bitnet import pack_weights, unpack_weights

from modernllm.core.config import InputError
from modernllm.distill.bitlinear import BitLinear, ternary
from modernllm.distill.bitnet_convert import to_bitnet
from modernllm.distill.bitnet_pack import LINEAR_CLASSES, pack_ternary, save_packed, unpack_ternary
from modernllm.distill.ternary_generate import fast_ternary
from modernllm.models.config import ModernLLMConfig
from modernllm.models.ternary_scales import SCALES_FOR, check_scales
from modernllm.models.transformer import ModernDecoderLM

TOKENS = {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 64}
OURS = {**TOKENS, **SIZE, "num_key_value_heads": 2, "tie_word_embeddings": False}


@pytest.fixture(autouse=True)
def eager():
    "`transformers` compiles parts of its layers."
    with torch.compiler.set_stance("force_eager"):
        yield


def build(kind, **fields):
    torch.manual_seed(0)
    if kind == "modernllm":
        model = ModernDecoderLM(ModernLLMConfig(**{**OURS, **fields}))
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TOKENS, **fields))
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)  # biases too
    return to_bitnet(model.eval())


def logits(model):
    with torch.no_grad():
        return model(torch.arange(24).view(2, 12) % 60).logits.float()


def test_bytes_are_those_of_transformers():
    torch.manual_seed(0)
    codes = torch.randint(-1, 2, (16, 7))
    packed = pack_ternary(codes)
    assert torch.equal(packed, pack_weights(codes.clone())) and packed.shape == (4, 7)
    assert torch.equal(unpack_ternary(packed).float(), unpack_weights(packed, torch.float32))
    assert torch.equal(unpack_ternary(packed).long(), codes)
    assert pack_ternary(torch.tensor([[1], [0], [-1], [1]])).item() == 0b10_00_01_10


def test_a_tied_embedding_is_written_once(tmp_path):
    model, sizes = build("modernllm", tie_word_embeddings=True), {}
    for dtype in (torch.float32, torch.bfloat16):
        save_packed(tmp_path / str(dtype), model, dtype=dtype)
        state = load_file(tmp_path / str(dtype) / "model.safetensors")
        assert "lm_head.weight" not in state
        sizes[dtype] = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert sizes[torch.bfloat16] < sizes[torch.float32]
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "torch.float32")
    torch.testing.assert_close(logits(read), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("codes, words", [
    (torch.zeros(6, 2), "a matrix with 6 rows cannot be packed; allowed: a multiple of 4"),
    (torch.full((4, 1), torch.nan), "not all -1, 0 or 1; some may be NaN"), (torch.full((4, 1), 2.0), "not all -1, 0 or 1"),
])
def test_what_cannot_be_packed(codes, words):
    with pytest.raises(InputError, match=words):
        pack_ternary(codes)


def test_a_code_that_is_none():
    with pytest.raises(InputError, match="hold the code 3"):
        unpack_ternary(torch.tensor([[0b00_11_00_01]], dtype=torch.uint8))


@pytest.mark.parametrize("linear_class", LINEAR_CLASSES)
@pytest.mark.parametrize("kind, fields, name", [
    ("modernllm", {}, "LlamaForCausalLM"), ("modernllm", {"qk_norm": True, "tie_word_embeddings": True}, "Qwen3ForCausalLM"),
    ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, "GPTBigCodeForCausalLM"),
    ("phi", SIZE, "PhiForCausalLM"),
])
def test_transformers_computes_the_same(tmp_path, kind, fields, name, linear_class):
    model = build(kind, **fields)
    expected = logits(model)
    save_packed(tmp_path, model, linear_class)
    read = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(read).__name__ == name
    error = ((logits(read) - expected).abs().max() / expected.abs().max()).item()
    assert error < (1e-6 if linear_class == "bitlinear" else 2e-5), error  # autobitlinear rounds inputs to codes / scale
    assert model.config.quantization_config["quantization_mode"] == "online"  # of the model that is trained on
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("linear_class", LINEAR_CLASSES)
def test_what_the_file_holds(tmp_path, linear_class):
    model = build("modernllm")
    save_packed(tmp_path, model, linear_class)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == {
        "quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": "offline",
        "modules_to_not_convert": ["lm_head"]}
    tensors, size = load_file(tmp_path / "model.safetensors"), 0
    for layer, module in model.named_modules():
        if isinstance(module, BitLinear):
            codes, scale = ternary(module.weight)
            weight, stored = tensors[f"{layer}.weight"], tensors[f"{layer}.weight_scale"]
            assert weight.dtype == torch.uint8 and torch.equal(unpack_ternary(weight).float(), codes)
            assert stored.shape == (1,) and torch.isclose(stored[0], scale if linear_class == "bitlinear" else 1 / scale)
            size += weight.numel() + 4
            assert weight.numel() + 4 <= 0.25 * 2 * module.weight.numel()
    floats = sum(t.numel() for t in tensors.values() if t.is_floating_point()) - 14  # without the scales
    assert floats == 2 * 60 * 32 + 5 * 32 and (tmp_path / "model.safetensors").stat().st_size < size + 4 * floats + 6000


def test_half_size_for_the_rest(tmp_path):
    model = build("modernllm", vocab_size=600)
    save_packed(tmp_path / "wide", model)
    save_packed(tmp_path / "narrow", model, dtype=torch.bfloat16)
    files = [load_file(tmp_path / name / "model.safetensors").values() for name in ("narrow", "wide")]
    sizes = [sum(t.numel() * t.element_size() for t in tensors) for tensors in files]
    assert sizes[1] - sizes[0] == 2 * (2 * 600 * 32 + 5 * 32)  # the scales stay float32
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow").eval()
    assert read.dtype == torch.bfloat16
    difference = (logits(read) - logits(model)).norm() / logits(model).norm()
    assert 0 < difference < 0.1


def test_transformers_saves_it_again(tmp_path):
    model = build("modernllm")
    save_packed(tmp_path / "first", model)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    read.save_pretrained(tmp_path / "second")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "second").eval()), logits(read.eval()))


@pytest.mark.parametrize("written", LINEAR_CLASSES)
@pytest.mark.parametrize("check", [check_scales, fast_ternary])
def test_the_wrong_scale_convention(tmp_path, written, check):
    save_packed(tmp_path, build("modernllm"), written)
    claimed = LINEAR_CLASSES[1 - LINEAR_CLASSES.index(written)]
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["linear_class"] = claimed
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"are those of linear_class '{written}', but config.json says '{claimed}'"):
        check(AutoModelForCausalLM.from_pretrained(tmp_path))
    config["quantization_config"]["linear_class"] = written
    (tmp_path / "config.json").write_text(json.dumps(config))
    check(AutoModelForCausalLM.from_pretrained(tmp_path))


@pytest.mark.parametrize("kind", ["bitnet", "modernllm"])
def test_large_weights_are_not_refused(tmp_path, kind):
    model = build(kind, **SIZE, num_key_value_heads=4) if kind == "bitnet" else build(kind)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, BitLinear):
                layer.weight.mul_(20)
    save_packed(tmp_path, model, "autobitlinear")
    read = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert all(scale > 1 for name, scale in read.named_buffers() if name.endswith("weight_scale"))
    check_scales(read)
    torch.testing.assert_close(logits(fast_ternary(read)), logits(model), atol=1e-3, rtol=1e-3)


def test_a_damaged_file(tmp_path):
    save_packed(tmp_path, build("modernllm"))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 0xFF
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="hold the code 3"):
        fast_ternary(AutoModelForCausalLM.from_pretrained(tmp_path))


@pytest.mark.parametrize("linear_class", LINEAR_CLASSES)
@pytest.mark.parametrize("changed, words", [
    ({"weight_scale": torch.tensor([-3.0])}, "scale of the packed weights is -3; allowed: a finite one above 0"),
    ({"weight_scale": torch.tensor([0.0])}, "is 0; allowed"), ({"weight_scale": torch.tensor([torch.nan])}, "is nan; allowed"),
    ({"weight_scale": torch.tensor([torch.inf])}, "is inf; allowed"),
    ({"weight": 0x0C}, "hold the code 3; allowed: 0, 1 and 2"), ({"weight": 0xC0}, "hold the code 3"),
])
def test_a_damaged_layer_is_named(tmp_path, changed, words, linear_class):
    save_packed(tmp_path, build("modernllm"), linear_class)
    tensors, name = load_file(tmp_path / "model.safetensors"), "model.layers.1.mlp.up_proj"
    for part, value in changed.items():
        tensors[f"{name}.{part}"] = value if torch.is_tensor(value) else tensors[f"{name}.{part}"].fill_(value)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{name}: .*{words}"):
        check_scales(AutoModelForCausalLM.from_pretrained(tmp_path))


def test_without_a_mark_the_majority_of_the_scales_decides(tmp_path):
    save_packed(tmp_path, build("modernllm"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name != SCALES_FOR}))
    tensors = load_file(tmp_path / "model.safetensors")
    names = [name for name in tensors if name.endswith("weight_scale")]
    for n, name in enumerate(names):  # one scale after the other is inverted
        tensors[name] = 1 / tensors[name]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        read = AutoModelForCausalLM.from_pretrained(tmp_path)
        if 2 * (n + 1) > len(names):
            with pytest.raises(InputError, match="are those of linear_class 'autobitlinear'"):
                check_scales(read)
        else:
            check_scales(read)


def test_a_packed_model_is_not_trained(tmp_path):
    for linear_class in LINEAR_CLASSES:
        save_packed(tmp_path / linear_class, build("modernllm"), linear_class)
        with pytest.raises(InputError, match="packed ternary weights, without the full-precision ones"):
            to_bitnet(AutoModelForCausalLM.from_pretrained(tmp_path / linear_class))


def halfway(strength):
    model = build("modernllm")
    for layer in model.modules():
        if isinstance(layer, BitLinear):
            layer.strength = strength
    return model


def with_nan():
    model = build("modernllm")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    return model


@pytest.mark.parametrize("make, words", [
    (lambda: ModernDecoderLM(ModernLLMConfig(**OURS)), "has no ternary layers; `to_bitnet` makes them"),
    (lambda: halfway(0.5), "rounded with strength 0.5; allowed: 1, the end of the warm-up"),
    (lambda: halfway(0.0), "rounded with strength 0.0"), (with_nan, "some may be NaN"),
    (lambda: build("modernllm", attention_sinks=True), "a Llama cannot express attention_sinks=True"),
])
def test_what_is_not_saved(tmp_path, make, words):
    with pytest.raises(InputError, match=words):
        save_packed(tmp_path / "out", make())
    assert not (tmp_path / "out").exists()


def test_an_unknown_class(tmp_path):
    with pytest.raises(InputError, match="linear_class 'bitlinaer'"):
        save_packed(tmp_path / "out", build("modernllm"), "bitlinaer")
