"""The `modernllm` command. Nothing heavy is imported before it is needed."""

from importlib import import_module

# public name: module of this package that defines it
_EXPORTS = {"main": "app"}


def __getattr__(name):
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__():
    return [*globals(), *_EXPORTS]
