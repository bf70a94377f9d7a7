"The rolling cache against its definition, in pieces, in batches, and through generate."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.models.cache import RollingCache
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM

OPTIONS = {"plain": {}, "grouped": {"num_key_value_heads": 1, "qk_norm": True},
           "sinks and gate": {"attention_sinks": True, "attention_gate": True}}


def build(layers=2, **options):
    torch.manual_seed(0)
    fields = dict(vocab_size=50, hidden_size=32, num_attention_heads=2, max_position_embeddings=16, initializer_range=0.3)
    return ModernDecoderLM(ModernLLMConfig(**fields, num_hidden_layers=layers, **options)).eval()


def tokens(batch, time):
    return torch.randint(1, 50, (batch, time), generator=torch.Generator().manual_seed(time))


@pytest.fixture(scope="module", params=OPTIONS)
def model(request):
    return build(**OPTIONS[request.param])


@settings(max_examples=10, deadline=None)
@given(window=st.integers(2, 9), sinks=st.integers(0, 9), time=st.integers(1, 30))
@torch.no_grad()
def test_one_layer_equals_the_text_cut_down(window, sinks, time):
    window, ids, model = max(window, sinks), tokens(1, time), build(1, attention_sinks=True)
    rolled = model(ids, past_key_values=RollingCache(1, window, sinks)).logits[0]
    for t in range(time):
        late = max(sinks, t + 1 - window)
        cut = torch.cat((ids[:, : min(sinks, t + 1)], ids[:, late : t + 1]), 1)
        torch.testing.assert_close(model(cut).logits[0, -1], rolled[t], atol=1e-4, rtol=0)


@settings(max_examples=10, deadline=None)
@given(window=st.integers(4, 9), sinks=st.integers(0, 4), padding=st.integers(0, 12), data=st.data())
@torch.no_grad()
def test_pieces_and_padding_change_nothing(model, window, sinks, padding, data):
    ids, time = tokens(1, 25), 25 + padding
    whole = model(ids, past_key_values=RollingCache(2, window, sinks)).logits
    cuts = sorted(data.draw(st.sets(st.integers(1, time - 1), max_size=4)))
    padded = torch.cat((tokens(1, padding), ids), 1) if padding else ids
    batch, mask = torch.cat((padded, tokens(1, time + 50)[:, :time])), torch.ones(2, time, dtype=torch.long)
    mask[0, :padding] = 0
    cache, pieces = RollingCache(2, window, sinks), []
    for start, end in zip([0, *cuts], [*cuts, time]):
        pieces.append(model(batch[:, start:end], mask[:, :end], past_key_values=cache).logits)
        assert cache.layers[0].keys.shape[2] <= window + sinks - 1
    torch.testing.assert_close(torch.cat(pieces, 1)[:1, padding:], whole, atol=1e-4, rtol=0)
    assert cache.get_seq_length() == time and torch.cat(pieces, 1).isfinite().all()


@torch.no_grad()
def test_until_something_is_forgotten_it_is_any_cache(model):
    ids = tokens(1, 14)
    torch.testing.assert_close(
        model(ids, past_key_values=RollingCache(2, 10, 4)).logits, model(ids).logits, atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_looking_at_attention_changes_nothing(model):
    ids = tokens(2, 30)
    seen = model(ids, past_key_values=RollingCache(2, 6, 2), output_attentions=True)
    torch.testing.assert_close(seen.logits, model(ids, past_key_values=RollingCache(2, 6, 2)).logits, atol=1e-5, rtol=0)
    assert (seen.attentions[1][..., -1, 2:-6] == 0).all()


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}, {"prefill_chunk_size": 7}])
def test_generate_rolls_where_the_configuration_says_so(how):
    model = build(cache_window=12, cache_sinks=4)
    ids, mask = tokens(2, 40), torch.ones(2, 40, dtype=torch.long)
    mask[0, :23] = 0
    fixed = dict(max_new_tokens=30, pad_token_id=0, return_dict_in_generate=True, **{"do_sample": False} | how)
    torch.manual_seed(0)
    out = model.generate(ids, attention_mask=mask, **fixed)
    torch.manual_seed(0)
    given = model.generate(ids, attention_mask=mask, past_key_values=RollingCache(2, 12, 4), **fixed)
    assert out.past_key_values.layers[1].keys.shape[2] == 15 and torch.equal(out.sequences, given.sequences)
    if not how:
        alone = model.generate(ids[:1, 23:], attention_mask=mask[:1, 23:], **fixed)
        assert torch.equal(alone.sequences[0], out.sequences[0, 23:])


def test_beams_follow_their_own_tokens():
    model, ids = build(cache_window=12, cache_sinks=4), tokens(2, 9)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    out = model.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=25, pad_token_id=0, do_sample=False,
                         return_dict_in_generate=True, output_scores=True)
    whole = mask[:, :1].new_ones(2, out.sequences.shape[1])
    whole[:, :9] = mask
    with torch.no_grad():
        logits = model(out.sequences, whole, past_key_values=RollingCache(2, 12, 4)).logits[:, 8:-1]
    score = logits.log_softmax(-1).gather(2, out.sequences[:, 9:, None]).sum((1, 2)) / 25
    torch.testing.assert_close(score, out.sequences_scores, atol=1e-4, rtol=0)


def test_refused():
    for window, sinks in ((3, 4), (1, 0), (4, -1)):
        with pytest.raises(InputError, match="^window: [^\n]*$"):
            RollingCache(2, window, sinks)
    with pytest.raises(InputError, match="cropped"):
        RollingCache(2, 4).crop(-1)
    with pytest.raises(InputError, match="^past_key_values: [^\n]*sliding_window"):
        build(sliding_window=4)(tokens(1, 3), past_key_values=RollingCache(2, 4))


def test_a_cache_can_be_used_again_after_reset(model):
    cache, ids = RollingCache(2, 6, 2), tokens(1, 20)
    with torch.no_grad():
        first = model(ids, past_key_values=cache).logits
        cache.reset()
        assert torch.equal(model(ids, past_key_values=cache).logits, first)
