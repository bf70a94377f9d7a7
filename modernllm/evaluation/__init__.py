"""Evaluation: perplexity cards and speed against peers. Names load on first use, so that importing this costs nothing."""

from importlib import import_module

_HOME = {
    "PerplexityCard": "perplexity",
    "perplexity_card": "perplexity",
    "prefix_loss": "perplexity",
    "token_nats": "perplexity",
    "bench_train": "bench",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted(__all__)
