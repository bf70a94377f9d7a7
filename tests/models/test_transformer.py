"What must hold of the decoder whatever its options: causality, caches, padding, saving, the start of training."

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import build
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, StaticCache

from modernllm.core.config import InputError
from modernllm.models.config import ModernLLMConfig
from modernllm.models.convert import to_llama
from modernllm.models.transformer import ModernDecoderLM, ModernModel
from modernllm.training.objectives import LanguageModelling

TINY = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
OPTIONS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "one kv head, untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "normed and capped": {"qk_norm": True, "final_logit_softcapping": 2.0, "scale_residual_init": True},
    "windows": {"sliding_window": 8},
    "sinks, gate, every other layer a window": {
        "attention_sinks": True, "attention_gate": True, "sliding_window": 16, "full_attention_every": 2,
        "num_key_value_heads": 2,
    },
    "wide heads, all dropouts": {"head_dim": 16, "embedding_dropout": 0.1, "residual_dropout": 0.1, "attention_dropout": 0.1},
}


@pytest.fixture(scope="module", params=OPTIONS, autouse=False)
def model(request):
    return build(**TINY, **OPTIONS[request.param])


def tokens(seed, batch, time):
    return torch.randint(0, 50, (batch, time), generator=torch.Generator().manual_seed(seed))


property_test = settings(max_examples=12, deadline=None)


@property_test
@given(time=st.integers(2, 150), data=st.data(), seed=st.integers(0, 1000))
def test_causality(model, time, data, seed):
    at = data.draw(st.integers(0, time - 1))
    ids = tokens(seed, 1, time)
    changed = ids.clone()
    changed[0, at] = (changed[0, at] + 1) % 50
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    torch.testing.assert_close(before[:, :at], after[:, :at], atol=1e-5, rtol=0)
    assert (before[:, at] - after[:, at]).abs().max() > 1e-3


@property_test
@given(time=st.integers(2, 100), data=st.data(), seed=st.integers(0, 1000))
def test_cached_equals_full(model, time, data, seed):
    cuts = sorted(data.draw(st.sets(st.integers(1, time - 1), max_size=3)))
    ids, cache, pieces = tokens(seed, 2, time), None, []
    with torch.no_grad():
        for start, end in zip([0, *cuts], [*cuts, time]):
            out = model(ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            pieces.append(out.logits)
        torch.testing.assert_close(torch.cat(pieces, 1), model(ids).logits, atol=1e-5, rtol=0)


@property_test
@given(time=st.integers(1, 80), padding=st.integers(0, 70), seed=st.integers(0, 1000))
def test_left_padding_changes_nothing(model, time, padding, seed):
    ids = tokens(seed, 1, time)
    mask = torch.cat((torch.zeros(1, padding, dtype=torch.long), torch.ones(1, time, dtype=torch.long)), 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        padded = model(torch.cat((tokens(seed + 1, 1, padding), ids), 1), mask, positions).logits
        torch.testing.assert_close(padded[:, padding:], model(ids).logits, atol=1e-5, rtol=0)
    assert padded.isfinite().all()


@pytest.mark.parametrize("how", [
    {}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}, {"cache_implementation": "static", "disable_compile": True},
])
def test_generation_with_any_cache_equals_none(model, how):
    ids, mask, texts = tokens(0, 2, 30), torch.ones(2, 30, dtype=torch.long), []
    mask[0, :9] = 0
    settings = dict(attention_mask=mask, max_new_tokens=12, pad_token_id=0, eos_token_id=1)
    for options in (how, {k: v for k, v in how.items() if "static" not in str(v)} | {"use_cache": False}):
        torch.manual_seed(0)
        texts.append(model.generate(ids, **settings, **{"do_sample": False, **options}))
    assert torch.equal(*texts)
    alone = model.generate(ids[:1, 9:], **{**settings, "attention_mask": None}, do_sample=False)
    if how == {}:
        assert torch.equal(texts[0][0, 30:], alone[0, 21:])


def test_packed_documents_are_read_as_each_alone(model):
    lengths, ids = ([25, 105], [64, 1, 65]), tokens(0, 2, 130)  # borders inside, and at the end of, the kernel's blocks
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    with torch.no_grad():
        packed, seen = (model(ids, position_ids=positions, output_attentions=look) for look in (False, True))
        for row, documents in enumerate(lengths):
            for end, n in zip(torch.tensor(documents).cumsum(0).tolist(), documents):
                alone = model(ids[row : row + 1, end - n : end]).logits[0]
                for out in (packed, seen):
                    torch.testing.assert_close(out.logits[row, end - n : end], alone, atol=1e-5, rtol=0)
                assert seen.attentions[1][row, :, end - n : end, : end - n].abs().sum() == 0
        one = torch.arange(130)[None]  # a document in each row: nothing to be kept apart
        assert torch.equal(model(ids, position_ids=one).logits, model(ids).logits)


@pytest.mark.parametrize("pads", [0, 1, 7])  # positions of padding, which mean nothing
@pytest.mark.parametrize("left, right", [(0, 0), (6, 0), (0, 6), (6, 4)])
def test_packed_documents_stay_apart_with_a_mask_and_with_an_empty_cache(model, left, right, pads):
    lengths, ids = ([13, 27], [5, 35]), tokens(0, 2, 40)
    row = torch.cat((tokens(1, 2, left), ids, tokens(2, 2, right)), 1)
    fill = [torch.full((n,), pads) for n in (left, right)]
    positions = torch.stack([torch.cat((fill[0], *(torch.arange(n) for n in few), fill[1])) for few in lengths])
    mask = torch.cat((torch.zeros(2, left), torch.ones(2, 40), torch.zeros(2, right)), 1).long()
    static = StaticCache(config=model.config, max_cache_len=64)
    with torch.no_grad():
        alone = torch.stack([torch.cat([model(part[None]).logits[0] for part in r.split(few)]) for r, few in zip(ids, lengths)])
        for how in ({"use_cache": False}, {"use_cache": True}, {"past_key_values": static}):
            logits = model(row, mask, positions, **how).logits
            torch.testing.assert_close(logits[:, left : left + 40], alone, atol=1e-5, rtol=0)
            assert logits.isfinite().all()
        if left + right == 0:
            torch.testing.assert_close(model(row, None, positions, use_cache=True).logits, alone, atol=1e-5, rtol=0)


def test_documents_that_a_cache_cannot_keep_apart_are_refused():
    model, ids = build(**TINY), tokens(0, 1, 20)
    filled, again = model(ids, use_cache=True).past_key_values, torch.arange(10).repeat(2)[None]
    rolling = build(**TINY, cache_window=8)
    for run in (lambda: model(ids, position_ids=again, past_key_values=filled),
                lambda: rolling(ids, position_ids=again, use_cache=True)):
        with pytest.raises(InputError, match="^position_ids: start again") as caught:
            run()
        assert "\n" not in str(caught.value)
    model(ids, position_ids=torch.arange(20, 40)[None], past_key_values=filled)


def test_packed_documents_have_the_losses_of_each_alone_here_and_in_a_llama():
    ours = ModernDecoderLM(ModernLLMConfig(**TINY, num_key_value_heads=2, tie_word_embeddings=False))
    ids, targets, objective = tokens(0, 1, 90), tokens(1, 1, 90), LanguageModelling()
    parts = [slice(0, 30), slice(30, 90)]
    positions = torch.cat([torch.arange(30), torch.arange(60)])[None]
    for model in (ours, to_llama(ours)):
        objective.loss(model, {"input_ids": ids, "targets": targets, "position_ids": positions}).total.backward()
        packed = [p.grad for p in model.parameters()]
        model.zero_grad()
        sum(objective.loss(model, {"input_ids": ids[:, part], "targets": targets[:, part]}).total for part in parts).backward()
        for a, b in zip(packed, [p.grad for p in model.parameters()]):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_looking_at_attention_changes_nothing(model):
    ids = tokens(0, 2, 30)
    with torch.no_grad():
        seen = model(ids, output_attentions=True, output_hidden_states=True)
        torch.testing.assert_close(seen.logits, model(ids).logits, atol=1e-5, rtol=0)
    assert len(seen.attentions) == 2 and len(seen.hidden_states) == 3
    sums = seen.attentions[1].sum(-1)
    assert (sums < 1).all() if model.config.attention_sinks else torch.allclose(sums, torch.ones(2, 4, 30))


def test_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is ModernDecoderLM and type(AutoConfig.from_pretrained(tmp_path)) is ModernLLMConfig
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    tied = again.lm_head.weight is again.model.embed_tokens.weight
    assert tied == model.config.tie_word_embeddings
    ids = tokens(0, 1, 70)
    assert torch.equal(model(ids).logits, again(ids).logits)
    backbone = AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is ModernModel
    assert torch.equal(backbone(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_logits_to_keep_and_embeddings(model):
    ids = tokens(0, 2, 20)
    with torch.no_grad():
        full = model(ids).logits
        torch.testing.assert_close(model(ids, logits_to_keep=3).logits, full[:, -3:])
        torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, full[:, [0, 5]])
        torch.testing.assert_close(model(inputs_embeds=model.model.embed_tokens(ids)).logits, full)
    with pytest.raises(ValueError):
        model()


@pytest.mark.parametrize("vocab", [64, 1000])
def test_a_fresh_model_guesses_evenly(vocab):
    torch.manual_seed(0)
    model = ModernDecoderLM(ModernLLMConfig(**{**TINY, "vocab_size": vocab}))
    ids = torch.randint(0, vocab, (4, 100))
    assert abs(model(ids, labels=ids).loss.item() - math.log(vocab)) < 0.1


def test_one_batch_can_be_overfitted():
    torch.manual_seed(0)
    model = ModernDecoderLM(ModernLLMConfig(**TINY, num_key_value_heads=2, qk_norm=True))
    ids, optimizer = tokens(0, 2, 24), torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05


def test_as_many_key_heads_as_heads_is_plain_attention_to_the_bit():
    ids, states = tokens(0, 2, 70), []
    models = [ModernDecoderLM(ModernLLMConfig(**TINY, num_key_value_heads=n)) for n in (None, 4, 1)]
    models[1].load_state_dict(models[0].state_dict())
    repeat = lambda weight: weight.repeat(4, 1)
    shared = {k: repeat(v) if "k_proj" in k or "v_proj" in k else v for k, v in models[2].state_dict().items()}
    many = ModernDecoderLM(ModernLLMConfig(**TINY))
    many.load_state_dict(shared)
    for model in models[:2]:
        loss = model(ids, labels=ids).loss
        loss.backward()
        states.append([loss, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*states))
    with torch.no_grad():
        torch.testing.assert_close(models[2](ids).logits, many(ids).logits, atol=1e-6, rtol=0)


def test_the_compiler_traces_it_whole():
    fields = {**TINY, **OPTIONS["sinks, gate, every other layer a window"], "num_hidden_layers": 1, "qk_norm": True}
    model, ids, results = ModernDecoderLM(ModernLLMConfig(**fields)), tokens(0, 2, 70), []
    for run in (model, torch.compile(model, backend="eager", fullgraph=True)):
        model.zero_grad()
        loss = run(ids, labels=ids).loss
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters())])
    for ours, compiled in zip(*results):
        torch.testing.assert_close(ours, compiled)


def test_a_folder_that_does_not_fit_is_named_with_its_tensors(tmp_path):
    saved = ModernLLMConfig(**TINY)
    ModernDecoderLM(saved).save_pretrained(tmp_path)
    for fields, named in (
        ({"intermediate_size": 40}, r"model.layers.0.mlp.gate_proj.weight is \(88, 32\), not \(40, 32\)"),
        ({"attention_sinks": True}, r"model.layers.0.self_attn.sinks is missing"),
        ({"num_hidden_layers": 1}, r"model.layers.1.[a-z_.]+ is unknown"),
    ):
        with pytest.raises(InputError, match=named) as caught:
            ModernDecoderLM.from_pretrained(tmp_path, config=ModernLLMConfig(**{**TINY, **fields}))
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot be read[^\n]*$") as caught:
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_residual_matrices_start_smaller_where_asked():
    config = ModernLLMConfig(hidden_size=128, num_hidden_layers=8, vocab_size=50, scale_residual_init=True)
    layer = ModernDecoderLM(config).model.layers[3]
    for matrix, expected in ((layer.self_attn.o_proj, 0.005), (layer.mlp.down_proj, 0.005), (layer.mlp.up_proj, 0.02)):
        assert abs(matrix.weight.std().item() / expected - 1) < 0.05


def test_logits_stay_below_the_cap():
    model = ModernDecoderLM(ModernLLMConfig(**TINY, final_logit_softcapping=2.0, initializer_range=1.0))
    logits = model(tokens(0, 1, 30)).logits
    assert 1.5 < logits.abs().max() <= 2.0


def test_dropout_acts_in_training_only_and_repeats_with_the_seed():
    model = ModernDecoderLM(ModernLLMConfig(**TINY, **OPTIONS["wide heads, all dropouts"]))
    ids, out = tokens(0, 2, 70), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        out.append(model(ids).logits)
    assert torch.equal(out[0], out[1]) and not torch.equal(out[0], out[2])
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients():
    sinks = {"attention_sinks": True, "attention_gate": True, "sliding_window": 9}
    config = ModernLLMConfig(**TINY, **OPTIONS["wide heads, all dropouts"], **sinks)
    model, ids, grads = ModernDecoderLM(config), tokens(0, 2, 70), []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        torch.manual_seed(3)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
