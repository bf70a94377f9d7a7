"A decoder's GGUF file is read back by transformers with equal logits; what a file cannot say is refused."

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from modernllm.cli.app import main
from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.models.config import ModernLLMConfig
from modernllm.models.gguf_export import WEIGHTS, export_gguf
from modernllm.models.sources import save_model
from modernllm.models.transformer import ModernDecoderLM

SHAPE = {"vocab_size": 270, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["a rose is a rose is a rose"] * 20, vocab_size=265)


def relative_error(a, b):
    return ((a - b).abs().max() / a.abs().max()).item()


@pytest.mark.parametrize("fields", [
    {}, {"num_key_value_heads": 1, "tie_word_embeddings": False}, {"head_dim": 32, "rms_norm_eps": 1e-5},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}, "max_position_embeddings": 64},
])
def test_equal_logits(tmp_path, tokenizer, fields):
    torch.manual_seed(0)
    model = ModernDecoderLM(ModernLLMConfig(**SHAPE, **fields)).eval()
    ids = torch.randint(0, 270, (2, 40))
    for weights, allowed in zip(WEIGHTS, (1e-5, 1e-2, 0.1)):
        export_gguf(model, tokenizer, tmp_path / f"{weights}.gguf", weights)
        read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=f"{weights}.gguf", dtype=torch.float32).eval()
        with torch.no_grad():
            assert relative_error(model(ids).logits, read(ids).logits) < allowed, weights
    sizes = [(tmp_path / f"{weights}.gguf").stat().st_size for weights in WEIGHTS]
    assert sizes[0] > 1.7 * sizes[1] > 2.5 * sizes[2] / 1.5


@pytest.mark.parametrize("scaled", [True, False])
def test_t5_in_the_file(tmp_path, tokenizer, scaled):
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "num_heads": 2, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=288, decoder_start_token_id=0, tie_word_embeddings=scaled, **shape))
    export_gguf(model, tokenizer, tmp_path / "t5.gguf")
    reader = gguf.GGUFReader(tmp_path / "t5.gguf")
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert ("output.weight" in tensors) == scaled  # llama.cpp never scales, so the head is written scaled
    if scaled:
        torch.testing.assert_close(tensors["output.weight"], model.lm_head.weight.detach() * 32**-0.5)
    assert {"dec.blk.1.cross_attn_q.weight", "enc.blk.0.attn_rel_b.weight", "dec.output_norm.weight"} <= tensors.keys()
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["t5.decoder_block_count"] == 2 and fields["t5.decoder_start_token_id"] == 0
    assert fields["tokenizer.ggml.tokens"][:2] == ["<|pad|>", "<|endoftext|>"] and len(fields["tokenizer.ggml.tokens"]) == 288


def test_what_is_refused(tmp_path, tokenizer):
    tiny = {**SHAPE, "hidden_size": 16, "num_attention_heads": 2}
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    for model, words in (
        (ModernDecoderLM(ModernLLMConfig(**tiny, qk_norm=True)), "a Llama cannot express qk_norm=True"),
        (ModernDecoderLM(ModernLLMConfig(**tiny, rope_parameters=linear)), "rope_type is 'linear'; allowed: 'default'"),
        (GPT2LMHeadModel(GPT2Config(vocab_size=270, n_embd=16, n_layer=1, n_head=2)), "'gpt2'; allowed: t5, llama, modernllm"),
        (T5ForConditionalGeneration(T5Config(vocab_size=270, d_model=16, d_kv=8, num_heads=2, d_ff=16, num_layers=1,
                                             feed_forward_proj="silu")), "proj is 'silu'; allowed: relu, gated-gelu"),
    ):
        with pytest.raises(InputError, match=words):
            export_gguf(model, tokenizer, tmp_path / "no.gguf")
    with pytest.raises(InputError, match="unknown weights 'q4'"):
        export_gguf(ModernDecoderLM(ModernLLMConfig(**tiny)), tokenizer, tmp_path / "no.gguf", "q4")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, tokenizer, capsys):
    save_model(tmp_path / "small", ModernDecoderLM(ModernLLMConfig(**SHAPE, eos_token_id=1, pad_token_id=0)), tokenizer)
    assert main(["export", str(tmp_path / "small"), "--to", "gguf", "--weights", "q8_0"]) == 0
    out = tmp_path / "small-gguf"
    assert capsys.readouterr().out.startswith(f"{out}: model.gguf with its tokenizer, ")
    assert {"model.gguf", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    assert main(["export", str(tmp_path / "small"), "--weights", "q8_0", "--out", str(tmp_path / "other")]) == 2
    assert "--weights" in capsys.readouterr().err and not (tmp_path / "other").exists()
