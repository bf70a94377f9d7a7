"A student that becomes ternary: prepared, killed and resumed, refused before training where it could not be packed."

import signal

import pytest
import ternary_workers
import torch
from transformers import AutoModelForCausalLM

from modernllm.core.config import InputError
from modernllm.distill.bitlinear import BitLinear
from modernllm.distill.bitnet_pack import save_packed
from modernllm.distill.ternary_student import ternary_student
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM

SHAPE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def run(processes, *args):
    process = processes.Process(target=ternary_workers.train, args=args)
    process.start()
    process.join(120)
    return process.exitcode


def test_killed_during_the_warm_up_and_after_it(processes, tmp_path):
    assert run(processes, None, tmp_path / "whole.pt") == 0
    for die_at in (2, 5, 7):  # before the first checkpoint, in the warm-up, after it
        assert run(processes, tmp_path / "run", tmp_path / "killed.pt", die_at) == -signal.SIGKILL
    assert not (tmp_path / "killed.pt").exists()
    assert run(processes, tmp_path / "run", tmp_path / "killed.pt") == 0
    whole, killed = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "killed"))
    assert killed["history"] == whole["history"] and len(whole["history"]) == 8 + 4
    assert all(torch.equal(killed["model"][name], t) for name, t in whole["model"].items())


def test_prepared_and_packed(tmp_path):
    given = ModernDecoderLM(ModernLLMConfig(**SHAPE)).eval()
    model, warmup = ternary_student(given, 10, keep=["o_proj"], eight_bit_backward=True)
    layers = {name.split(".")[-1]: module for name, module in model.named_modules() if isinstance(module, BitLinear)}
    assert model is given and sorted(layers) == ["down_proj", "gate_proj", "k_proj", "q_proj", "up_proj", "v_proj"]
    assert all(layer.eight_bit_backward and layer.strength == 1.0 for layer in layers.values())
    assert warmup.steps == 10 and warmup.strength(5) == 0.5
    save_packed(tmp_path, model)
    ids = torch.arange(12)[None]
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        read = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(read(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields, steps, words", [
    ({"attention_sinks": True}, 10, "a Llama cannot express attention_sinks=True"),
    ({"num_local_experts": 4}, 10, "a Llama cannot express num_local_experts=4"),  # whose experts would stay as they are
    ({}, -1, "steps is -1; allowed: 0 or more"),
])
def test_refused_before_training(fields, steps, words):
    with pytest.raises(InputError, match=words):
        ternary_student(ModernDecoderLM(ModernLLMConfig(**SHAPE, **fields)), steps)
