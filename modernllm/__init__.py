"""A laboratory for small language models. Imports are lazy: `import modernllm` loads no heavy package."""

from importlib import import_module

__version__ = "0.1.0"


def lazily(package: str, exports: dict[str, str]) -> tuple:
    "`__getattr__`, `__dir__` and `__all__` of a package whose public names (name: module) are loaded when they are first used."

    def get(name: str):
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{exports[name]}"), name)

    return get, lambda: sorted(exports), list(exports)


from .core.registration import register  # noqa: E402  (core uses `lazily`)

register()
