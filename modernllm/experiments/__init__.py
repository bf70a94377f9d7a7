"""Training as studies do it: pre-training on text, fine-tuning on pairs. Public names are loaded when they are first used."""

from modernllm import lazily

_EXPORTS = {
    "corpus_table": "run_io",
    "evaluate_perplexity": "pretraining",
    "keep_model": "run_io",
    "new_decoder": "pretraining",
    "pretrain": "pretraining",
    "read_corpus": "run_io",
    "read_tasks": "run_io",
    "read_vocabulary": "run_io",
    "stand_in": "run_io",
    "finetune": "finetuning",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
