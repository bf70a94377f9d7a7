"""From a base model to checked answers: fine-tuning on conversations and preferences, a verifier, votes over sampled answers. Names are loaded when first used."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {
    "DPOSettings": "dpo",
    "PreferenceRows": "preference_datasets",
    "arithmetic_preferences": "preference_datasets",
    "best_of_n": "voting",
    "dpo_loss": "dpo_loss",
    "majority_vote": "voting",
    "pass_at_k": "voting",
    "read_preferences": "preference_datasets",
    "sample_answers": "sampling",
    "train_dpo": "dpo",
    "weighted_vote": "voting",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
