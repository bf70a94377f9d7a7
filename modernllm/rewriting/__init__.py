"""Query rewriting: a follow-up question and its conversation become a question that stands alone. Names are loaded lazily."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {
    "ENGINES": "engine",
    "Engine": "engine",
    "MiniT5": "settings",
    "load_engine": "engine",
    "make_t5_mini": "t5_mini",
    "settings_of": "settings",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
