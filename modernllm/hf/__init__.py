"""Pretrained models at work: LoRA, QLoRA, prompts. Public names are loaded when they are first used."""

from modernllm import lazily

_EXPORTS = {
    "LoraSettings": "adapters",
    "add_lora": "adapters",
    "load_4bit": "qlora",
    "load_adapter": "adapters",
    "merge": "adapters",
    "save_adapter": "adapters",
    "TEMPLATES": "templates",
    "Template": "templates",
    "classify": "prompting",
    "draw_shots": "prompting",
    "solve": "prompting",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
