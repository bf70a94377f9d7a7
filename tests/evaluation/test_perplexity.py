"""Perplexity cards: every token once, hand-computed values, windows, batch sizes, refusals."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modernllm.core.config import InputError
from modernllm.evaluation.perplexity import PerplexityCard, perplexity_card, prefix_loss, token_nats, window_spans
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM

END, A, B, NEWLINE = range(4)
TABLE = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.5, 0.3], [0.25, 0.25, 0.25, 0.25], [0.3, 0.3, 0.2, 0.2]])


class Bigram(nn.Module):
    "p(next | last) is a row of the table."

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(TABLE.log())

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.table[input_ids])


def split_of(tokens, **counts):
    "What a corpus would hand over."
    values = {"n_words": 2, "n_line_ends": 1, "n_bytes": 5, "n_documents": 1} | counts
    provenance = {"name": "toy", "split": "test", "source": "generated", "generated": True}
    tokens = np.array(tokens, dtype=np.uint16)
    starts = np.flatnonzero(tokens == END)
    return SimpleNamespace(tokens=tokens, document_starts=starts, end_id=END, provenance=lambda: provenance, **values)


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    config = ModernLLMConfig.checked(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
        residual_dropout=0.5, final_logit_softcapping=5.0, initializer_range=0.5,
    )
    return ModernDecoderLM(config)


@given(st.integers(1, 200), st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_every_token_is_scored_once_inside_its_window(n, context, data):
    stride = data.draw(st.integers(1, context))
    spans = window_spans(n, context, stride)
    assert [p for _, fresh, end in spans for p in range(fresh, end)] == list(range(n))
    for start, fresh, end in spans:
        assert start <= fresh < end <= start + context
        assert start == 0 or fresh - start >= context - stride


def test_card_by_hand():
    # " A B \n" twice in two documents: END A B NEWLINE END A A
    card = perplexity_card(Bigram(), split_of([END, A, B, NEWLINE, END, A, A], n_words=4, n_documents=2), context=3)
    nats = -math.log(0.6 * 0.5 * 0.25 * 0.6 * 0.1)
    assert card.nats == pytest.approx(nats, rel=1e-6)
    assert card.tokens == 5  # <|endoftext|> is context, not text
    assert card.token_ppl == pytest.approx(math.exp(nats / 5))
    assert card.word_ppl_raw == pytest.approx(math.exp(nats / 4))
    assert card.word_ppl_closed == pytest.approx(math.exp(nats / (4 + 1)))
    assert card.bits_per_byte == pytest.approx(nats / math.log(2) / 5)
    assert "generated" in card.source


def test_end_tokens_can_be_counted():
    split = split_of([END, A, B, NEWLINE, END, A, A])
    card = perplexity_card(Bigram(), split, context=3, count_end=True)
    assert card.tokens == 7 and card.count_end
    assert card.nats == pytest.approx(-math.log(0.1 * 0.6 * 0.5 * 0.25 * 0.3 * 0.6 * 0.1), rel=1e-6)
    assert "counted" in card.conventions()


def test_uniform_model_has_the_vocabulary_as_perplexity():
    model = Bigram()
    nn.init.zeros_(model.table)
    assert perplexity_card(model, split_of([END, A, B, A, NEWLINE]), context=2).token_ppl == pytest.approx(4)


def test_published_pair_of_gpt2():
    card = PerplexityCard(nats=math.log(37.370) * 1000, tokens=1, words=1000, line_ends=0, bytes=5347, documents=1,
                          context=1024, stride=1024, count_end=False, precision="fp32", source="")
    assert card.bits_per_byte == pytest.approx(0.9769, abs=1e-4)


@pytest.mark.parametrize("stride", [8, 3, 1])
def test_any_batch_size_gives_the_same_nats(decoder, stride):
    tokens = np.random.default_rng(0).integers(0, 50, 61)
    one, *others = [token_nats(decoder, tokens, first=0, context=8, stride=stride, batch_size=b) for b in (1, 2, 5, 64)]
    for other in others:
        np.testing.assert_allclose(other, one, rtol=2e-5, atol=1e-5)


def test_stride_one_equals_one_window_a_token(decoder):
    tokens = np.random.default_rng(1).integers(0, 50, 20)
    inputs = [0, *tokens]
    expected = []
    decoder.eval()
    with torch.inference_mode():
        for i, token in enumerate(tokens):
            seen = torch.tensor([inputs[max(0, i - 7) : i + 1]])
            expected.append(-decoder(seen).logits[0, -1].log_softmax(-1)[token].item())
    np.testing.assert_allclose(token_nats(decoder, tokens, first=0, context=8, stride=1), expected, rtol=1e-4, atol=1e-5)


def test_own_and_general_path_agree(decoder):
    # The general path sees a model without a config and takes its logits.
    class Stranger(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = decoder

        def forward(self, input_ids):
            return self.inner(input_ids=input_ids)

    tokens = np.random.default_rng(2).integers(0, 50, 40)
    ours, theirs = (token_nats(m, tokens, first=0, context=16, stride=4) for m in (decoder, Stranger()))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_training_mode_is_restored_and_dropout_is_off(decoder):
    tokens = np.arange(30)
    decoder.train()
    first, second = (token_nats(decoder, tokens, first=0, context=16) for _ in range(2))
    assert decoder.training and np.array_equal(first, second)


def test_prefix_loss_is_the_mean_over_the_prefix():
    split = split_of([END, A, B, NEWLINE, END, A, A])
    assert prefix_loss(split, context=8, max_tokens=3)(Bigram())["loss"] == pytest.approx(-math.log(0.6 * 0.5) / 2)


def test_card_goes_into_a_record():
    metrics, texts = {}, {}
    run = SimpleNamespace(metric=lambda name, value, **k: metrics.update({name: {"value": value} | k}),
                          text=lambda name, lines: texts.update({name: lines}))
    perplexity_card(Bigram(), split_of([END, A, B, NEWLINE]), context=8).record_into(run, "test")
    assert metrics["test_word_ppl_closed"]["n_items"] == 3 and metrics["test_nats"]["unit"] == "nats"
    assert metrics["test_bits_per_byte"]["n_items"] == 5 and metrics["test_bits_per_byte"]["better"] == "lower"
    assert "context 8, stride 8" in texts["test_card"][0]


@pytest.mark.parametrize(
    "change, named",
    [
        ({"context": 0}, "context: given 0"),
        ({"context": 17}, "context: given 17, allowed 1 to 16"),
        ({"stride": 9}, "stride: given 9, allowed 1 to context = 8"),
        ({"stride": 0}, "stride: given 0"),
        ({"batch_size": 0}, "batch_size: given 0"),
        ({"precision": "fp8"}, "precision: given 'fp8'"),
        ({"tokens": []}, "at least one token"),
        ({"tokens": [3, 50]}, "id 50 is outside the model's vocabulary, allowed 0 to 49"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(decoder, change, named):
    arguments = {"tokens": [1, 2, 3], "first": 0, "context": 8} | change
    with pytest.raises(InputError, match="^[^\n]*" + named.replace("(", r"\(") + "[^\n]*$"):
        token_nats(decoder, np.array(arguments.pop("tokens"), dtype=np.int64), **arguments)
