"What must hold of layers with experts: equality with dense, causality, capacity, the losses, every refusal."

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from modernllm.core.config import InputError
from modernllm.models.config import ModernLLMConfig, expert_capacity
from modernllm.models.convert import from_mixtral, to_llama, to_mixtral
from modernllm.models.moe import Routing, SparseMoE, has_experts, router_loss, router_report, within_capacity
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.objectives import LanguageModelling

TINY = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
OPTIONS = {
    "one of four": {"num_local_experts": 4, "num_experts_per_tok": 1},
    "two of four": {"num_local_experts": 4},
    "every second, shared, limited": {"num_local_experts": 4, "decoder_sparse_step": 2,
                                      "shared_expert_intermediate_size": 16, "expert_capacity_factor": 1.0},
}


def tokens(seed, batch, time):
    return torch.randint(0, 50, (batch, time), generator=torch.Generator().manual_seed(seed))


def build(seed=0, **fields):
    torch.manual_seed(seed)
    return ModernDecoderLM(ModernLLMConfig(**TINY, initializer_range=0.2, **fields))


@pytest.fixture(scope="module", params=OPTIONS)
def model(request):
    return build(**OPTIONS[request.param]).eval()


@pytest.mark.parametrize("fields, named", [
    ({"num_local_experts": 1}, "num_experts_per_tok"),  # fewer than the two a token uses
    ({"num_local_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok"),
    ({"num_local_experts": 4, "num_experts_per_tok": 0}, "num_experts_per_tok"),
    ({"num_local_experts": -1}, "num_local_experts"),
    ({"num_local_experts": 4, "expert_capacity_factor": 0.01}, "expert_capacity_factor"),  # room for nobody
    ({"num_local_experts": 4, "expert_capacity_factor": 0.0}, "expert_capacity_factor"),
    ({"num_local_experts": 4, "expert_capacity_factor": float("nan")}, "expert_capacity_factor"),
    ({"expert_capacity_factor": 1.0}, "expert_capacity_factor"),
    ({"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size"),
    ({"num_local_experts": 4, "shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size"),
    ({"num_local_experts": 4, "decoder_sparse_step": 3}, "decoder_sparse_step"),  # no layer would have any
    ({"num_local_experts": 4, "decoder_sparse_step": 0}, "decoder_sparse_step"),
    ({"router_aux_loss_coef": -1.0}, "router_aux_loss_coef"),
    ({"router_z_loss_coef": float("inf")}, "router_z_loss_coef"),
])
def test_refused_with_the_name_of_the_field(fields, named):
    with pytest.raises(InputError) as caught:
        ModernLLMConfig(**TINY, **fields)
    assert str(caught.value).startswith(named + ":") and "\n" not in str(caught.value)


def test_a_sequence_too_short_for_the_capacity_is_refused_in_training_only():
    model = build(num_local_experts=4, expert_capacity_factor=0.1)
    with pytest.raises(InputError, match="^expert_capacity_factor: 0.1 .*sequence of 8 "):
        model.train()(tokens(0, 1, 8))
    assert model.eval()(tokens(0, 1, 8)).logits.isfinite().all()


def test_dense_models_have_no_router_and_no_new_weights():
    model = build()
    out = model.train()(tokens(0, 2, 8))
    assert out.router_loss is None and out.routings is None and "router_loss" not in out
    assert not any("gate.weight" in name or "experts" in name for name, _ in model.named_parameters())


def test_one_expert_is_the_dense_model_to_the_last_bit():
    dense, one = build(), build(num_local_experts=1, num_experts_per_tok=1, router_aux_loss_coef=0.0, router_z_loss_coef=0.0)
    state = dense.state_dict()
    for i in range(2):
        at = f"model.layers.{i}.mlp."
        gate, up, down = (state.pop(f"{at}{name}_proj.weight") for name in ("gate", "up", "down"))
        state |= {at + "experts.gate_up_proj": torch.cat((gate, up))[None], at + "experts.down_proj": down[None]}
        state[at + "gate.weight"] = torch.randn(1, 32)
    one.load_state_dict(state)
    ids = tokens(0, 3, 20)
    outs = [model(ids, labels=ids) for model in (dense.train(), one.train())]
    assert torch.equal(outs[0].logits, outs[1].logits)
    for out in outs:
        out.loss.backward()
    for name in ("embed_tokens.weight", "layers.0.self_attn.q_proj.weight", "norm.weight"):
        assert torch.equal(dense.model.get_parameter(name).grad, one.model.get_parameter(name).grad)
    for i in range(2):
        mlp, experts = dense.model.layers[i].mlp, one.model.layers[i].mlp.experts
        assert torch.equal(experts.down_proj.grad[0], mlp.down_proj.weight.grad)
        assert torch.equal(experts.gate_up_proj.grad[0], torch.cat((mlp.gate_proj.weight.grad, mlp.up_proj.weight.grad)))


def test_experts_everywhere_or_in_every_kth_layer():
    for step, expected in ((1, [True] * 5), (2, [False, True, False, True, False]), (5, [False] * 4 + [True])):
        config = ModernLLMConfig(num_local_experts=4, decoder_sparse_step=step)
        assert [has_experts(config, i) for i in range(5)] == expected


@settings(max_examples=10, deadline=None)
@given(time=st.integers(2, 60), data=st.data(), seed=st.integers(0, 1000))
def test_causality_with_capacity_in_training(time, data, seed):
    layer = build(num_local_experts=4, expert_capacity_factor=1.0).model.layers[0].mlp.train()
    at = data.draw(st.integers(1, time - 1))
    x = torch.randn(2, time, 32, generator=torch.Generator().manual_seed(seed))
    changed = x.clone()
    changed[:, at:] = -changed[:, at:]
    before, after = layer(x)[0], layer(changed)[0]
    torch.testing.assert_close(before[:, :at], after[:, :at], atol=1e-5, rtol=0)
    torch.testing.assert_close(layer(x[:1])[0], before[:1], atol=1e-5, rtol=0)  # other rows change nothing


def test_cache_padding_and_generation(model):
    ids = tokens(1, 2, 20)
    with torch.no_grad():
        full = model(ids).logits
        first = model(ids[:, :13], use_cache=True)
        rest = model(ids[:, 13:], past_key_values=first.past_key_values).logits
        torch.testing.assert_close(torch.cat((first.logits, rest), 1), full, atol=1e-5, rtol=0)
        mask = torch.cat((torch.zeros(2, 3), torch.ones(2, 20)), 1).long()
        padded = model(torch.cat((tokens(2, 2, 3), ids), 1), mask, (mask.cumsum(1) - 1).clamp(min=0)).logits[:, 3:]
        torch.testing.assert_close(padded, full, atol=1e-5, rtol=0)
        made = [model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=c, pad_token_id=0) for c in (True, False)]
    assert torch.equal(*made)


def test_saved_and_read_back(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = ModernDecoderLM.from_pretrained(tmp_path)
    assert again.config.num_local_experts == 4
    assert torch.equal(again(tokens(0, 1, 9)).logits, model(tokens(0, 1, 9)).logits)


def test_weights_start_as_told():
    model = build(num_local_experts=4, scale_residual_init=True)
    experts = model.model.layers[0].mlp.experts
    assert abs(experts.gate_up_proj.std() - 0.2) < 0.01 and abs(experts.down_proj.std() - 0.1) < 0.01


def test_gradient_checkpointing_changes_nothing():
    grads = []
    for checkpointing in (False, True):
        model = build(num_local_experts=4, expert_capacity_factor=0.75).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(tokens(0, 2, 16), labels=tokens(0, 2, 16)).loss.backward()
        grads.append([p.grad for p in model.parameters()])
        assert all(g is not None for g in grads[-1])
    torch.testing.assert_close(*grads)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), capacity=st.integers(1, 12), k=st.integers(1, 2))
def test_capacity_holds_for_each_expert_in_each_sequence(seed, capacity, k):
    scores = torch.rand(3, 10, 4, generator=torch.Generator().manual_seed(seed))
    experts = scores.topk(k).indices
    kept = within_capacity(experts, 4, capacity)
    for row in range(3):
        for e in range(4):
            mine = kept[row][experts[row] == e]
            assert mine.sum() == min(capacity, len(mine)) and mine[:capacity].all()  # the first ones


def test_a_dropped_token_passes_through_the_residual_only():
    layer = SparseMoE(ModernLLMConfig(**TINY, num_local_experts=4, num_experts_per_tok=1, expert_capacity_factor=1.0)).train()
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.weight[2] = 1.0
    out, routing = layer(torch.rand(2, 16, 32) + 0.1)  # all want expert 2, which has four places
    assert expert_capacity(layer.config, 16) == 4
    assert routing.kept[:, :4].all() and not routing.kept[:, 4:].any()
    assert (out[:, :4].abs().amax(-1) > 0).all() and (out[:, 4:] == 0).all()
    assert router_report(routing).dropped == 0.75
    assert torch.equal(router_report(routing).load, torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert router_report(layer.eval()(torch.rand(1, 16, 32))[1]).dropped == 0


def test_the_router_learns_with_one_and_with_two_experts():
    for k in (1, 2):
        layer = SparseMoE(ModernLLMConfig(**TINY, num_local_experts=4, num_experts_per_tok=k, initializer_range=0.2))
        layer(torch.randn(2, 8, 32))[0].square().sum().backward()
        assert layer.gate.weight.grad.abs().max() > 1e-4


def test_padding_is_left_out_of_the_losses():
    logits = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    experts = logits.topk(2).indices
    mask = torch.ones(2, 9)
    mask[0, 5:] = 0
    real = Routing(torch.cat((logits[0, :5], logits[1]))[None], torch.cat((experts[0, :5], experts[1]))[None], None)
    for with_mask, without in zip(router_report(Routing(logits, experts, None), mask), router_report(real)):
        torch.testing.assert_close(with_mask, without)


def test_the_objective_adds_the_routers_loss_in_training_only():
    model = build(num_local_experts=4, decoder_sparse_step=2)
    batch = {"input_ids": tokens(0, 2, 12), "targets": tokens(1, 2, 12)}
    batch["targets"][0, :5] = -100
    train, held = (LanguageModelling().loss(model.train(mode), batch) for mode in (True, False))
    assert int(train.weight) == 19 and held.metrics == {}
    torch.testing.assert_close(train.metrics["nats"], held.total)
    torch.testing.assert_close(train.total, held.total + train.metrics["router_loss"])
    routings = model.train().model(batch["input_ids"]).routings
    assert list(routings) == [1]
    report = router_report(routings[1])
    torch.testing.assert_close(train.metrics["router_loss"], 19 * (0.01 * report.balance + 0.001 * report.z))
    torch.testing.assert_close(sum(train.metrics[f"router_load_1_{e}"] for e in range(4)), torch.tensor(19.0))
    assert router_loss(routings, model.config)[1].keys() | {"nats"} == train.metrics.keys()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(50))  # the way through the logits
    torch.testing.assert_close(LanguageModelling().loss(model, batch).total, train.total)


def test_bfloat16_autocast_routes_in_float32():
    model = build(num_local_experts=4).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(tokens(0, 2, 16), labels=tokens(0, 2, 16))
    assert out.routings[0].logits.dtype == torch.float32 and out.router_loss.dtype == torch.float32
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("fields", [{}, {"num_local_experts": 3, "num_experts_per_tok": 3, "num_key_value_heads": 2},
                                    {"num_local_experts": 1, "num_experts_per_tok": 1, "tie_word_embeddings": False}])
def test_a_saved_mixtral_says_the_same_without_our_code(fields, tmp_path):
    model = build(**{"num_local_experts": 4, **fields}).eval()
    to_mixtral(model).save_pretrained(tmp_path)
    ids = tokens(0, 2, 30)
    mixtral, back = MixtralForCausalLM.from_pretrained(tmp_path), from_mixtral(tmp_path)
    with torch.no_grad():
        for other in (mixtral, back):
            torch.testing.assert_close(other(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
        mask = torch.ones_like(ids)
        made = [m.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0) for m in (model, mixtral)]
    assert torch.equal(*made)
    names = {"num_local_experts", "num_experts_per_tok", "hidden_size", "intermediate_size", "num_key_value_heads"}
    assert all(getattr(back.config, n) == getattr(mixtral.config, n) == getattr(model.config, n) for n in names)


@pytest.mark.parametrize("fields, named", [
    ({}, "num_local_experts"),
    ({"num_local_experts": 4, "num_experts_per_tok": 1}, "num_experts_per_tok=1"),
    ({"num_local_experts": 4, "decoder_sparse_step": 2}, "decoder_sparse_step=2"),
    ({"num_local_experts": 4, "shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size=8"),
    ({"num_local_experts": 4, "qk_norm": True}, "qk_norm=True"),
])
def test_what_a_mixtral_cannot_say_is_refused(fields, named):
    with pytest.raises(InputError, match=named):
        to_mixtral(build(**fields))


def test_a_mixture_is_no_llama_and_not_every_mixtral_is_ours(tmp_path):
    with pytest.raises(InputError, match="a Llama cannot express num_local_experts=4"):
        to_llama(build(num_local_experts=4))
    shape = TINY | {"intermediate_size": 16, "num_key_value_heads": 4}
    for extra in ({"sliding_window": 8}, {"num_experts_per_tok": 1}, {"hidden_act": "gelu"}):
        with pytest.raises(InputError, match=f"cannot express {next(iter(extra))}"):
            from_mixtral(MixtralForCausalLM(MixtralConfig(**shape, **extra)))
    to_llama(build()).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="from_mixtral: .* of type 'llama', it must be 'mixtral'"):
        from_mixtral(tmp_path)


@pytest.mark.parametrize("k, shared", [(1, None), (2, 16)])
@pytest.mark.parametrize("left, right", [(8, 0), (0, 8), (3, 5)])
def test_capacity_is_that_of_the_real_tokens_wherever_padding_stands(k, shared, left, right):
    model = build(num_local_experts=4, num_experts_per_tok=k, expert_capacity_factor=1.0, shared_expert_intermediate_size=shared)
    ids, pad = tokens(0, 2, 8), lambda n: tokens(1, 2, n)
    mask = torch.cat((torch.zeros(2, left), torch.ones(2, 8), torch.zeros(2, right)), 1).long()
    row = torch.cat((pad(left), ids, pad(right)), 1)
    alone = model.train()(ids, labels=ids)
    labels = row.masked_fill(mask.cumsum(1) * mask < 2, -100)  # nor where only padding is before
    padded = model(row, mask, (mask.cumsum(1) - 1).clamp(min=0), labels=labels)
    assert alone.router_metrics["router_dropped"] > 0.1
    torch.testing.assert_close(padded.router_metrics, alone.router_metrics)
    torch.testing.assert_close(padded.loss, alone.loss)
    torch.testing.assert_close(padded.logits[:, left : left + 8], alone.logits, atol=1e-5, rtol=0)
    for here, there in zip(padded.routings.values(), alone.routings.values()):
        assert torch.equal(here.kept[:, left : left + 8], there.kept) and not here.kept[mask == 0].any()


def test_rows_of_different_lengths_have_capacities_of_their_own():
    model, lengths = build(num_local_experts=4, expert_capacity_factor=1.0).train(), (12, 5, 3)
    mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).long()
    ids = tokens(0, 3, 12)
    together = model(ids, mask)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(together.logits[row, :n], model(ids[row : row + 1, :n]).logits[0], atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="^expert_capacity_factor: 1.0 .*sequence of 1 "):
        model(ids, (torch.arange(12) < torch.tensor([12, 5, 1])[:, None]).long())


@pytest.mark.parametrize("factor", [None, 1.0])
def test_a_batch_of_nothing_but_padding_is_a_finite_zero(factor):
    model = build(num_local_experts=4, expert_capacity_factor=factor).train()
    ids, mask, none = tokens(0, 2, 8), torch.zeros(2, 8, dtype=torch.long), torch.full((2, 8), -100)
    by_labels = lambda **more: model(ids, mask, labels=none, **more).loss
    by_objective = lambda: LanguageModelling().loss(model, {"input_ids": ids, "attention_mask": mask, "targets": none}).total
    for loss in (by_labels, lambda: by_labels(num_items_in_batch=torch.tensor(7)), by_objective):
        model.zero_grad()
        total = loss()
        total.backward()
        assert total == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())
    report = router_report(model(ids, mask).routings[0], mask)
    assert all(not value.any() for value in report)


def test_the_filled_end_of_a_block_counts_in_no_statistic():
    model = build(num_local_experts=4).train()
    ids, targets = tokens(0, 2, 20), tokens(1, 2, 20)
    targets[0, :4] = -100  # a prompt counts
    short = LanguageModelling().loss(model, {"input_ids": ids, "targets": targets})
    filled = {"input_ids": torch.cat((ids, torch.zeros(2, 9, dtype=torch.long)), 1),
              "targets": torch.cat((targets, torch.full((2, 9), -100)), 1)}
    for batch in (filled, {name: torch.cat((t, torch.full_like(t[:1], 0 if name == "input_ids" else -100)))
                           for name, t in filled.items()}):  # and a row that is all filled
        long = LanguageModelling().loss(model, batch)
        torch.testing.assert_close(long.total, short.total)
        torch.testing.assert_close(long.metrics, short.metrics)
    whole = router_loss(model.model(ids).routings, model.config)[0]
    torch.testing.assert_close(short.metrics["router_loss"], 36 * whole.detach())


class Rows(torch.utils.data.Dataset):
    "Eight rows, each with labels on its last eight tokens."

    def __len__(self):
        return 8

    def __getitem__(self, i):
        ids = tokens(i, 1, 12)[0]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.cat((torch.full((4,), -100), ids[4:]))}


@pytest.mark.parametrize("aux, z", [(0.0, 1.0), (1.0, 0.0)])
def test_accumulation_in_transformers_trainer_does_not_multiply_the_routers_loss(aux, z, tmp_path):
    grads, losses, expected = [], [], []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **_):
            grads.append(model.model.layers[0].mlp.gate.weight.grad.clone())

        def on_log(self, args, state, control, logs, **_):
            losses.append(logs["loss"]) if "loss" in logs else None

    rows = default_data_collator([Rows()[i] for i in range(8)])
    for steps in (1, 2, 4):
        model = build(num_local_experts=4, router_aux_loss_coef=aux, router_z_loss_coef=z)
        parts = [{name: t[i : i + 8 // steps] for name, t in rows.items()} for i in range(0, 8, 8 // steps)]
        with torch.no_grad():  # a mean of what the parts have, as all have the same number of scored tokens
            expected.append(sum(model.train()(**part).loss for part in parts).item() / steps)
        settings = TrainingArguments(
            tmp_path, per_device_train_batch_size=8 // steps, gradient_accumulation_steps=steps, max_steps=1, use_cpu=True,
            logging_steps=1, max_grad_norm=0, save_strategy="no", report_to=[], train_sampling_strategy="sequential",
            disable_tqdm=True)
        Trainer(model=model, args=settings, train_dataset=Rows(), callbacks=[Watch()]).train()
    assert losses == pytest.approx(expected, abs=1e-4)
    if not aux:  # the z-loss is a mean over tokens; the balance loss of a batch is not the mean of its parts'
        assert losses == pytest.approx([losses[0]] * 3, abs=1e-4)
        for other in grads[1:]:
            torch.testing.assert_close(other, grads[0], atol=1e-5, rtol=1e-4)
    else:
        assert losses[2] < 1.5 * losses[0]


def test_what_quantises_linear_layers_leaves_the_router_alone():
    model = build(num_local_experts=4).eval()
    assert not any(name.endswith("mlp.gate") for name, part in model.named_modules() if isinstance(part, torch.nn.Linear))
    for dtype in (torch.float32, torch.bfloat16):  # no type of a weight is taken over by an activation
        layer = copy.deepcopy(model.model.layers[0].mlp)
        x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
        expected = layer.gate(x)
        assert layer.gate.to(dtype)(x).dtype == torch.float32
        torch.testing.assert_close(layer.gate(x), expected, atol=0.05, rtol=0)


def test_all_linear_of_peft_adapts_no_expert_and_target_parameters_do():
    plain = get_peft_model(build(num_local_experts=4), LoraConfig(target_modules="all-linear"))
    assert not any("mlp" in name for name, p in plain.named_parameters() if p.requires_grad)
    names = ["experts.gate_up_proj", "experts.down_proj", "mlp.gate.weight"]
    model = get_peft_model(build(num_local_experts=4), LoraConfig(target_parameters=names, init_lora_weights=False)).eval()
    with torch.no_grad():
        adapted = model(input_ids=tokens(0, 2, 9)).logits
        torch.testing.assert_close(model.merge_and_unload()(tokens(0, 2, 9)).logits, adapted, atol=1e-5, rtol=0)
        assert (adapted - build(num_local_experts=4).eval()(tokens(0, 2, 9)).logits).abs().max() > 0.1
