"""Data sets: where they come from, tokenizers, packed corpora. Public names are loaded when they are first used."""

from importlib import import_module

# public name: module of this package that defines it
_EXPORTS = {
    "CATALOGUE": "sources",
    "NotAvailable": "sources",
    "Loaded": "sources",
    "load": "sources",
    "names": "sources",
    "tokenizer_hash": "tokenizers",
    "train_bpe": "tokenizers",
    "Corpus": "corpus",
    "LMBatches": "corpus",
    "TokenSplit": "corpus",
    "load_corpus": "corpus",
    "token_split": "corpus",
    "write_manifest": "manifest",
}


def __getattr__(name):
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__():
    return [*globals(), *_EXPORTS]
