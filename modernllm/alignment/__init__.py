"""From a base model to checked answers: instructions, preferences, verifier, voting. Names are loaded when first used."""

from modernllm import lazily

_EXPORTS = {
    "arithmetic_preferences": "preference_datasets",
    "balance": "judging",
    "best_of_n": "voting",
    "check_instructions": "instructions",
    "dpo_loss": "dpo_loss",
    "DPOSettings": "dpo",
    "evaluate_sft": "sft",
    "evaluate_verifier": "verifier",
    "INSTRUCTIONS": "instructions",
    "judge": "judging",
    "JudgedRows": "judging",
    "label_answers": "judging",
    "majority_vote": "voting",
    "new_verifier": "verifier",
    "pass_at_k": "voting",
    "PreferenceRows": "preference_datasets",
    "read_conversations": "conversations",
    "read_preferences": "preference_datasets",
    "sample_answers": "sampling",
    "SFTSettings": "sft",
    "split_problems": "judging",
    "train_dpo": "dpo",
    "train_sft": "sft",
    "train_verifier": "verifier",
    "Verifier": "verifier",
    "VerifierScores": "verifier",
    "VerifierSettings": "verifier",
    "weighted_vote": "voting",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
