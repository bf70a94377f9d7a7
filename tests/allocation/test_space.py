"""Every budget is met within half a per cent, or refused in one line that says why."""

import re

import pytest
import torch
from hypothesis import assume, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from modernllm.allocation.space import CLOSE, FAR, Allocation, check_vocabulary, head_dimension, parse_count
from modernllm.core.config import InputError
from modernllm.models.budget import total_parameters
from modernllm.models.transformer import ModernDecoderLM

TEN = {"total_params": "10M", "embedding_ratio": 0.35, "glu_expansion": 2.66, "vocab_size": "16k"}
logarithmic = lambda low, high: st.floats(0, 1).map(lambda x: low * (high / low) ** x)
BUDGETS = st.fixed_dictionaries({
    "total_params": logarithmic(2e4, 5e7).map(round), "embedding_ratio": st.floats(0.01, 0.99),
    "glu_expansion": logarithmic(0.3, 12.0), "vocab_size": logarithmic(264, 64_000).map(round), "tied_lm_head": st.booleans(),
})


@settings(max_examples=200, deadline=None)
@for_all(BUDGETS)
def test_a_budget_is_met_or_refused_with_the_reason(budget):
    asked = Allocation(**budget)
    try:
        found = asked.realised()
    except InputError as error:
        assert re.match(r"(total_params|embedding_ratio|glu_expansion): .*; allowed: ", str(error)) and "\n" not in str(error)
        return
    c = found.config
    assert abs(found.total_params / asked.total_params - 1) <= CLOSE
    matrices = c.vocab_size * c.hidden_size * (1 if asked.tied_lm_head else 2)
    assert found.embedding_ratio == matrices / found.total_params
    assert found.embedding_ratio == pytest.approx(asked.embedding_ratio, rel=FAR + 2 * CLOSE)
    assert found.glu_expansion == pytest.approx(asked.glu_expansion, rel=FAR + 1e-9)
    step = 8 if c.hidden_size >= 160 else 4
    assert c.hidden_size % step == c.intermediate_size % step == c.head_dim % step == 0 and 16 <= c.head_dim <= 64
    assert found.layers * sum(found.block.values()) + matrices + c.hidden_size == found.total_params


@settings(max_examples=100, deadline=None)
@for_all(logarithmic(40, 400), logarithmic(40, 300), st.floats(0.1, 0.3), st.floats(2, 3), logarithmic(1, 6), st.booleans())
def test_a_larger_share_is_wider_and_less_deep(width, rows, share, times, expansion, tied):
    vocabulary = round(rows * width)
    budget = {"total_params": round(width * vocabulary * (2 - tied) / share), "vocab_size": vocabulary, "tied_lm_head": tied}
    try:
        a, b = (Allocation(**budget, embedding_ratio=ratio, glu_expansion=expansion).solve() for ratio in (share, share * times))
    except InputError:
        assume(False)
    assert b.hidden_size > a.hidden_size and b.num_hidden_layers <= a.num_hidden_layers


@pytest.mark.parametrize("total, vocabulary, widths", [("10M", "16k", (156, 216, 280)), ("2.5M", "8k", (80, 108, 140))])
def test_known_shapes(total, vocabulary, widths):
    asked = TEN | {"total_params": total, "vocab_size": vocabulary}
    configs = [Allocation(**asked | {"embedding_ratio": share}).solve() for share in (0.25, 0.35, 0.45)]
    assert [c.hidden_size for c in configs] == list(widths)
    assert all(abs(c.num_hidden_layers - layers) <= 2 for c, layers in zip(configs, (26, 12, 6)))


def test_no_shape_is_nearer():
    asked = Allocation(**TEN)
    found = asked.realised()
    error = lambda width, inner: abs(width / 218.75 - 1) + abs(inner / (2.66 * width) - 1)
    others = [
        error(width, inner)
        for width in range(16, 500, 4) if head_dimension(width)
        for inner in range(8, 2000, 4 if width < 160 else 8)
        for layers in range(1, 60)
        if abs((16_000 + 1) * width + layers * (4 * width**2 + 3 * width * inner + 2 * width) - 10e6) <= CLOSE * 10e6
    ]
    assert error(found.config.hidden_size, found.config.intermediate_size) == min(others)


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_that_is_built_has_these_parameters(tied):
    found = Allocation(**TEN, tied_lm_head=tied).realised(context=64)
    with torch.device("meta"):
        model = ModernDecoderLM(found.config)
    assert model.num_parameters() == found.total_params == total_parameters(found.config).total
    assert found.config.max_position_embeddings == 64 and found.config.tie_word_embeddings is tied
    assert not found.config.attention_sinks and found.config.num_key_value_heads == found.config.num_attention_heads


@pytest.mark.parametrize("more, words", [
    ({"embedding_ratio": 0.01}, ["total_params: 0.01 of 10,000,000", "a width of 6.25", "smallest is 16", "0.0228 and more"]),
    ({"total_params": "10k"}, ["total_params: 0.35 of 10,000 ", "allowed: a total of 650,160 and more"]),
    ({"embedding_ratio": 0.9}, ["embedding_ratio: 0.9 leaves 1,000,000 of 10,000,000", "one layer of width", "and less"]),
    ({"glu_expansion": 500.0}, ["embedding_ratio: 0.35 leaves 6,500,000", "expansion of 500"]),
    ({"glu_expansion": 0.01}, ["glu_expansion: 0.01 of a width of", "multiple of 8"]),
    ({"embedding_ratio": 0.027}, ["embedding_ratio: 0.027 of 10,000,000", "layers of width", "at most 256"]),
    ({"total_params": 0}, ["total_params is 0"]),
    ({"total_params": "ten"}, ["total_params is 'ten'", "10M, 2.5M or 16k"]),
    ({"embedding_ratio": 1.5}, ["embedding_ratio is 1.5"]),
    ({"embedding_ratio": float("nan")}, ["embedding_ratio"]),
    ({"glu_expansion": 0.0}, ["glu_expansion is 0.0"]),
    ({"vocab_size": 100}, ["vocab_size is 100", "264"]),
    ({"total_params": "50k", "vocab_size": 512}, ["total_params: no shape", "50,000 parameters within 0.5%", "the nearest"]),
    ({"head_ratio": 0.1}, ["head_ratio is 0.1", "tied head has no parameters of its own"]),
    ({"head_ratio": 0.1, "tied_lm_head": False}, ["head_ratio is 0.1", "allowed: 0.175"]),
    ({"embeding_ratio": 0.3}, ["embeding_ratio", "did you mean 'embedding_ratio'"]),
])
def test_what_cannot_be_met(more, words):
    with pytest.raises(InputError) as caught:
        Allocation(**TEN | more).solve()
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line


def test_what_is_allowed_is_met():
    "Numbers that an error line proposes."
    share = Allocation(**TEN | {"embedding_ratio": 0.9})
    with pytest.raises(InputError) as caught:
        share.solve()
    most = float(re.search(r"about ([\d.]+) and less", str(caught.value))[1])
    assert Allocation(**TEN | {"embedding_ratio": most}).solve().num_hidden_layers == 1


@pytest.mark.parametrize("given, count", [
    ("10M", 10_000_000), ("2.5M", 2_500_000), (" 16K ", 16_000), ("1_000", 1000), ("1.5b", 1_500_000_000), ("1e6", 1_000_000),
    (7, 7), (2e3, 2000),
])
def test_counts(given, count):
    assert parse_count(given) == count and type(parse_count(given)) is int


@pytest.mark.parametrize("given", ["", "M", "10 MB", "1.5", "inf", "nan", "1.0005k", True, None, [1], 1.5, "10MM", "1e400"])
def test_what_is_no_count(given):
    with pytest.raises(InputError, match="^total is .*; allowed: a whole number, such as 10M, 2.5M or 16k$"):
        parse_count(given, "total")


def test_a_text_supports_so_many_tokens(tmp_path, shared_cache):
    text = tmp_path / "own.txt"
    text.write_text("The cat sat on the mat, and the dog sat on the cat.\n" * 40)
    assert check_vocabulary(270, str(text)) == 270
    with pytest.raises(InputError, match=r"^vocab_size is 16000; this text supports \d{3} tokens at most$") as caught:
        check_vocabulary(16_000, str(text))
    most = int(re.search(r"supports (\d+)", str(caught.value))[1])
    assert check_vocabulary(most, str(text)) == most
