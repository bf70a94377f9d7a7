import math
import os
import signal
import warnings

import pytest
import torch
import workers
from torch import nn
from workers import ShuffledBatches, Signal, TinyModel, TinyObjective, config, evaluate_on, weights_hash

from modernllm.core.callbacks import Callback, KillRule
from modernllm.core.config import InputError, RunFailed
from modernllm.core.telemetry import Ledger, Telemetry
from modernllm.models.budget import training_flops
from modernllm.models.config import ModernLLMConfig
from modernllm.models.convert import to_llama
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training import checkpoint as checkpoints
from modernllm.training import utilisation
from modernllm.training.config import used_trackers
from modernllm.training.objectives import LanguageModelling, LossOutput, Objective
from modernllm.training.schedule import SHAPES, learning_rate
from modernllm.training.trainer import Trainer


def make(folder=None, *, batches=None, objective=None, dropout=0.3, callbacks=(), evaluate=True, **changes):
    model = TinyModel()
    model.layers[2].p = dropout
    objective = objective or TinyObjective()
    if not dropout and isinstance(objective, TinyObjective):
        objective.projector[1].p = 0.0
    evaluate = evaluate_on(ShuffledBatches()[10_000]) if evaluate is True else evaluate
    settings = config(**{"max_steps": 20, **changes})
    return Trainer(model, objective, batches or ShuffledBatches(), settings,
                   evaluate=evaluate, callbacks=callbacks, folder=folder)


def final_weights(trainer):
    trainer.fit()
    return weights_hash(trainer.model, trainer.inner.objective)


def test_same_twice():
    assert final_weights(make()) == final_weights(make())
    assert final_weights(make()) != final_weights(make(seed=6))  # dropout


def test_one_batch_can_be_learnt_by_heart():
    ids = torch.randperm(workers.VOCABULARY)[None]
    batches = [{"input_ids": ids[:, :-1], "targets": ids[:, 1:]}] * 150
    result = make(batches=batches, dropout=0.0, accumulation=1, max_steps=150, learning_rate=3e-2, evaluate=None).fit()
    assert result.history["train"][0]["loss"] == pytest.approx(math.log(workers.VOCABULARY), abs=0.8)
    assert result.history["train"][-1]["loss"] < 0.05


class Joined:
    "Two batches as one."

    def __init__(self, batches):
        self.batches = batches

    def __getitem__(self, i):
        first, second = self.batches[2 * i], self.batches[2 * i + 1]
        return {name: torch.cat([first[name], second[name]]) for name in first}


def test_accumulation_equals_a_larger_batch():
    "Also where the two batches have different numbers of targets."
    same = dict(dropout=0.0, precision="fp32", log_every=1, evaluate=None)
    two = make(accumulation=2, **same).fit().history["train"]
    one = make(accumulation=1, batches=Joined(ShuffledBatches()), **same).fit().history["train"]
    for a, b in zip(two, one, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_gradient_is_that_of_the_mean_loss_and_clipped():
    trainer = make(dropout=0.0, precision="fp32", accumulation=1, grad_clip=0.01, max_steps=1, evaluate=None)
    batch = ShuffledBatches()[0]
    out = trainer.inner.objective.loss(trainer.model, batch)
    (out.total / out.weight).backward()
    expected = nn.utils.get_total_norm([p.grad for p in trainer.inner.parameters()]).item()
    trainer.optimizer.zero_grad()
    seen = {}

    class Look(Callback):
        def step_end(self, trainer, row):
            seen.update(row)

    trainer.callbacks.append(Look())
    step = trainer.optimizer.step

    def spy():
        seen["clipped"] = nn.utils.get_total_norm([p.grad for p in trainer.inner.parameters()]).item()
        step()

    trainer.optimizer.step = spy
    trainer.fit()
    assert seen["grad_norm"] == pytest.approx(expected, rel=1e-4)
    assert seen["clipped"] == pytest.approx(0.01, rel=1e-3)
    assert seen["loss"] == pytest.approx((out.total / out.weight).item(), rel=1e-5)


def test_the_objectives_own_module_is_trained():
    trainer = make()
    before = trainer.inner.objective.projector[0].weight.detach().clone()
    trainer.fit()
    assert not torch.equal(before, trainer.inner.objective.projector[0].weight)


class NanAt(ShuffledBatches):
    def __init__(self, index):
        super().__init__()
        self.index = index

    def __getitem__(self, i):
        return {**super().__getitem__(i), "broken": torch.tensor(i == self.index)}


class BreaksSometimes(TinyObjective):
    def loss(self, model, batch):
        out = super().loss(model, batch)
        return out._replace(total=out.total * float("nan")) if batch["broken"] else out


def test_nan_loss(tmp_path):
    trainer = make(tmp_path, batches=NanAt(15), objective=BreaksSometimes(), checkpoint_every_steps=3)
    with pytest.raises(RunFailed, match=r"loss is nan at step 8, batch 15; the last good checkpoint is of step 7"):
        trainer.fit()  # step 7 was evaluated and the best so far
    good = checkpoints.load_latest(tmp_path)
    assert good.state["step"] == 7 and all(t.isfinite().all() for t in good.weights.values())


def test_nan_evaluation():
    with pytest.raises(RunFailed, match="evaluation at step 7 gave no finite loss"):
        make(evaluate=lambda model: {"loss": float("nan")}).fit()


def test_ctrl_c_saves_and_passes_on(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, callbacks=[Signal(11)]).fit()
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoints.saved_steps(tmp_path)[-1] == 11
    assert final_weights(make(tmp_path)) == final_weights(make())


def test_second_ctrl_c_does_not_wait(tmp_path):
    class Impatient(Callback):
        def step_end(self, trainer, row):
            if row["step"] == 5:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, callbacks=[Impatient()], checkpoint_every_steps=0).fit()
    assert checkpoints.saved_steps(tmp_path) == []


def test_damaged_checkpoint_costs_steps_not_the_result(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, callbacks=[Signal(11)]).fit()
    newest = checkpoints.checkpoint_path(tmp_path, checkpoints.saved_steps(tmp_path)[-1]) / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="step_00000011 is damaged"):
        assert final_weights(make(tmp_path)) == final_weights(make())


def test_disk_full(tmp_path, monkeypatch):
    real = checkpoints._write

    def full(folder, name, data):
        if "00000006" in folder.name and name == "state.json":
            raise OSError(28, "No space left on device")
        return real(folder, name, data)

    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.raises(RunFailed, match="No space left"):
        make(tmp_path).fit()
    assert checkpoints.load_latest(tmp_path).state["step"] == 3
    monkeypatch.undo()
    assert final_weights(make(tmp_path)) == final_weights(make())


def test_finished_training_is_not_repeated(tmp_path):
    first = make(tmp_path).fit()
    trainer = make(tmp_path, batches={})  # a batch would be a KeyError
    again = trainer.fit()
    assert (again.steps, again.tokens, again.history, again.stopped) == (20, first.tokens, first.history, "finished")
    assert weights_hash(again.model) == weights_hash(first.model)


def test_other_settings_are_refused(tmp_path):
    make(tmp_path).fit()
    with pytest.raises(InputError, match="learning_rate is 0.1 here and 0.003 there"):
        make(tmp_path, learning_rate=0.1).fit()
    make(tmp_path, keep_checkpoints=5).fit()  # changes nothing in the weights


def test_best_is_kept_and_can_be_loaded(tmp_path):
    losses = iter([3.0, 1.0, 2.0, 2.5, 2.6])
    trainer = make(tmp_path, evaluate=lambda model: {"loss": next(losses)}, eval_every=4, keep_checkpoints=1)
    at_best = {}

    class Look(Callback):
        def eval_end(self, trainer, row):
            if row["loss"] == 1.0:
                at_best["hash"] = weights_hash(trainer.model)

    trainer.callbacks.append(Look())
    result = trainer.fit()
    assert result.best["step"] == 8 and checkpoints.saved_steps(tmp_path) == [8, 20]
    assert weights_hash(result.model) != at_best["hash"]
    assert trainer.load_best()["loss"] == 1.0
    assert weights_hash(result.model) == at_best["hash"]


def test_early_stop_and_resume_of_it(tmp_path):
    losses = [3.0, 1.0, 2.0, 2.5, 2.6]
    count = iter(losses)
    result = make(tmp_path, evaluate=lambda model: {"loss": next(count)}, eval_every=4, early_stop_patience=2).fit()
    assert (result.stopped, result.steps) == ("early_stop", 16)
    again = make(tmp_path, evaluate=lambda model: {"loss": next(count)}, eval_every=4, early_stop_patience=2)
    assert again.fit().stopped == "early_stop"


def test_kill_rule():
    baseline = {"x": [0, 10_000], "y": [0.1, 0.1]}
    result = make(callbacks=[KillRule(baseline, delta=0.5, after=600)], eval_every=2).fit()
    assert result.stopped == "killed" and result.tokens >= 600 and result.steps < 20


def test_kill_rule_in_points_of_perplexity_over_a_number_of_tokens():
    def stopped(losses, **rule):
        values = iter(losses)
        baseline = {"x": [0, 10_000], "y": [math.log(100), math.log(100)]}
        rule = KillRule(baseline, **{"delta": 20, "perplexity": True, **rule})
        result = make(evaluate=lambda model: {"loss": next(values)}, callbacks=[rule], eval_every=4).fit()
        return result.stopped, result.steps

    behind, close = math.log(121), math.log(119)
    assert stopped([close] * 5) == ("finished", 20) and stopped([close, behind]) == ("killed", 8)
    assert stopped([behind, behind, close, behind, behind], patience=3) == ("finished", 20)
    a_gap = 4 * 2 * ShuffledBatches.tokens_per_batch  # tokens from one evaluation to the next, at most
    assert stopped([behind] * 5, tokens=1.5 * a_gap)[1] > 8


def test_kill_rule_refuses_a_strange_baseline():
    for baseline in ({"x": [], "y": []}, {"x": [2, 1], "y": [1, 1]}, {"x": [1], "y": [1, 2]}):
        with pytest.raises(InputError, match="baseline"):
            KillRule(baseline, delta=0.1)


class Counter(Callback):
    def __init__(self):
        self.n = 0

    def step_end(self, trainer, row):
        self.n += 1

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def test_a_callbacks_memory_is_checkpointed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, callbacks=[Counter(), Signal(7)]).fit()
    counter = Counter()
    make(tmp_path, callbacks=[counter]).fit()
    assert counter.n == 20


def test_events(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer = make(tmp_path / "c", callbacks=[Signal(11)])
        trainer.telemetry = Telemetry(tmp_path)
        trainer.fit()
    trainer = make(tmp_path / "c")
    trainer.telemetry = Telemetry(tmp_path)
    trainer.fit()
    events = Telemetry.read(tmp_path)
    kinds = [(e["kind"], e.get("step")) for e in events]
    assert ("resume", 11) in kinds and ("checkpoint", 11) in kinds and ("eval", 14) in kinds
    steps = [e for e in events if e["kind"] == "step"]
    assert [e["step"] for e in steps] == [4, 8, 12, 16, 20]
    assert {"loss", "lr", "grad_norm", "tokens", "tokens_per_second", "train_seconds", "memory_mb"} <= set(steps[0])
    assert [e["reason"] for e in events if e["kind"] == "stop"] == ["interrupted", "finished"]


def test_trackers(tmp_path, monkeypatch):
    make(tmp_path, trackers=None).fit()
    assert list(tmp_path.rglob("events.out.tfevents*"))
    assert used_trackers(config(trackers=None), None) == used_trackers(config(trackers=[]), tmp_path) == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert used_trackers(config(trackers=None), tmp_path) == ["tensorboard", "wandb"]
    with pytest.raises(InputError, match="folder"):
        make(None, trackers=["tensorboard"])


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="trackers need wandb, which is not installed"):
        config(trackers=["wandb"])


def test_max_tokens():
    trainer = make(max_steps=None, max_tokens=1000)
    assert trainer.total_steps == math.ceil(1000 / (2 * ShuffledBatches.tokens_per_batch))
    with pytest.raises(InputError, match="tokens_per_batch"):
        make(max_steps=None, max_tokens=1000, batches=[{}])


def test_batches_that_end():
    with pytest.raises(RunFailed, match="end before batch 3, which step 2 needs"):
        make(batches=[ShuffledBatches()[i] for i in range(3)]).fit()


def test_batch_without_targets_moves_nothing():
    class Nothing(Objective):
        def loss(self, model, batch):
            return LossOutput(0 * model.head.weight.sum(), torch.tensor(0))

    result = make(objective=Nothing(), evaluate=None, weight_decay=0.0).fit()
    assert result.tokens == 0 and weights_hash(result.model) == weights_hash(TinyModel())


def test_frozen_teacher_is_in_evaluation_mode_and_not_saved(tmp_path):
    class Distil(TinyObjective):
        def __init__(self):
            super().__init__()
            self.teacher = TinyModel().requires_grad_(False)

        def loss(self, model, batch):
            assert not self.teacher.training and self.projector.training
            return super().loss(model, batch)

    make(tmp_path, objective=Distil()).fit()
    assert not any("teacher" in name for name in checkpoints.load_latest(tmp_path).weights)


def test_schedule_end_points():
    for shape in SHAPES:
        rates = [learning_rate(n, 2.0, 50, warmup=5, min_lr_ratio=0.25, shape=shape) for n in range(1, 51)]
        assert rates[4] == max(rates) == 2.0 and rates[0] == pytest.approx(0.4)
        assert rates[-1] == pytest.approx(2.0 if shape == "constant" else 0.5)
        assert all(a >= b for a, b in zip(rates[4:], rates[5:]))
    with pytest.raises(InputError, match="cosin"):
        learning_rate(1, 1.0, 10, shape="cosin")


def test_live_plot_is_a_picture():
    from modernllm.training.callbacks import LivePlot

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for history in ({"train": [], "eval": []}, make().fit().history):
            assert LivePlot().png(history).startswith(b"\x89PNG")


def test_the_share_of_the_machine_is_known_for_our_own_models_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(utilisation, "matmul_limit", lambda device, dtype: 5e9)
    utilisation._limit.cache_clear()
    ids = torch.arange(32).view(2, 16)
    batch = {"input_ids": ids, "targets": ids.clone()}
    batch["targets"][1] = -100  # half of the work is not counted, so what is counted costs twice as much
    shape = dict(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ours = ModernDecoderLM(ModernLLMConfig(**shape))
    for name, model in (("ours", ours), ("frozen", None), ("llama", to_llama(ours))):
        if model is None:
            model = ModernDecoderLM(ours.config)
            model.model.embed_tokens.requires_grad_(False)
        log = Telemetry(tmp_path / name)
        trainer = Trainer(model, LanguageModelling(), [batch] * 3, config(max_steps=3, accumulation=1, log_every=1),
                          callbacks=(), telemetry=log)
        trainer.fit()
        trainer.fit()  # finished: nothing more is measured
        ledger = Ledger.read(tmp_path / name)
        if name == "ours":
            flops = 2 * sum(training_flops(ours.config, 16).values())
            limits = [e for e in log.read(tmp_path / name) if e["kind"] == "limit"]
            assert [(e["flops_per_token"], e["matmul_limit"]) for e in limits] == [(flops, 5e9)]
            assert ledger.mfu == pytest.approx(ledger.throughput * flops / 5e9) and ledger.matmul_limit == 5e9
        else:
            assert ledger.throughput and ledger.mfu is None and ledger.matmul_limit is None
    utilisation._limit.cache_clear()
