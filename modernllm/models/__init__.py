"""Models: configuration, decoder, conversion, generation. Names load on first use, so that importing this costs nothing."""

from importlib import import_module

_HOME = {
    "ModernLLMConfig": "config",
    "ModernDecoderLM": "transformer",
    "to_llama": "convert",
    "from_llama": "convert",
    "generate_text": "generation",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted(__all__)
