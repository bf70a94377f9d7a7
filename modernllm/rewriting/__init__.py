"""Query rewriting: a follow-up question and its conversation become a question that stands alone. Names are loaded lazily."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {
    "Coder": "rewriter",
    "Load": "load_test",
    "Rewrite": "rewriter",
    "Rewriter": "rewriter",
    "ServerSettings": "server_settings",
    "compare_clients": "load_test",
    "drive": "load_test",
    "make_app": "server",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
