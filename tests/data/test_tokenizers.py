"""Nothing is lost, digits stand alone, and the same text gives the same tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.data.tokenizers import SPECIAL_TOKENS, encode_documents, tokenizer_hash, train_bpe

TEXTS = [f"The number {n} is followed by {n + 1} , and <unk> by another word . \n" * 3 for n in range(50)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 300)


@given(text=st.text())
def test_round_trip_on_arbitrary_text(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    plain = encode_documents(tokenizer, [text])[0]
    assert tokenizer.decode(plain) == text and all(i >= len(SPECIAL_TOKENS) for i in plain)


@given(number=st.integers(0, 10**12), before=st.sampled_from(["", " ", "x", "-", "\n"]))
def test_digits_one_by_one(tokenizer, number, before):
    tokens = tokenizer.tokenize(f"{before}{number}")
    assert "".join(token for token in tokens if token.isdigit()) == str(number)
    assert all(len(token) == 1 for token in tokens if any(c.isdigit() for c in token))


@given(pieces=st.lists(st.sampled_from(SPECIAL_TOKENS), min_size=1, max_size=5))
def test_reserved_tokens_in_prompts_and_in_documents(tokenizer, pieces):
    text = " and ".join(pieces)
    assert sum(i < len(SPECIAL_TOKENS) for i in tokenizer(text)["input_ids"]) == len(pieces)
    assert not any(i < len(SPECIAL_TOKENS) for i in encode_documents(tokenizer, [text])[0])


def test_reserved_ids(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 1)
    assert len(tokenizer) == 300 and len(tokenizer.tokenize(" <unk>")) <= 2
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|user|>Hello<|end|><|assistant|>Yes<|end|>"


def test_training_is_deterministic_and_cached(cache):
    first = tokenizer_hash(train_bpe(TEXTS, 300))
    (file,) = (cache / "tokenizers").iterdir()
    before = file.stat().st_mtime_ns
    assert tokenizer_hash(train_bpe(iter(TEXTS), 300)) == first and file.stat().st_mtime_ns == before
    file.unlink()
    assert tokenizer_hash(train_bpe(TEXTS, 300)) == first
    assert tokenizer_hash(train_bpe(TEXTS, 301)) != first
    assert len(list((cache / "tokenizers").iterdir())) == 2


def test_hash_survives_use_and_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=4)
    assert tokenizer_hash(tokenizer) == before
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_hash(again) == before and again.chat_template == tokenizer.chat_template
    assert again.convert_tokens_to_ids("<|tool_call|>") == tokenizer.convert_tokens_to_ids("<|tool_call|>")


@pytest.mark.parametrize("size", [100, 263, 3000.0, "4096", True])
def test_vocabulary_size_is_checked(size):
    with pytest.raises(InputError, match="vocab_size is .*allowed: 264 or more"):
        train_bpe(TEXTS, size)


def test_vocabulary_larger_than_the_text_supports(cache):
    with pytest.raises(InputError, match=r"vocab_size is 50000; this text supports \d+ tokens at most"):
        train_bpe(TEXTS, 50_000)
    assert not cache.exists()


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_empty_corpus(texts):
    with pytest.raises(InputError, match="the corpus is empty"):
        train_bpe(texts, 300)
