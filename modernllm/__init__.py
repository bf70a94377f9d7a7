"""A laboratory for small language models. Imports are lazy: `import modernllm` loads no heavy package."""

__version__ = "0.1.0"
