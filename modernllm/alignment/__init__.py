"""From a base model to checked answers: instructions, preferences, verifier, voting. Names are loaded when first used."""

from modernllm import lazily

_EXPORTS = {
    "JudgedRows": "judging",
    "balance": "judging",
    "judge": "judging",
    "label_answers": "judging",
    "split_problems": "judging",
    "Verifier": "verifier",
    "VerifierScores": "verifier",
    "VerifierSettings": "verifier",
    "evaluate_verifier": "verifier",
    "new_verifier": "verifier",
    "train_verifier": "verifier",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
