"""The `modernllm` command. Nothing heavy is imported before it is needed."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {"main": "app"}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
