"""From a base model to checked answers: fine-tuning on conversations and preferences, a verifier, votes over sampled answers."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {
    "best_of_n": "voting",
    "check_instructions": "instructions",
    "evaluate_sft": "sft",
    "INSTRUCTIONS": "instructions",
    "majority_vote": "voting",
    "pass_at_k": "voting",
    "read_conversations": "conversations",
    "sample_answers": "sampling",
    "SFTSettings": "sft",
    "train_sft": "sft",
    "weighted_vote": "voting",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
