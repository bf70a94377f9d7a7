"""Configuration, decoder, conversion, generation, cost. Public names are loaded when they are first used."""

from importlib import import_module

_EXPORTS = {
    "ModernLLMConfig": "config",
    "ModernDecoderLM": "transformer",
    "to_llama": "convert",
    "from_llama": "convert",
    "to_qwen3": "convert",
    "to_mixtral": "convert",
    "from_mixtral": "convert",
    "RollingCache": "cache",
    "generate_text": "generation",
    "print_param_table": "budget",
    "total_parameters": "budget",
    "forward_flops": "budget",
    "training_flops": "budget",
    "cache_bytes": "budget",
    "step_memory": "budget",
}
__all__ = list(_EXPORTS)


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__():
    return sorted(__all__)
