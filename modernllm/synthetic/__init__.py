"""Weights by construction: programs, their compiler to T5, tasks. Public names are loaded when they are first used."""

from importlib import import_module

_EXPORTS = {
    "compile_t5": "compiler",
    "Program": "program",
    "interpret": "program",
    "make_task": "tasks",
    "TASKS": "tasks",
}
__all__ = list(_EXPORTS)


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__():
    return sorted(__all__)
