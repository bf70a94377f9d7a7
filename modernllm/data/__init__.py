"""Data sets: where they come from, tokenizers, packed corpora. Public names are loaded when they are first used."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {
    "CATALOGUE": "catalogue",
    "NotAvailable": "sources",
    "Loaded": "sources",
    "load": "sources",
    "names": "catalogue",
    "resolve": "catalogue",
    "tokenizer_hash": "tokenizers",
    "with_tokens": "tokenizers",
    "train_bpe": "tokenizers",
    "Corpus": "corpus",
    "LMBatches": "corpus",
    "TokenSplit": "corpus",
    "load_corpus": "corpus",
    "EncodedRows": "encoding",
    "RowBatches": "encoding",
    "LengthGroupedBatches": "length_groups",
    "encode_causal": "encoding",
    "encode_chat": "encoding",
    "encode_classification": "encoding",
    "encode_seq2seq": "encoding",
    "pack_rows": "packing",
    "token_split": "corpus",
    "write_manifest": "manifest",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
