"Scores of heads: known heads, bounds, padding, equal models of two kinds, restored settings, and what is refused."

import math
import weakref

import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from modernllm.core.config import InputError
from modernllm.evaluation.head_scores import (
    SCORES, chosen_maps, draw_maps, draw_scores, eager_attention, ordinary_tokens, read_attention, repeated_sequences,
    score_heads, score_queries, token_labels, top_heads,
)  # fmt: skip
from modernllm.models.config import ModernLLMConfig
from modernllm.models.convert import to_llama
from modernllm.models.transformer import ModernDecoderLM

TINY = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.5)
THEIRS = {  # sizes as each architecture names them
    "gpt2": dict(n_embd=16, n_layer=2, n_head=2), "gpt_neox": {}, "opt": dict(ffn_dim=24, word_embed_proj_dim=16),
    "qwen3": dict(num_key_value_heads=1, head_dim=8), "bloom": {},
    "gpt_neo": dict(num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]),
}  # fmt: skip


def theirs(name, **more):
    torch.manual_seed(0)
    shape = {**TINY, "intermediate_size": 24, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **more}
    config = transformers.AutoConfig.for_model(name, **shape)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def close(one, other, atol=1e-5):
    pd.testing.assert_frame_equal(one, other, check_exact=False, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def ours():
    torch.manual_seed(0)
    return ModernDecoderLM(ModernLLMConfig(**TINY, residual_dropout=0.5))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 40, (5, 11), generator=torch.Generator().manual_seed(1))


def induction_llama():
    """Previous-token head (0, 0) and induction head (1, 1), with rotary positions. Channels: 1, 16 for the token, 16 for the
    token before. Positions turn the fast pairs of channels of a head; tokens are compared in the slow ones."""
    config = ModernLLMConfig(vocab_size=16, hidden_size=64, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
                             head_dim=64, rope_parameters={"rope_type": "default", "rope_theta": 1e8})  # fmt: skip
    model, codes, fast, slow = ModernDecoderLM(config), torch.arange(16), torch.arange(8), torch.arange(16, 32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(float("norm" in name))
        model.model.embed_tokens.weight[codes, codes + 1] = 1
        model.model.embed_tokens.weight[:, 0] = 1
        first, second = (layer.self_attn for layer in model.model.layers)
        angle = 1e8 ** (-2 * fast / 64)  # a query one token on has turned by this
        first.q_proj.weight[fast, 0], first.q_proj.weight[fast + 32, 0] = 10 * angle.cos(), -10 * angle.sin()
        first.k_proj.weight[fast, 0] = 10.0
        first.v_proj.weight[codes, codes + 1] = 1
        first.o_proj.weight[codes + 17, codes] = 1
        second.q_proj.weight[64 + slow, codes + 1] = 10.0
        second.k_proj.weight[64 + slow, codes + 17] = 10.0
    return model


@pytest.fixture(scope="module")
def known():
    return induction_llama()


def test_heads_that_are_known_are_found(known):
    sequences = repeated_sequences(range(16), 12, 8, seed=3)
    for model in (known, to_llama(known)):
        scores = score_heads(model, sequences)
        previous, induction = (top_heads(scores, column, 4) for column in ("previous_token", "induction"))
        assert previous[["layer", "head"]].values[0].tolist() == [0, 0] and previous.previous_token.iloc[0] > 0.99
        assert induction[["layer", "head"]].values[0].tolist() == [1, 1] and induction.induction.iloc[0] > 0.9
        assert (previous.previous_token.iloc[1:] < 0.3).all() and (induction.induction.iloc[1:] < 0.2).all()


def test_ours_and_an_equal_llama(ours, ids):
    llama = to_llama(ours)
    close(score_heads(ours, ids), score_heads(llama, ids))
    assert torch.allclose(chosen_maps(ours, ids[0], [(1, 0)]), chosen_maps(llama, ids[0], [(1, 0)]), atol=1e-5)
    close(score_heads(llama, ids), score_heads(get_peft_model(to_llama(ours), LoraConfig(target_modules=["q_proj"])), ids))


@pytest.mark.parametrize("name", ["ours", *THEIRS])
def test_padding_and_batches_change_nothing(name, ours, ids):
    model = ours if name == "ours" else theirs(name, **THEIRS[name])
    whole = score_heads(model, ids)
    close(whole, score_heads(model, ids, batch_size=2))
    padded = torch.full((5, 15), 7)  # a token that texts hold, too
    mask = torch.zeros(5, 15, dtype=torch.long)
    for row, left in enumerate((0, 1, 2, 3, 4)):
        padded[row, left : left + 11], mask[row, left : left + 11] = ids[row], 1
    close(whole, score_heads(model, padded, mask))
    assert whole.shape == (4, 2 + len(SCORES)) and (whole.previous_token.between(0, 1)).all()


def test_texts_count_by_their_queries(ours, ids):
    mask = torch.ones_like(ids)
    mask[1:, 3:] = 0
    long, short = score_heads(ours, ids[:1]), score_heads(ours, ids[1:, :3])
    both = score_heads(ours, ids, mask)
    close(both[["entropy", "distance"]], ((long * 10 + short * 8) / 18)[["entropy", "distance"]])


@settings(max_examples=40, deadline=None)
@given(time=st.integers(2, 12), sharpness=st.floats(0, 30), seed=st.integers(0, 99), left=st.integers(0, 3))
def test_bounds(time, sharpness, seed, left):
    torch.manual_seed(seed)
    total = time + left
    hidden = torch.ones(total, total).triu(1).bool()
    hidden[left:, :left] = True
    weights = (sharpness * torch.randn(2, 3, total, total)).masked_fill(hidden, -1e9).softmax(-1)
    real = (torch.arange(total) >= left).expand(2, -1)
    values, counted = score_queries(weights, torch.randint(0, 6, (2, total)), real)
    assert counted[0].sum() == 2 * (time - 1) and not counted[:, :, : left + 1].any()
    entropy, relative, distance, previous, first, induction = values
    assert (entropy >= 0).all() and (entropy <= math.log(time) + 1e-5).all() and (relative <= 1 + 1e-5).all()
    assert (distance >= 0).all() and (distance <= time - 1 + 1e-4).all()
    assert all(((share >= 0) & (share <= 1 + 1e-5)).all() for share in (previous, first, induction))
    if sharpness == 0:
        place = torch.arange(1, time).float()
        for found, wanted in ((entropy, (place + 1).log()), (distance, place / 2), (previous, 1 / (place + 1))):
            assert torch.allclose(found[..., left + 1 :], wanted.expand(2, 3, -1), atol=1e-5)


def test_a_learned_sink_takes_part_of_the_shares_only():
    torch.manual_seed(0)
    model = ModernDecoderLM(ModernLLMConfig(**TINY, attention_sinks=True))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    scores = score_heads(model, torch.randint(0, 40, (2, 5)))  # a sink of logit 0 is one key more
    assert scores.relative_entropy.tolist() == pytest.approx([1] * 4) and scores.distance.tolist() == pytest.approx([1.25] * 4)
    assert scores.first_token.tolist() == pytest.approx([sum(1 / (i + 2) for i in range(1, 5)) / 4] * 4)


def test_no_token_twice_is_no_induction_score(ours):
    scores = score_heads(ours, torch.arange(9)[None])
    assert scores.induction.isna().all() and scores.drop(columns="induction").notna().all(None)


def test_the_model_is_as_it_was(ours, ids):
    llama = to_llama(ours).train()
    before = llama(ids[:, :4]).logits

    def see(layer, weights):
        assert llama.config._attn_implementation == "eager" and not llama.training
        raise KeyError

    with pytest.raises(KeyError):
        read_attention(llama, ids, torch.ones_like(ids, dtype=torch.bool), see)
    assert llama.config._attn_implementation == "sdpa" and llama.training
    assert torch.equal(before, llama(ids[:, :4]).logits)
    assert not [hook for module in llama.modules() for hook in module._forward_hooks.values() if hook.__name__ == "hand_over"]
    with eager_attention(llama), eager_attention(llama):
        assert llama.config._attn_implementation == "eager"
    assert llama.config._attn_implementation == "sdpa"


def test_one_layer_is_held_at_a_time(ours, ids):
    seen, alive = [], []

    def see(layer, weights):
        alive.append(sum(kept() is not None for kept in seen))
        seen.append(weakref.ref(weights))

    for model in (ours, to_llama(ours)):
        seen.clear()
        read_attention(model, ids, torch.ones_like(ids, dtype=torch.bool), see)
    assert alive == [0, 0, 0, 0]


@pytest.mark.parametrize(("change", "words"), [
    (dict(attention_mask=torch.ones(5, 3)), ["attention_mask", "(5, 3)", "(5, 11)"]),
    (dict(attention_mask=torch.tensor([[1] * 11] * 4 + [[1, 1, 0] + [1] * 8])), ["attention_mask", "row 4", "stretch"]),
    (dict(attention_mask=torch.tensor([[1] * 11, [1] + [0] * 10] + [[1] * 11] * 3)), ["attention_mask", "row 1"]),
    (dict(ids=torch.ones(5, dtype=torch.long)), ["ids", "(5,)"]),
    (dict(ids=torch.ones(5, 1, dtype=torch.long)), ["ids", "(5, 1)"]),
    (dict(ids=torch.ones(0, 4, dtype=torch.long)), ["ids", "(0, 4)"]),
])  # fmt: skip
def test_inputs_that_are_refused(ours, ids, change, words):
    with pytest.raises(InputError) as error:
        score_heads(**{"model": ours, "ids": ids, **change})
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_models_that_are_refused(ids):
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    t5 = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(InputError, match="T5ForConditionalGeneration, an encoder-decoder"):
        score_heads(t5, ids)
    bert = transformers.BertModel(transformers.BertConfig(**{**TINY, "intermediate_size": 16}))
    with pytest.raises(InputError, match="BertModel whose layer 0 looks at later tokens"):
        score_heads(bert, ids)
    config = transformers.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4)
    mamba = transformers.MambaForCausalLM(config)
    with pytest.raises(InputError, match="MambaForCausalLM gives no attention probabilities"):
        score_heads(mamba, ids)


def test_sequences_that_repeat():
    sequences = repeated_sequences([5, 6, 7, 9], 4, 3, seed=2)
    assert sequences.shape == (3, 8) and torch.equal(sequences[:, :4], sequences[:, 4:])
    assert all(sorted(row[:4]) == [5, 6, 7, 9] for row in sequences.tolist())
    assert torch.equal(sequences, repeated_sequences([5, 6, 7, 9], 4, 3, seed=2))
    assert not torch.equal(sequences, repeated_sequences([5, 6, 7, 9], 4, 3, seed=3))
    for length in (1, 5):
        with pytest.raises(InputError, match=f"length: given {length}; allowed: 2 to 4"):
            repeated_sequences([5, 6, 7, 9], length, 3)


def test_heads_that_do_not_exist(ours, ids):
    for place in ((2, 0), (0, 2), (-1, 0)):
        with pytest.raises(InputError, match=f"layer {place[0]}, head {place[1]}; allowed: layer 0 to 1, head 0 to 1"):
            chosen_maps(ours, ids[0], [(0, 0), place])
    with pytest.raises(InputError, match="unknown score 'entropi'.*entropy"):
        top_heads(score_heads(ours, ids), "entropi")


def test_figures_and_labels(ours, ids):
    words = Tokenizer(WordLevel({"a": 0, "$x$": 1, "\n": 2, "<end>": 3}, unk_token="a"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    assert ordinary_tokens(tokenizer) == [0, 1, 2] and token_labels(tokenizer, [0, 1, 2]) == ["a", "$x$", r"\n"]
    figure = draw_maps(chosen_maps(ours, ids[0], [(0, 0), (0, 1), (1, 1)]), ["$x$", "a"] + ["_"] * 9, ["a", "b", "c"], across=2)
    figure.canvas.draw()  # a dollar is no formula
    assert [axes.get_visible() for axes in figure.axes] == [True] * 3 + [False]
    assert len(draw_scores(score_heads(ours, ids), ["entropy", "induction"]).axes) == 4  # with their scales
