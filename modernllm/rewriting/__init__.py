"""Query rewriting: a follow-up question and its conversation become a question that stands alone. Names are loaded lazily."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {
    "Coder": "rewriter",
    "ENGINES": "engine",
    "Engine": "engine",
    "Load": "load_test",
    "MiniT5": "settings",
    "RULES": "rules",
    "Rewrite": "rewriter",
    "Rewriter": "rewriter",
    "ServerSettings": "server_settings",
    "Tagger": "tagger",
    "compare_clients": "load_test",
    "drive": "load_test",
    "load_engine": "engine",
    "make_app": "server",
    "make_t5_mini": "t5_mini",
    "new_tagger": "tagger",
    "settings_of": "settings",
    "tagged_rewrites": "tagger",
    "train_tagger": "tagger",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
