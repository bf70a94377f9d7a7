"""Encoding: masks from lengths with tokenizers of other families, where the loss is, what is left out, batches."""

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from modernllm.core.config import InputError
from modernllm.data.encoding import (
    IGNORE,
    EncodedRows,
    RowBatches,
    collate,
    encode_causal,
    encode_chat,
    encode_classification,
    encode_seq2seq,
    pad_id,
    text_frame,
)
from modernllm.data.length_groups import LengthGroupedBatches
from modernllm.data.sources import SplitOrigin
from modernllm.data.tokenizers import train_bpe

HERE = SplitOrigin("made", "train", fingerprint="0")
GENERATION = (
    "{% for m in messages %}<s>{{ m['role'] }} {% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<e>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<e>{% endif %}{% endfor %}"
)


def words(frame: str | None = None, **special) -> PreTrainedTokenizerFast:
    "A tokenizer of words: `!` is id 0, as in GPT-2; <s> begins and <e> ends."
    vocabulary = {word: i for i, word in enumerate("! a b c d user assistant <s> <e> <pad>".split())}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="!"))
    made.add_special_tokens(["<s>", "<e>", "<pad>"])
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if frame:
        made.post_processor = TemplateProcessing(single=frame, special_tokens=[("<s>", 7), ("<e>", 8)])
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


GPT2 = words(eos_token="<e>")  # no padding token
SMOLLM = words(eos_token="<e>", pad_token="<e>")  # pads with its end token
T5 = words("$A <e>", eos_token="<e>", pad_token="<pad>")
BART = words("<s> $A <e>", eos_token="<e>", pad_token="<pad>", bos_token="<s>")
OPT = words("<e> $A", eos_token="<e>", bos_token="<e>", pad_token="<pad>")  # one token begins and ends


@pytest.mark.parametrize(("tokenizer", "pad", "frame"), [
    (GPT2, 8, ([], [])), (SMOLLM, 8, ([], [])), (T5, 9, ([], [8])), (BART, 9, ([7], [8])), (OPT, 9, ([8], [])),
])  # fmt: skip
def test_every_format_ends_with_the_end_token_and_is_padded_by_length(tokenizer, pad, frame):
    assert pad_id(tokenizer) == pad and text_frame(tokenizer) == frame
    texts, answers = ["! a !", "b"], ["! c", "d d d !"]
    start, end = frame
    pairs = encode_seq2seq(tokenizer, HERE, texts, answers, max_source_length=9, max_target_length=9)
    assert pairs.inputs[0] == [*start, 0, 1, 0, 8] and pairs.labels[1] == [*start, 4, 4, 4, 0, 8]
    batch = pairs.batch([0, 1])
    n = len(start)
    assert batch["attention_mask"].tolist() == [[1] * (4 + n), [1] * (2 + n) + [0, 0]]
    assert batch["input_ids"][1].tolist() == [*start, 2, 8, pad, pad]
    assert batch["labels"][0].tolist() == [*start, 0, 3, 8, -100, -100]
    told = encode_causal(tokenizer, HERE, texts, answers, max_length=12).batch([0, 1])
    assert told["input_ids"][0, : n + 5].tolist() == [*start, 0, 1, 0, 0, 3]
    assert (told["targets"][told["attention_mask"] == 0] == IGNORE).all()
    assert told["targets"][0].tolist() == [IGNORE] * (n + 2) + [0, 3, 8]
    assert told["targets"][1].tolist() == [IGNORE] * n + [4, 4, 4, 0, 8]
    judged = encode_classification(tokenizer, HERE, texts, [1, 0], max_length=2 + n + len(end)).batch([0, 1])
    assert judged["labels"].tolist() == [1, 0] and judged["input_ids"][0].tolist() == [*start, 0, 1, *end]


def test_a_loss_on_padding_would_change_the_mean():
    "The end token is learnt although it pads; the mean is that of each row alone."
    from transformers import LlamaConfig, LlamaForCausalLM

    from modernllm.training.objectives import LanguageModelling

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                         num_attention_heads=2)).eval()
    rows = encode_causal(SMOLLM, HERE, ["a b", "! ! !"], ["c", "d d !"], max_length=12)
    losses = [LanguageModelling().loss(model, rows.batch(chosen)) for chosen in ([0, 1], [0], [1])]
    assert losses[0].weight == losses[1].weight + losses[2].weight == 6 == rows.n_targets
    assert losses[0].total.item() == pytest.approx((losses[1].total + losses[2].total).item(), rel=1e-5)


def test_only_the_assistant_is_learnt():
    tokenizer = words(eos_token="<e>", pad_token="<e>", chat_template=GENERATION)
    chat = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"},
            {"role": "assistant", "content": "!"}]
    rows = encode_chat(tokenizer, HERE, [chat, chat[:1], chat[:2]], max_length=9)
    assert len(rows) == 1 and "2 of 3 examples too long or empty, left out" in rows.note  # one is long, one has no answer
    assert [t for t in rows.labels[0] if t != IGNORE] == [3, 8] and len(rows.inputs[0]) == len(rows.labels[0])


def test_the_loss_of_our_chats_is_on_every_answer_and_its_end(cache):
    tokenizer = train_bpe(["Is 7 odd? Yes."] * 5, 270)
    chat = [{"role": "user", "content": "Is 7 odd?"}, {"role": "assistant", "content": "Yes."}]
    rows = encode_chat(tokenizer, HERE, [chat], max_length=64)
    assert tokenizer.decode([t for t in rows.labels[0] if t != IGNORE]) == "Yes.<|end|>"


def test_a_tokenizer_without_a_chat_template_is_refused():
    with pytest.raises(InputError, match="its chat template is missing") as caught:
        encode_chat(words(eos_token="<e>"), HERE, [[{"role": "user", "content": "a"}]], max_length=9)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("call", "said"), [
    (lambda: encode_causal(GPT2, HERE, ["a"], [""], max_length=9), "none of 1 examples has at most 9 tokens and an answer"),
    (lambda: encode_causal(words(), HERE, ["a"], ["b"], max_length=9), "no end token"),
    (lambda: encode_classification(GPT2, HERE, ["a"], [-1], max_length=9), "label is -1; allowed: integers from 0 on"),
    (lambda: encode_seq2seq(T5, HERE, ["a b c"], ["d"], max_source_length=3, max_target_length=9), "at most 3 and 9 tokens"),
    (lambda: EncodedRows("x", "train", [[5, 1]], []), "1 inputs and 0 labels"),
    (lambda: RowBatches(EncodedRows("x", "train", [[1]], [[1]]), batch_size=0), "batch_size is 0"),
    (lambda: LengthGroupedBatches(EncodedRows("x", "train", [[1]], [[1]]), batch_size=1, pool=0), "pool is 0"),
])  # fmt: skip
def test_what_cannot_be_encoded_is_told_in_one_line(call, said):
    with pytest.raises(InputError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_is_cut_or_left_out_is_counted_and_changes_the_fingerprint():
    texts, labels = ["a b c d", "a", ""], [0, 1, 1]
    whole, cut = (encode_classification(GPT2, HERE, texts, labels, max_length=n) for n in (9, 2))
    assert cut.inputs == [[1, 2], [1]] and cut.labels == [0, 1] and whole.fingerprint != cut.fingerprint
    assert cut.note == "train: 1 of 3 texts cut to 2 tokens; train: 1 of 3 examples too long or empty, left out"
    prefixed = encode_causal(GPT2, HERE, ["a", "b c"], ["d", "d"], max_length=4, prefix="<s>")
    assert prefixed.inputs == [[7, 1, 4]] and "1 of 2 examples" in prefixed.note  # the prefix is one special token
    assert prefixed.provenance()["name"] == "made" and set(prefixed.provenance()) == set(HERE.provenance())


def test_a_sample_depends_on_its_key_alone():
    rows = EncodedRows("x", "train", [[k] for k in range(40)], list(range(40)), fingerprint="0")
    one, again, other = rows.sample(9, 1), rows.sample(9, 1), rows.sample(9, 2)
    assert one == again and one.labels != other.labels and one.labels == [row[0] for row in one.inputs]
    assert rows.sample(None) is rows is rows.sample(40) and "9 of 40" in one.note and one.fingerprint != rows.fingerprint


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), batch_size=st.integers(1, 7), seed=st.integers(0, 3))
def test_every_row_comes_once_an_epoch(n, batch_size, seed):
    rows = EncodedRows("x", "train", [[3 + k, 1] for k in range(n)], [[13 + k, 1] for k in range(n)])
    batches = RowBatches(rows, batch_size=batch_size, seed=seed)
    seen = [row[0] for i in range(n) for row in batches[i]["input_ids"].tolist()]  # n batches are batch_size epochs
    assert sorted(seen) == sorted([*range(3, 3 + n)] * batch_size)
    assert all((batches[i]["labels"][:, 0] == batches[i]["input_ids"][:, 0] + 10).all() for i in range(n))
    ordered = RowBatches(rows, batch_size=batch_size, shuffle=False)
    assert [row[0] for i in range(len(ordered)) for row in ordered[i]["input_ids"].tolist()] == [*range(3, 3 + n)]
    with pytest.raises(IndexError):
        batches[-1]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40), batch_size=st.integers(1, 7), seed=st.integers(0, 3),
       pool=st.integers(1, 4), ask=st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_batches_of_similar_length(lengths, batch_size, seed, pool, ask):
    rows = EncodedRows("x", "train", [[1] * n for n in lengths], [[1] * n for n in lengths])
    batches = LengthGroupedBatches(rows, batch_size=batch_size, seed=seed, pool=pool)
    epochs = [[batches.chosen(i + epoch * len(batches)) for i in range(len(batches))] for epoch in range(2)]
    for epoch in epochs:
        assert sorted(k for batch in epoch for k in batch) == list(range(len(lengths)))  # each row once
    whole = LengthGroupedBatches(rows, batch_size=batch_size, seed=seed, pool=len(lengths))
    spans = sorted((min(sizes), max(sizes)) for i in range(len(whole)) if (sizes := [lengths[k] for k in whole.chosen(i)]))
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:]))  # with one pool, lengths do not overlap
    fresh = LengthGroupedBatches(rows, batch_size=batch_size, seed=seed, pool=pool)
    assert [fresh.chosen(i) for i in ask] == [batches.chosen(i) for i in ask]  # whatever was asked before
    with pytest.raises(IndexError):
        batches[-1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(0, 3))
def test_a_mask_has_as_many_ones_as_the_row_has_tokens(rows, pad):
    batch = collate(rows, rows, pad)
    assert batch["attention_mask"].sum(1).tolist() == [len(row) for row in rows]
    assert [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"])] == rows
    assert (batch["labels"] == IGNORE).equal(batch["attention_mask"] == 0)
