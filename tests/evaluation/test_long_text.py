"Long texts: against the definition, through any pieces, at every depth, and continued."

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.evaluation.long_text import LongReading, continue_long, openings, read_long, with_cache
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM

T, V = 6, 30


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ModernDecoderLM(ModernLLMConfig.checked(
        vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=T, attention_sinks=True, final_logit_softcapping=9.0, initializer_range=0.5,
    )).train()  # fmt: skip


@pytest.fixture(scope="module")
def split():
    tokens = np.random.default_rng(1).integers(1, V, 120)
    tokens[::25] = 0
    starts = np.arange(0, 120, 25)
    return SimpleNamespace(tokens=tokens.astype(np.uint16), document_starts=starts, end_id=0, name="toy", split="test")


def test_other_weights_are_not_touched(model):
    copy = with_cache(model, 40, window=5, sinks=1)
    assert not copy.training and model.training and model.config.cache_window is None
    assert (copy.config.max_position_embeddings, copy.config.cache_window, copy.config.cache_sinks) == (40, 5, 1)
    for a, b in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([{}, {"window": T}, {"window": 4, "sinks": 2}]), *[st.integers(1, n) for n in (4, 5, 9)], st.data())
def test_pieces_and_batches_change_nothing(model, split, kept, depth, blocks, batch_size, data):
    piece = data.draw(st.integers(1, depth * T))
    reader = with_cache(model, depth * T, **kept)
    shape = {"context": T, "depth": depth, "blocks": blocks}
    one = read_long(reader, split, **shape, batch_size=1, piece=depth * T)
    other = read_long(reader, split, **shape, batch_size=batch_size, piece=piece)
    assert np.allclose(one.nats, other.nats, atol=1e-3) and one.nats.shape == (blocks + depth - 1, depth * T)
    if not kept:
        ids = torch.from_numpy(np.r_[0, split.tokens[: depth * T - 1].astype(int)])[None]
        with torch.no_grad():
            nats = -reader(ids).logits[0].log_softmax(-1)[range(depth * T), split.tokens[: depth * T].astype(int)]
        assert np.allclose(one.nats[0], nats, atol=1e-3)


def test_every_depth_reads_the_same_tokens():
    depth, blocks = 3, 4
    texts = blocks + depth - 1
    place = np.arange(texts)[:, None] * T + np.arange(depth * T)  # position in the stream in the place of nats
    reading = LongReading(place.astype(float), place % 5 > 0, T)
    block = np.arange((depth - 1) * T, (depth - 1 + blocks) * T)
    expected = block[block % 5 > 0]
    for multiple in range(1, depth + 1):
        mean, count = reading.at(multiple)
        assert mean == pytest.approx(expected.mean()) and count == len(expected)


def test_continuations_have_their_length_and_seed(model):
    prompts = torch.randint(1, V, (3, 4), generator=torch.Generator().manual_seed(0))
    reader = with_cache(model, 44, window=4, sinks=2)
    first = continue_long(reader, prompts, 40, end_id=0, seed=1)
    assert first.shape == (3, 40) and (first != 0).all()
    assert torch.equal(first, continue_long(reader, prompts, 40, end_id=0, seed=1))
    assert not torch.equal(first, continue_long(reader, prompts, 40, end_id=0, seed=2))


@pytest.mark.parametrize("call, told", [
    (lambda model, split: read_long(model, split, context=T, depth=4, blocks=99), "blocks: 99 .* 630 tokens, toy test has 120"),
    (lambda model, split: read_long(model, split, context=T, depth=2, blocks=2).at(3), "multiple: given 3, allowed 1 to 2"),
    (lambda model, split: openings(split, 25, 5), "count: given 5, allowed 1 to 4, the documents of 25 tokens in toy test"),
    (lambda model, split: with_cache(model, 40, window=2, sinks=3), "cache_window: 2"),
])  # fmt: skip
def test_bad_input(model, split, call, told):
    with pytest.raises(InputError, match=told):
        call(model, split)
