"""Training as studies do it: pre-training on text, fine-tuning on pairs. Public names are loaded when they are first used."""

from modernllm import lazily

_EXPORTS = {
    "corpus_table": "pretraining",
    "evaluate_perplexity": "pretraining",
    "keep_model": "pretraining",
    "new_decoder": "pretraining",
    "pretrain": "pretraining",
    "read_corpus": "pretraining",
    "finetune": "finetuning",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
