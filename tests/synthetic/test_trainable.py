"""Computed starts: the same function after each change, constants that stay, and what is refused."""

import pytest
import torch
from transformers import T5ForConditionalGeneration

from modernllm.core.config import InputError
from modernllm.data.encoding import collate
from modernllm.experiments.finetuning import score_pairs
from modernllm.synthetic.benchmark import (
    MIXTURE,
    STARTS,
    TaskBatches,
    held_out_set,
    new_start,
    prefixed_task,
    small_t5,
    task_pairs,
    without_embeddings,
)
from modernllm.synthetic.compiler import compile_t5
from modernllm.synthetic.trainability import Substituted, gradient_sums, saturation, sharpness, single_steps
from modernllm.synthetic.trainable import Anneal, PerWeightLR, rescale_channels, fetch_lead, fill_empty_channels, soften_attention
from modernllm.training.callbacks import Callback
from modernllm.training.config import TrainConfig
from modernllm.training.objectives import Seq2Seq
from modernllm.training.trainer import Trainer

LENGTH = 10


@pytest.fixture
def small():
    return small_t5(96, d_ff=64, dropout_rate=0.0)


def made(small, names=MIXTURE):
    task = prefixed_task(names, small, LENGTH)
    return *compile_t5(task, small, "soft", LENGTH), task


def settings(**more):
    return TrainConfig(**{"max_steps": 6, "learning_rate": 2e-3, "warmup_steps": 0, "weight_decay": 0.0, "grad_clip": 0.0,
                          "precision": "fp32"} | more)


@pytest.mark.parametrize("names", [("identity",), ("set",), MIXTURE, ("deduplicate",)])
def test_every_change_keeps_every_decision(small, names):
    model, plan, task = made(small, names)
    pairs = task_pairs(task, 24, "test", symbols=96)
    assert score_pairs(model, pairs)["exact_match"] == 1
    for change in (rescale_channels, soften_attention, fill_empty_channels):
        change(model, plan)
        assert score_pairs(model, pairs)["exact_match"] == 1, change
    fill_empty_channels(model, plan, rank=4)
    assert score_pairs(model, pairs)["token_accuracy"] > 0.9


def test_balancing_changes_no_logit(small):
    model, plan, task = made(small)
    batch = TaskBatches(task, batch_size=8, symbols=96)[0]
    with torch.no_grad():
        before = model(**batch).logits
        rescale_channels(model, plan)
        assert (model(**batch).logits - before).abs().max() < 0.05 * before.abs().max()


def test_the_random_part_begins_as_in_a_model_of_its_own(small):
    softness = {"std": 1.0, "rank": 64}
    batch = TaskBatches(prefixed_task(MIXTURE, small, LENGTH), batch_size=16, symbols=96)[0]
    sizes = {}
    for start in ("random", "mixture"):
        model, _ = new_start(start, small, LENGTH, softness=softness)
        with torch.no_grad():
            states = model.eval()(**batch, output_hidden_states=True).decoder_hidden_states[1]
        sizes[start] = states[..., -40:].std().item()  # of channels that the program leaves empty
    assert sizes["random"] / 3 < sizes["mixture"] < sizes["random"] * 3  # no norm holds it


def test_less_of_the_room_is_shown(small):
    model, plan, _ = made(small)
    fill_empty_channels(model, plan, show=0.5)
    half = model.decoder.final_layer_norm.weight[-1].item()
    fill_empty_channels(model, plan)
    assert model.decoder.final_layer_norm.weight[-1].item() == 2 * half


def test_constants_stay_and_the_program_survives(small):
    model, rates = new_start("mixture", small, LENGTH)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    pairs = task_pairs(prefixed_task(MIXTURE, small, LENGTH), 24, "test", symbols=96)
    batches = Substituted(small, LENGTH, batch_size=8)
    Trainer(model, Seq2Seq(), batches, settings(), callbacks=[PerWeightLR(rates)]).fit()
    moved = 0
    for name, weight in model.named_parameters():
        assert torch.equal(weight[rates[name] == 0], before[name][rates[name] == 0]), name
        moved += (weight != before[name]).sum().item()
    assert moved and score_pairs(model, pairs)["token_accuracy"] > 0.9


def test_rates_resume_bit_for_bit(small, tmp_path):
    def run(folder, *callbacks):
        model, rates = new_start("identity", small, LENGTH)
        batches = Substituted(small, LENGTH, batch_size=4)
        trainer = Trainer(model, Seq2Seq(), batches, settings(max_steps=6, checkpoint_every_steps=3), folder=folder,
                          callbacks=[PerWeightLR(rates), *callbacks])
        return trainer.fit().model

    class Die(Callback):
        def updated(self, trainer):
            if trainer.step == 5:
                raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Die())
    again = run(tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))


def test_annealing_ends_at_the_softer_lead(small):
    model, plan, _ = made(small, ("identity",))
    other = made(small, ("identity",))[0]
    soften_attention(model, plan, match=6.0)
    soften_attention(other, plan, match=fetch_lead(plan.positions))
    trainer = type("Trainer", (), {"model": other})
    anneal = Anneal(plan, fetch_lead(plan.positions), 6.0, 5)
    for trainer.step in range(1, 9):
        anneal.updated(trainer)
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.allclose(a, b, rtol=1e-5)


def test_statistics_are_those_of_the_program(small):
    program, _ = new_start("mixture", small, LENGTH)
    shuffled, rates = new_start("statistics", small, LENGTH)
    assert rates == {}
    for a, b in zip(program.parameters(), shuffled.parameters()):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
    assert any(not torch.equal(a, b) for a, b in zip(program.parameters(), shuffled.parameters()))


def test_starts_are_functions_of_their_seed(small):
    for name in STARTS:
        a, b, other = (new_start(name, small, LENGTH, seed)[0] for seed in (1, 1, 2))
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
        assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), other.parameters()))


def test_without_embeddings_everything_else_is_kept(small):
    model, _ = new_start("mixture", small, LENGTH)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    without_embeddings(model, 3)
    kept = [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])]
    assert set(before) - set(kept) == {"shared.weight"} and model.lm_head.weight is model.shared.weight


def test_synthetic_pairs_are_right_and_differ_between_splits(small):
    tasks = held_out_set("replace", small, LENGTH, (20, 10, 10))
    task = prefixed_task(("replace",), small, LENGTH)
    for pairs in (tasks.train, tasks.validation, tasks.test):
        assert pairs.generated and all(task.reference(s[:-1]) == t[:-1] for s, t in zip(pairs.inputs, pairs.labels))
    assert tasks.train.inputs[:10] != tasks.validation.inputs


def test_what_is_no_start_and_no_held_out_task_is_refused(small):
    with pytest.raises(InputError, match="did you mean 'identity'"):
        new_start("identiy", small, LENGTH)
    with pytest.raises(InputError, match="is not held out"):
        held_out_set("set", small, LENGTH)
    with pytest.raises(InputError, match="did you mean 'replace'"):
        held_out_set("replce", small, LENGTH)
    with pytest.raises(InputError, match="encoder layers, config has 1"):
        new_start("mixture", small_t5(96, num_layers=1), LENGTH)


def test_diagnosis_leaves_the_model_alone(small):
    model, plan, _ = made(small, ("identity",))
    batch = Substituted(small, LENGTH, batch_size=4)[0]
    before = [weight.detach().clone() for weight in model.parameters()]
    single_steps(model, batch), saturation(model, batch), gradient_sums(model, batch)
    assert sharpness(model, batch, iterations=2) >= 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert all(weight.grad is None for weight in model.parameters())


def test_sharpness_of_a_parabola():
    class Parabola(torch.nn.Module):
        "A loss with the curvatures 2 and 6."

        config = type("Config", (), {"_attn_implementation": "eager"})

        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))

        def set_attn_implementation(self, name):
            pass

        def forward(self, **batch):
            return type("Out", (), {"loss": self.w[0] ** 2 + 3 * self.w[1] ** 2})

    assert sharpness(Parabola(), {}, iterations=30) == pytest.approx(6, rel=1e-3)
    assert sharpness(Parabola(), {}, {"w": torch.tensor([1.0, 0.0])}, iterations=30) == pytest.approx(2, rel=1e-3)


def test_a_lowered_program_still_fits_any_model_of_transformers(small, tmp_path):
    model, _ = new_start("identity", small, LENGTH)
    model.save_pretrained(tmp_path)
    again = T5ForConditionalGeneration.from_pretrained(tmp_path)
    batch = collate([[small.vocab_size - 2, 5, 6, 1]], [[5, 6, 1]], pad=0)
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch).logits, model.eval()(**batch).logits)
