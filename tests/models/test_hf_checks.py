"The checks that `transformers` makes of its own models, made of ours in all their forms, where no other test makes them."

import copy
import inspect
from unittest.mock import patch

import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from small_models import build
from transformers import DynamicCache, PreTrainedModel

from modernllm.models.transformer import ModernDecoderLM

TINY = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
FORMS = {
    "dense": {},
    "grouped, untied": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "sinks": {"attention_sinks": True, "num_key_value_heads": 1},
    "windows": {"sliding_window": 6, "full_attention_every": 2},
    "gate, norms, cap": {"attention_gate": True, "qk_norm": True, "final_logit_softcapping": 5.0},
    "experts": {"num_local_experts": 4, "decoder_sparse_step": 2, "shared_expert_intermediate_size": 16},
}


def tokens(seed, batch, time):
    return torch.randint(2, 50, (batch, time), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=FORMS)
def model(request):
    "Not to be changed: it is shared."
    return build(**TINY, **FORMS[request.param])


@pytest.fixture
def own(model):
    "A copy for tests that change it."
    return copy.deepcopy(model)


def generate(model, ids, **how):
    torch.manual_seed(0)
    return model.generate(ids, **{"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": 1, **how})


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_signature(model):
    assert list(inspect.signature(model.forward).parameters)[:2] == ["input_ids", "attention_mask"]


@torch.no_grad()
def test_shapes_of_attentions_and_hidden_states(model):
    ids, look = tokens(0, 3, 9), {"output_attentions": True, "output_hidden_states": True, "use_cache": True}
    first = model(ids, **look)
    then = model(tokens(1, 3, 1), past_key_values=first.past_key_values, **look)
    for out, queries, keys in ((first, 9, 9), (then, 1, 10)):
        assert [a.shape[:3] for a in out.attentions] == [(3, 4, queries)] * 2
        seen = [min(keys, 6) if queries == 1 and kind == "sliding_attention" else keys for kind in model.config.layer_types]
        assert [a.shape[3] for a in out.attentions] == seen  # the cache of a window holds no more than the window
        assert [h.shape for h in out.hidden_states] == [(3, queries, 32)] * 3
    assert torch.equal(first.hidden_states[0], model.get_input_embeddings()(ids))
    close(first.hidden_states[-1], model.model(ids).last_hidden_state)


@torch.no_grad()
def test_configuration_asks_for_more_and_for_tuples(own):
    ids = tokens(0, 2, 6)
    asked = own(ids, output_attentions=True, output_hidden_states=True)
    own.set_attn_implementation("eager")  # transformers wants it before it lets a configuration ask for attentions
    own.config.output_attentions = own.config.output_hidden_states = True
    found = own(ids)
    assert torch.equal(found.attentions[1], asked.attentions[1]) and torch.equal(found.hidden_states[1], asked.hidden_states[1])
    assert own(ids, output_attentions=False).attentions is None
    as_tuple = own.model(ids, return_dict=False)
    assert isinstance(as_tuple, tuple) and as_tuple[0].equal(own.model(ids).last_hidden_state)
    own.config.return_dict = False
    assert own(ids)[0].equal(asked.logits)


def test_gradients_reach_states_attentions_and_every_parameter(own):
    ids = tokens(0, 4, 16)
    out = own.train()(ids, labels=ids, output_attentions=True, output_hidden_states=True)
    for tensor in (*out.hidden_states[:-1], *out.attentions):
        tensor.retain_grad()
    out.loss.backward()
    for name, tensor in [*own.named_parameters(), *enumerate(out.hidden_states[:-1]), *enumerate(out.attentions)]:
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any(), name


def test_each_row_of_a_batch_is_as_alone(model):
    ids, look = tokens(0, 4, 12), {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        together, alone = model(ids, **look), model(ids[2:3], **look)
    for name in ("hidden_states", "attentions"):
        close([x[2:3] for x in together[name]], list(alone[name]))
    close(together.logits[2:3], alone.logits)


def test_padding_on_the_right_changes_no_gradient(own):
    ids, padding, grads = tokens(0, 2, 12), tokens(1, 2, 5), []
    mask = torch.cat((torch.ones_like(ids), torch.zeros_like(padding)), 1)
    labels = torch.cat((ids, torch.full_like(padding, -100)), 1)
    for given in ({"input_ids": ids, "labels": ids},
                  {"input_ids": torch.cat((ids, padding), 1), "attention_mask": mask, "labels": labels}):
        own.zero_grad()
        loss = own.train()(**given).loss
        loss.backward()
        grads.append([loss.detach(), *(p.grad.clone() for p in own.parameters())])
    close(*grads)


def test_asked_for_plain_attention_it_says_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    plain = ModernDecoderLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids, mask = tokens(0, 2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :4] = 0
    with torch.no_grad():
        for given in ({}, {"attention_mask": mask}):
            close(plain(ids, **given).logits[:, 4:], model(ids, **given).logits[:, 4:])


@pytest.mark.parametrize("size", [64, 37])
def test_resized_embeddings(own, size, tmp_path):
    tied, old, fewer = own.config.tie_word_embeddings, own.get_input_embeddings().weight.detach().clone(), min(size, 50)
    head = own.lm_head.weight.detach().clone()
    own.resize_token_embeddings(size)
    rows, ids = own.get_input_embeddings(), tokens(0, 2, 12) % fewer
    assert own.config.vocab_size == rows.num_embeddings == own.lm_head.out_features == size
    assert (own.lm_head.weight is rows.weight) == tied
    assert torch.equal(rows.weight[:fewer], old[:fewer]) and torch.equal(own.lm_head.weight[:fewer], head[:fewer])
    own.train()(ids, labels=ids).loss.backward()
    own.eval().save_pretrained(tmp_path)
    again = ModernDecoderLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, own(ids).logits) and own(ids).logits.shape == (2, 12, size)
    assert generate(own, ids).max() < size


def test_embeddings_resized_to_a_multiple_and_replaced():
    model = build(**TINY)
    model.resize_token_embeddings(51, pad_to_multiple_of=16)
    assert model.config.vocab_size == len(model.lm_head.weight) == 64
    model.set_input_embeddings(torch.nn.Embedding(64, 32))
    model.tie_weights()
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_weights_that_are_tied_stay_so_in_copies_types_and_training(own):
    tied = own.config.tie_word_embeddings
    for model in (own, copy.deepcopy(own), own.to(torch.float64), own.float()):
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    ids = tokens(0, 2, 9)
    optimizer = torch.optim.SGD(own.parameters(), 1.0)
    own(ids, labels=ids).loss.backward()
    optimizer.step()
    assert torch.equal(own.lm_head.weight, own.model.embed_tokens.weight) == tied


def test_saved_in_pieces_and_in_half_precision(model, tmp_path):
    model.save_pretrained(tmp_path / "pieces", max_shard_size="20KB")
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 1
    again = ModernDecoderLM.from_pretrained(tmp_path / "pieces")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    copy.deepcopy(model).bfloat16().save_pretrained(tmp_path / "half")
    half = ModernDecoderLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert half.dtype == torch.bfloat16 and half(tokens(0, 1, 9)).logits.isfinite().all()


def test_nothing_is_pushed_unless_asked(model, tmp_path):
    with patch.object(PreTrainedModel, "push_to_hub", side_effect=AssertionError), \
         patch.object(HfApi, "create_repo", side_effect=AssertionError):
        model.save_pretrained(tmp_path)
        with pytest.raises(AssertionError):  # and where it is asked, this is where it goes through
            model.save_pretrained(tmp_path, push_to_hub=True)


@torch.no_grad()
@pytest.mark.parametrize("scaled", [False, True])
def test_every_parameter_starts_as_the_configuration_says(model, scaled):
    config = copy.deepcopy(model.config)
    config.initializer_range, config.scale_residual_init = 0.02, scaled
    fresh = ModernDecoderLM(config)
    for tensor in (*fresh.parameters(), *fresh.buffers()):
        tensor.fill_(float("nan"))
    for module in fresh.modules():
        fresh._init_weights(module)
    assert all(torch.equal(a, b) for a, b in zip(fresh.buffers(), model.buffers(), strict=True))
    for name, weight in fresh.named_parameters():
        if weight.ndim == 1:
            assert (weight == (0 if name.endswith("sinks") else 1)).all(), name
        else:
            expected = 0.02 / (2 if scaled and ("o_proj" in name or "down_proj" in name) else 1)
            assert weight.std().item() == pytest.approx(expected, rel=0.25) and abs(weight.mean()) < expected / 4, name


def test_generation_from_embeddings(model):
    ids = tokens(0, 2, 10)
    embedded = model.get_input_embeddings()(ids).detach()
    for how in ({}, {"num_beams": 2}, {"do_sample": True, "top_k": 5}, {"use_cache": False}):
        new = generate(model, None, inputs_embeds=embedded, **how)  # only what was generated comes back
        assert torch.equal(new, generate(model, ids, **how)[:, 10:])
    assert not torch.equal(generate(model, None, inputs_embeds=-embedded), generate(model, ids)[:, 10:])


def test_what_generation_tells(model):
    out = generate(model, tokens(0, 2, 10), eos_token_id=None, return_dict_in_generate=True, output_scores=True,
                   output_logits=True, output_attentions=True, output_hidden_states=True)
    assert out.sequences.shape == (2, 18) and all(s.shape == (2, 50) for s in (*out.scores, *out.logits))
    assert len(out.scores) == len(out.attentions) == len(out.hidden_states) == 8
    assert [step[0].shape[2] for step in out.attentions] == [10] + [1] * 7
    assert [step[-1].shape for step in out.hidden_states] == [(2, 10, 32)] + [(2, 1, 32)] * 7


def test_generation_goes_on_from_a_cache(model):
    ids = tokens(0, 2, 10)
    whole = generate(model, ids, eos_token_id=None)
    half = generate(model, ids, eos_token_id=None, max_new_tokens=4, return_dict_in_generate=True)
    rest = generate(model, half.sequences, eos_token_id=None, max_new_tokens=4, past_key_values=half.past_key_values)
    assert torch.equal(rest, whole)


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2, "do_sample": True},
                                 {"cache_implementation": "static", "disable_compile": True},
                                 {"prompt_lookup_num_tokens": 3}, {"past_key_values": DynamicCache}])
def test_ways_of_generating_agree_with_no_cache(model, how):
    lookup, beams = "prompt_lookup_num_tokens" in how, "num_beams" in how
    ids, mask = tokens(0, 2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[0, :4] = 0
    if lookup:  # one text at a time, with something in it to be found again
        ids, mask = ids[:1].repeat(1, 2), torch.ones(1, 20, dtype=torch.long)
    given = {k: v(config=model.config) if callable(v) else v for k, v in how.items()}
    without = {**(how if beams else {}), "use_cache": False}
    assert torch.equal(generate(model, ids, attention_mask=mask, **given), generate(model, ids, attention_mask=mask, **without))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks by a name that transformers gives up
def test_lora_trains_alone_is_saved_and_merges(own, tmp_path):
    ids, base = tokens(0, 4, 16), copy.deepcopy(own)
    experts = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"] if own.config.num_local_experts else None
    wanted = "all-linear" if experts else ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = LoraConfig(r=4, target_modules=wanted, target_parameters=experts, task_type="CAUSAL_LM")
    lora, before = get_peft_model(own, settings), [p.clone() for p in base.parameters()]
    optimizer = torch.optim.AdamW((p for p in lora.parameters() if p.requires_grad), 1e-2)
    adapted = {name.split(".lora_")[0].split(".")[-1] for name, p in lora.named_parameters() if p.requires_grad}
    assert not experts or {"experts", "base_layer", "gate"} <= adapted  # the outer of two wrappers, the inner, the router
    losses = []
    for _ in range(3):
        loss = lora.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not p.requires_grad for n, p in lora.named_parameters() if "lora_" not in n)
    lora.eval().save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    with torch.no_grad():
        learnt = lora(input_ids=ids).logits
        assert not torch.allclose(learnt, base(ids).logits, atol=1e-3)
        close(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)(input_ids=ids).logits, learnt)
        with lora.disable_adapter():
            assert torch.equal(lora(input_ids=ids).logits, base(ids).logits)
        text = generate(lora, ids[:, :8])
        merged = lora.merge_and_unload()
        close(merged(ids).logits, learnt)
        assert torch.equal(generate(merged, ids[:, :8]), text)
    assert all(torch.equal(a, b) for a, b in zip(before, base.parameters()))


def test_compiled_it_says_the_same():
    "Experts: how many rows each gets breaks the graph, and no more than that. The dense forms are traced whole elsewhere."
    model, ids, results = build(**TINY | {"num_local_experts": 2, "num_hidden_layers": 1}), tokens(0, 2, 12), []
    for run in (model, torch.compile(model, backend="eager")):
        model.zero_grad()
        loss = run(ids, labels=ids).loss
        loss.backward()
        results.append([loss, *(p.grad.clone() for p in model.parameters())])
    close(*results)
