"An exported model is the same function, read by transformers alone."

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modernllm.cli.app import main
from modernllm.data.tokenizers import train_bpe
from modernllm.distill.bitnet_convert import to_bitnet
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM

TEXTS = ["def f(x):\n    return x", " The  caf\u00e9 \u2603\n\n", "<|user|>hello<|end|>", ""]
PLAIN = """
import sys
sys.modules["modernllm"] = None  # importing it is an error
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer("The function", return_tensors="pt")
    more = model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1] > ids["input_ids"].shape[1]
    print(type(model).__name__, type(model.model.layers[0].mlp.up_proj).__name__, more)
"""


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["a rose is a rose is a rose"] * 20, vocab_size=265)


@pytest.fixture
def save(tokenizer, tmp_path):
    "A function that saves a tiny model and gives its folder, as `modernllm train` would leave it."
    def make(ternary=False, **fields):
        torch.manual_seed(0)
        config = ModernLLMConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            initializer_range=0.2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, **fields,
        )  # fmt: skip
        model = ModernDecoderLM(config)
        (to_bitnet(model) if ternary else model).save_pretrained(tmp_path / "run/model")
        tokenizer.save_pretrained(tmp_path / "run/model")
        return tmp_path / "run"
    return make


@pytest.mark.parametrize("fields, target, name", [
    ({}, "llama", "LlamaForCausalLM"), ({"tie_word_embeddings": False}, None, "LlamaForCausalLM"),
    ({"qk_norm": True}, None, "Qwen3ForCausalLM"), ({"num_local_experts": 4}, "mixtral", "MixtralForCausalLM"),
    ({"num_local_experts": 4}, None, "MixtralForCausalLM"),
])
def test_the_same_function_and_the_same_tokenizer(save, tokenizer, capsys, fields, target, name):
    run = save(**fields)
    assert main(["export", str(run), *(["--to", target] if target else [])]) == 0
    said = capsys.readouterr().out
    out = run.with_name(f"run-{name.removesuffix('ForCausalLM').lower()}")
    assert said.count("\n") == 1 and said.startswith(f"{out}: {name} with its tokenizer, ")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (run / "model", out))
    assert type(theirs).__name__ == name
    ids = torch.randint(0, len(tokenizer), (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=0)
    again = AutoTokenizer.from_pretrained(out)
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"] and again.get_vocab() == tokenizer.get_vocab()
    assert again.special_tokens_map == tokenizer.special_tokens_map and again.chat_template == tokenizer.chat_template
    rows = tokenizer(TEXTS)["input_ids"]
    assert again.batch_decode(rows) == tokenizer.batch_decode(rows)
    assert sorted(path.name for path in run.parent.iterdir()) == ["run", out.name]


def test_it_is_read_without_this_package(save, tmp_path):
    out, packed = tmp_path / "there/it is", tmp_path / "there/packed"
    assert main(["export", str(save() / "model"), "--out", str(out)]) == 0
    assert main(["export", str(save(ternary=True) / "model"), "--to", "bitnet", "--out", str(packed)]) == 0
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"TORCHDYNAMO_DISABLE": "1"}
    line = [sys.executable, "-c", PLAIN, str(out), str(packed)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environ)
    assert done.stdout == "LlamaForCausalLM Linear True\nLlamaForCausalLM BitLinear True\n", done.stderr


@pytest.mark.parametrize("fields, weights, name", [
    ({}, "f32", "LlamaForCausalLM"), ({"qk_norm": True, "tie_word_embeddings": False}, "bf16", "Qwen3ForCausalLM"),
])
def test_a_ternary_model(save, capsys, fields, weights, name):
    run = save(ternary=True, **fields)
    assert main(["export", str(run), "--to", "bitnet", "--weights", weights]) == 0
    out = run.with_name("run-bitnet")
    size = (out / "model.safetensors").stat().st_size / 1e6
    assert capsys.readouterr().out.startswith(f"{out}: 6,144 ternary weights with their tokenizer, ") and 0 < size < 0.1
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        ours, theirs = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (run / "model", out))
        ids = torch.randint(0, 260, (2, 40))
        difference = (ours(ids).logits - theirs(ids).logits).abs().max() / ours(ids).logits.abs().max()
    assert type(theirs).__name__ == name and difference < (1e-5 if weights == "f32" else 0.1)
    assert json.loads((out / "config.json").read_text())["quantization_config"]["linear_class"] == "bitlinear"
    assert theirs.dtype == (torch.float32 if weights == "f32" else torch.bfloat16)


def refused(capsys, *line):
    capsys.readouterr()
    assert main(["export", *map(str, line)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("fields, target, words", [
    ({"attention_sinks": True}, "llama", ["Llama", "attention_sinks=True"]),
    ({"attention_gate": True}, None, ["a Llama", "a Qwen3", "a Mixtral", "attention_gate=True"]),
    ({"num_local_experts": 4}, "llama", ["num_local_experts=4"]), ({}, "qwen3", ["qk_norm=False"]),
    ({}, "mixtral", ["num_local_experts is 0"]), ({"qk_norm": True}, "mixtral", ["qk_norm=True"]),
    ({"num_local_experts": 4, "shared_expert_intermediate_size": 8}, None, ["shared_expert_intermediate_size=8"]),
    ({}, "lama", ["'lama'", "'llama'"]),
])
def test_what_a_class_cannot_express_is_named(save, capsys, fields, target, words):
    run = save(**fields)
    err = refused(capsys, run, *(["--to", target] if target else []))
    assert all(word in err for word in words), err
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("ternary, line, words", [
    (False, ["--to", "bitnet"], "was not trained with ternary weights"),
    (True, ["--to", "llama"], "layers of class AutoBitLinear, which compute with other weights than they store"),
    (True, [], "modernllm export --to bitnet"), (True, ["--to", "gguf"], "modernllm export --to bitnet"),
    (True, ["--to", "bitnet", "--weights", "q8_0"], "f32|bf16 with --to bitnet"),
    (False, ["--to", "gguf", "--weights", "bf16"], "f32|f16|q8_0 with --to gguf"),
])
def test_ternary_or_not(save, capsys, ternary, line, words):
    run = save(ternary)
    assert words in refused(capsys, run, *line)
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_packed_weights_are_not_packed_again(save, capsys):
    run = save(ternary=True)
    assert main(["export", str(run), "--to", "bitnet"]) == 0
    packed = run.with_name("run-bitnet")
    assert "packed ternary weights" in refused(capsys, packed, "--to", "bitnet")
    assert "quantised layers" in refused(capsys, packed, "--to", "gguf")
    assert "which transformers reads as it is" in refused(capsys, packed)


def test_scales_of_the_wrong_convention(save, capsys):
    run = save(ternary=True)
    assert main(["export", str(run), "--to", "bitnet"]) == 0
    config = run.with_name("run-bitnet") / "config.json"
    config.write_text(config.read_text().replace('"linear_class": "bitlinear"', '"linear_class": "autobitlinear"'))
    capsys.readouterr()
    assert main(["evaluate", str(config.parent)]) == 2
    assert "are those of linear_class 'bitlinear', but config.json says 'autobitlinear'" in capsys.readouterr().err


def test_bad_folders(save, capsys, tmp_path):
    run, full = save(), tmp_path / "full"
    full.mkdir()
    assert "config.json" in refused(capsys, full)
    assert main(["export", str(run), "--out", str(full)]) == 0  # it is empty
    assert "is not empty; choose another --out" in refused(capsys, run, "--out", full)
    assert "is a file" in refused(capsys, run, "--out", full / "config.json")
    assert "does not exist" in refused(capsys, tmp_path / "none")
    assert "of type 'llama'" in refused(capsys, full)
    config = json.loads((full / "config.json").read_text())
    (full / "config.json").write_text(json.dumps(config | {"model_type": "nobody"}))
    assert "cannot be loaded as a model" in refused(capsys, full)
