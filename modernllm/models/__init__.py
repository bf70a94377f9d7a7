"""Configuration, decoder, conversion, generation, cost. Public names are loaded when they are first used."""

from modernllm import lazily

_EXPORTS = {
    "ModernLLMConfig": "config",
    "ModernDecoderLM": "transformer",
    "ModernModel": "transformer",
    "ModernForSequenceClassification": "transformer",
    "to_llama": "convert",
    "from_llama": "convert",
    "to_qwen3": "convert",
    "to_mixtral": "convert",
    "from_mixtral": "convert",
    "RollingCache": "cache",
    "generate_text": "generation",
    "linear_logprobs": "logprobs",
    "linear_loss": "logprobs",
    "token_logprobs": "output_head",
    "print_param_table": "budget",
    "total_parameters": "budget",
    "forward_flops": "budget",
    "training_flops": "budget",
    "cache_bytes": "budget",
    "step_memory": "memory",
    "load_pretrained": "sources",
    "load_tokenizer": "sources",
    "save_model": "sources",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
