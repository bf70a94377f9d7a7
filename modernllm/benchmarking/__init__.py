"""Speed and memory beside peers, measured in turns; operator profiles. Public names are loaded when they are first used."""

from modernllm import lazily

_EXPORTS = {
    "bench_train": "bench",
    "profile_model": "latency",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
