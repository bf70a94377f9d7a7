"""Pretrained models at work: tasks, prompting, LoRA and QLoRA, fine-tuning, evaluation. Names are loaded when first used."""

from modernllm import lazily

_EXPORTS = {
    "LoraSettings": "adapters",
    "add_lora": "adapters",
    "load_adapter": "adapters",
    "load_model": "adapters",
    "merge": "adapters",
    "save_adapter": "adapters",
    "load_4bit": "qlora",
    "load_8bit": "qlora",
    "TEMPLATES": "tasks",
    "Template": "tasks",
    "classify": "prompting",
    "draw_shots": "prompting",
    "solve": "prompting",
    "TASKS": "tasks",
    "find_task": "tasks",
    "own_task": "tasks",
    "read_task": "tasks",
    "evaluate_task": "task_evaluation",
    "Tuning": "task_training",
    "encode_for": "task_training",
    "finetune_task": "task_training",
    "prepare_model": "task_training",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
