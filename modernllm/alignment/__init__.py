"""From a base model to checked answers: conversations, fine-tuning, instructions. Names are loaded when first used."""

from modernllm import lazily

_EXPORTS = {
    "INSTRUCTIONS": "instructions",
    "SFTSettings": "sft",
    "check_instructions": "instructions",
    "evaluate_sft": "sft",
    "read_conversations": "conversations",
    "train_sft": "sft",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
