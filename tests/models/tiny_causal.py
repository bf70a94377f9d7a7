"Every causal architecture of the installed transformers, built so small that a forward pass takes milliseconds."

import contextlib

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

WIDTH = ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "word_embed_proj_dim", "lru_width")
INNER = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "d_inner")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads",
         "num_key_value_heads")
LENGTH = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
SMALL = {
    **dict.fromkeys(WIDTH, 32), **dict.fromkeys(INNER, 48), **dict.fromkeys(LAYERS, 2), **dict.fromkeys(HEADS, 2),
    **dict.fromkeys(LENGTH, 64), **dict.fromkeys(EXPERTS, 4), "encoder_layers": 1, "vocab_size": 64, "head_dim": 16,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts_per_tok": 2, "is_decoder": True,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
}
HYBRID = [{"num_hidden_layers": 4}, {"num_hidden_layers": 3}, {"num_hidden_layers": 8}]  # attention comes once in so many layers
OTHERS = {
    "codegen": [{"n_head": 4, "n_embd": 64, "rotary_dim": 8}],
    "falcon_h1": [{"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}],
    "gptj": [{"rotary_dim": 16}],
    "mamba2": [{"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8}],
    "xlstm": [{"hidden_size": 128, "embedding_dim": 128, "chunk_size": 4}],
}


def _configs(known: type):
    "Small configurations of a class, made in several ways: each class accepts another one."
    for more in OTHERS.get(known.model_type, [{}, *HYBRID]):
        fields = {**SMALL, **more}
        with contextlib.suppress(Exception):
            defaults = known()
            yield known(**{name: value for name, value in fields.items() if hasattr(defaults, name)} | more)
        with contextlib.suppress(Exception):
            yield known(**{name: value for name, value in fields.items() if hasattr(known, name)} | more)
        with contextlib.suppress(Exception):
            config = known()
            for name, value in fields.items():
                with contextlib.suppress(Exception):
                    if hasattr(config, name):
                        setattr(config, name, value)
            yield config


def tiny_model(
    kind: str,  # model_type
):  # in evaluation mode, weights large enough that a scale, a cap or a bias shows; None: does not build or run so small
    "A causal model of a type, or None."
    for config in _configs(CONFIG_MAPPING[kind]):
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
            if size > 3e6:
                continue
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config).eval()
            for p in model.parameters():
                torch.nn.init.normal_(p, std=0.3)
            with torch.no_grad():
                logits = model(torch.randint(3, 60, (2, 12))).logits
        except Exception:
            continue
        if logits.shape[:2] == (2, 12) and logits.isfinite().all():
            return model
    return None


NOT_SMALL = set("""
    axk1 bailing_hybrid bamba blt cohere_compass_text dbrx dots1 dots3_note emu3 fuyu gemma3 gemma3n gemma3n_text
    gemma4 gemma4_assistant gemma4_text gemma4_unified gemma4_unified_assistant git got_ocr2 granitemoehybrid
    kimi_linear lfm2_moe llama4 longcat_flash mimo_v2_flash mllama moss_transcribe_diarize musicgen musicgen_melody
    phi4_multimodal qwen3_5 qwen3_5_moe qwen4_exp qwen4_exp_text reformer roc_bert xmod zamba2
""".split())  # want images, sound, further packages, or settings of their own that fit together
KINDS = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - NOT_SMALL)
