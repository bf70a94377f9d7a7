"""Alignment: fine-tuning on conversations (SFT), preferences (DPO), verifiers, answer selection. Names are loaded lazily."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {
    "DPOSettings": "dpo",
    "Drift": "drift",
    "INSTRUCTIONS": "instructions",
    "JudgedRows": "judging",
    "LikelihoodVerifier": "likelihood_verifier",
    "PreferenceRows": "preference_datasets",
    "SFTSettings": "sft",
    "Verifier": "verifier",
    "VerifierScores": "verifier",
    "VerifierSettings": "verifier",
    "arithmetic_preferences": "preference_datasets",
    "balance": "judging",
    "best_of_n": "voting",
    "check_instructions": "instructions",
    "choose_threshold": "voting",
    "evaluate_preferences": "preference_scores",
    "evaluate_sft": "sft",
    "evaluate_verifier": "verifier",
    "final_number": "voting",
    "fit_likelihood_verifier": "likelihood_verifier",
    "gated": "voting",
    "judge": "judging",
    "label_answers": "judging",
    "load_verifier": "likelihood_verifier",
    "majority_vote": "voting",
    "measure_drift": "drift",
    "new_verifier": "verifier",
    "pass_at_k": "voting",
    "read_conversations": "conversations",
    "read_preferences": "preference_datasets",
    "sample_answers": "sampling",
    "split_problems": "judging",
    "train_dpo": "dpo",
    "train_sft": "sft",
    "train_verifier": "verifier",
    "weighted_vote": "voting",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
