"""Evaluation: perplexity cards and speed against peers. Names load on first use, so that importing this costs nothing."""

from modernllm import lazily

_EXPORTS = {
    "PerplexityCard": "perplexity",
    "perplexity_card": "perplexity",
    "prefix_loss": "perplexity",
    "token_nats": "perplexity",
    "bench_train": "bench",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
