"""From a base model to checked answers: fine-tuning on conversations and preferences, a verifier, votes over sampled answers."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {
    "best_of_n": "voting",
    "majority_vote": "voting",
    "pass_at_k": "voting",
    "sample_answers": "sampling",
    "weighted_vote": "voting",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
