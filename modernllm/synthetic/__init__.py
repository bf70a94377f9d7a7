"""Programs, their compiler to the weights of a T5, tasks. Public names are loaded when they are first used."""

from modernllm import lazily

_EXPORTS = {
    "compile_t5": "compiler",
    "Program": "program",
    "interpret": "program",
    "make_task": "tasks",
    "TASKS": "tasks",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
