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
from modernllm.training import out_of_memory, utilisation
from modernllm.training.config import used_trackers, uses_bfloat16
from modernllm.training.objectives import LanguageModelling, LossOutput, Objective
from modernllm.training.schedule import SHAPES, learning_rate
from modernllm.training.trainer import Trainer


def make(folder=None, *, batches=None, objective=None, dropout=0.3, callbacks=(), evaluate=True, telemetry=None, **changes):
    model = TinyModel()
    model.layers[2].p = dropout
    objective = objective or TinyObjective()
    if not dropout and isinstance(objective, TinyObjective):
        objective.projector[1].p = 0.0
    evaluate = evaluate_on(ShuffledBatches()[10_000]) if evaluate is True else evaluate
    settings = config(**{"max_steps": 20, **changes})
    return Trainer(model, objective, batches or ShuffledBatches(), settings,
                   evaluate=evaluate, callbacks=callbacks, folder=folder, telemetry=telemetry)


def final_weights(trainer):
    trainer.fit()
    return weights_hash(trainer.model, trainer.objective)


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
    out = trainer.objective.loss(trainer.model, batch)
    (out.total / out.weight).backward()
    weights = [*trainer.model.parameters(), *trainer.objective.parameters()]
    expected = nn.utils.get_total_norm([p.grad for p in weights]).item()
    trainer.optimizer.zero_grad()
    seen = {}

    class Look(Callback):
        def step_end(self, trainer, row):
            seen.update(row)

    trainer.callbacks.append(Look())
    step = trainer.optimizer.step

    def spy():
        seen["clipped"] = nn.utils.get_total_norm([p.grad for p in weights]).item()
        step()

    trainer.optimizer.step = spy
    trainer.fit()
    assert seen["grad_norm"] == pytest.approx(expected, rel=1e-4)
    assert seen["clipped"] == pytest.approx(0.01, rel=1e-3)
    assert seen["loss"] == pytest.approx((out.total / out.weight).item(), rel=1e-5)


def test_the_objectives_own_module_is_trained():
    trainer = make()
    before = trainer.objective.projector[0].weight.detach().clone()
    trainer.fit()
    assert not torch.equal(before, trainer.objective.projector[0].weight)


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


def test_a_full_gpu_ends_training_with_one_line_and_an_intact_checkpoint(tmp_path, monkeypatch):
    whole = make(checkpoint_every_steps=3)
    whole.fit()

    def full(self, model, batch):
        if trainer.step == 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more lines")
        return loss(self, model, batch)

    loss, trainer = TinyObjective.loss, make(tmp_path, checkpoint_every_steps=3)
    with monkeypatch.context() as at_step_8:
        at_step_8.setattr(TinyObjective, "loss", full)
        with pytest.raises(RunFailed) as failed:
            trainer.fit()
    assert str(failed.value) == "out of memory after step 8; the last good checkpoint is of step 7"
    resumed = make(tmp_path, checkpoint_every_steps=3)
    resumed.fit()
    assert weights_hash(resumed.model) == weights_hash(whole.model)


def test_the_report_of_a_full_gpu_names_need_and_the_largest_batch(monkeypatch):
    class Full(LanguageModelling):
        def loss(self, model, batch):
            raise torch.OutOfMemoryError("CUDA out of memory")

    def report(objective=None, **changes):
        model = ModernDecoderLM(ModernLLMConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
        batch = {name: torch.zeros(8, 12, dtype=torch.long) for name in ("input_ids", "targets")}
        training = Trainer(model, objective or LanguageModelling(), [batch] * 2,
                           config(max_steps=2, accumulation=1, precision="bf16", **changes), callbacks=())
        with pytest.raises(RunFailed) as failed:
            training.fit()
        return str(failed.value)

    monkeypatch.setattr(LanguageModelling, "loss", Full.loss)
    need = {1: 10, 2: 20, 4: 41, 8: 90, 3: 30}
    monkeypatch.setattr(out_of_memory, "step_memory", lambda config, size, *how: {"peak": need[size] * 2**20})
    monkeypatch.setattr(out_of_memory, "memory_limit", lambda device: limit * 2**20)
    words = "out of memory after step 0, with batches of 8 × 12 tokens; a step is predicted to need 90 MiB of "
    for limit, rest in ((40, "; the largest batch that is predicted to fit has 3 rows"),
                        (9, "; not even one row is predicted to fit"), (95, "")):
        assert report() == f"{words}{limit}{rest}"
    assert report(Full()) == report(optimizer="muon") == "out of memory after step 0"
    with monkeypatch.context() as shared:
        shared.setattr(out_of_memory, "held_by_others", lambda device: 3 * 2**30)
        assert report(Full()) == "out of memory after step 0; other processes hold 3,072 MiB of the GPU"

    def refused(*given):
        raise InputError("not predicted")

    monkeypatch.setattr(out_of_memory, "step_memory", refused)
    assert report() == "out of memory after step 0, with batches of 8 × 12 tokens"


def test_of_two_trainings_on_one_gpu_each_has_what_the_other_leaves(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 15 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)
    assert out_of_memory.memory_limit(gpu) == 35 * 2**30 and out_of_memory.held_by_others(gpu) == 44 * 2**30
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60 * 2**30)
    assert out_of_memory.held_by_others(gpu) == 0 == out_of_memory.held_by_others(torch.device("cpu"))


def test_losses_that_wait_on_a_gpu_are_read_in_one_copy(monkeypatch):
    whole = make(max_steps=8, log_every=4, evaluate=None).fit().history["train"]
    trainer, copies, tolist, item = make(max_steps=8, log_every=4, evaluate=None), [], torch.Tensor.tolist, torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: copies.append("tolist") or tolist(self))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: copies.append("item") or item(self))
    unread = []
    for step in range(1, 9):
        unread.append(trainer._update(step, trainer.config.rate(step, 8), trainer.data.of_step(step)))
    trainer._unread, trainer.step = unread, 8
    copies.clear()
    trainer._read_losses()
    assert copies == ["tolist"] and trainer.history["train"] == whole and not trainer._unread


@pytest.mark.parametrize("capability, expected", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_without_bfloat16_units_trains_in_float32_unasked(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert uses_bfloat16("auto", torch.device("cuda")) == expected
    assert uses_bfloat16("bf16", torch.device("cuda")) and not uses_bfloat16("fp32", torch.device("cuda"))


def test_nan_evaluation():
    with pytest.raises(RunFailed, match="evaluation at step 7 gave no finite loss"):
        make(evaluate=lambda model, objective: {"loss": float("nan")}).fit()


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
    trainer = make(tmp_path, evaluate=lambda model, objective: {"loss": next(losses)}, eval_every=4, keep_checkpoints=1)
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
    result = make(tmp_path, evaluate=lambda model, objective: {"loss": next(count)}, eval_every=4, early_stop_patience=2).fit()
    assert (result.stopped, result.steps) == ("early_stop", 16)
    again = make(tmp_path, evaluate=lambda model, objective: {"loss": next(count)}, eval_every=4, early_stop_patience=2)
    assert again.fit().stopped == "early_stop"


def scores(*values, names=("loss", "accuracy")):
    rows = iter(values)
    return lambda model, objective: dict(zip(names, next(rows)))


def test_best_metric_decides_on_the_best_the_early_stop_and_what_is_loaded(tmp_path):
    "The loss is lowest at step 4, the accuracy highest at step 8; two evaluations later the run stops."
    rows = [(1.0, 0.5), (2.0, 0.9), (3.0, 0.8), (3.5, 0.9), (0.1, 1.0)]
    settings = dict(eval_every=4, keep_checkpoints=1, best_metric="accuracy", best_mode="max")
    trainer = make(tmp_path, evaluate=scores(*rows), early_stop_patience=2, **settings)
    result = trainer.fit()
    assert (result.stopped, result.steps, result.best["step"]) == ("early_stop", 16, 8)
    assert checkpoints.saved_steps(tmp_path) == [8, 16] and trainer.load_best() == result.best
    by_loss = make(evaluate=scores(*rows), eval_every=4).fit()
    assert by_loss.best["step"] == 20
    with pytest.raises(InputError, match="best_metric is loss here and accuracy there"):
        make(tmp_path, evaluate=scores(*rows), early_stop_patience=2, eval_every=4).fit()


def test_an_evaluation_without_a_loss_is_enough():
    result = make(evaluate=scores((0.1,), (0.3,), names=("f1",)), eval_every=10, best_metric="f1", best_mode="max").fit()
    assert result.best == {"step": 20, "tokens": result.tokens, "f1": 0.3}


def test_an_unknown_metric_is_refused_at_the_first_evaluation():
    trainer = make(evaluate=scores((1.0, 0.5)), eval_every=4, best_metric="rougeL")
    with pytest.raises(InputError, match="^TrainConfig: best_metric is 'rougeL', but the evaluation returned loss, accuracy$"):
        trainer.fit()
    assert trainer.step == 4
    with pytest.raises(RunFailed, match="step 4 gave no finite accuracy"):
        make(evaluate=scores((1.0, float("inf"))), eval_every=4, best_metric="accuracy").fit()


def test_checkpoints_from_before_a_setting_existed_resume(tmp_path):
    make(tmp_path, max_steps=6).fit()
    newest = checkpoints.load_latest(tmp_path)
    for name in ("best_metric", "best_mode", "max_epochs"):
        del newest.state["config"][name]
    trainer = make(max_steps=6)
    trainer.load_state(newest)
    assert trainer.step == 6
    with pytest.raises(InputError, match="best_mode is max here and min there"):
        make(max_steps=6, best_mode="max").load_state(newest)


def test_an_evaluation_may_use_the_modules_of_the_objective():
    objective, seen = TinyObjective(), []

    def evaluate(model, given):
        seen.append(given is objective and not given.training)
        out = given.loss(model, ShuffledBatches()[10_000])
        return {"loss": out.total / out.weight}

    assert make(objective=objective, evaluate=evaluate, eval_every=10).fit().best["loss"] > 0 and seen == [True, True]


def test_state_goes_from_one_trainer_to_another():
    "Copied: what one of them trains afterwards does not change the other."
    first, second, alone = make(), make(), make()
    for trainer, steps in ((first, 5), (alone, 12)):
        for _ in range(steps):
            trainer.train_step()
    second.load_state(first.state())
    for _ in range(3):
        first.train_step()
    for _ in range(7):
        second.train_step()
    assert weights_hash(second.model, second.objective) == weights_hash(alone.model, alone.objective)
    assert second.history == alone.history and second.tokens == alone.tokens
    with pytest.raises(InputError, match="^the checkpoint is of a training run with other settings: seed is 1 here and 5 there$"):
        make(seed=1).load_state(first.state())


@pytest.mark.parametrize(("epochs", "accumulation", "steps"), [(1, 1, 7), (1, 2, 4), (2.5, 2, 9), (0.1, 1, 1), (3, 7, 3)])
def test_max_epochs(epochs, accumulation, steps):
    "An epoch is seven batches."
    batches = ShuffledBatches()
    batches.batches_per_epoch = workers.BATCHES_PER_EPOCH
    length = dict(max_steps=None, max_epochs=epochs, accumulation=accumulation)
    assert make(batches=batches, **length).total_steps == steps
    batches = [ShuffledBatches()[i] for i in range(7)]
    trainer = make(batches=batches, **length)
    assert trainer.fit().steps == trainer.total_steps == steps  # a list is read again from the start
    assert trainer.data.last[0] == steps * accumulation - 1


def test_lengths_are_refused():
    with pytest.raises(InputError, match="exactly one of max_steps, max_tokens and max_epochs"):
        config(max_steps=3, max_epochs=1)
    with pytest.raises(InputError, match="max_epochs needs batches with batches_per_epoch or a length"):
        make(max_steps=None, max_epochs=1)
    with pytest.raises(InputError, match="max_epochs"):
        config(max_steps=None, max_epochs=0)


def test_kill_rule():
    baseline = {"x": [0, 10_000], "y": [0.1, 0.1]}
    result = make(callbacks=[KillRule(baseline, delta=0.5, after=600)], eval_every=2).fit()
    assert result.stopped == "killed" and result.tokens >= 600 and result.steps < 20


def test_kill_rule_in_points_of_perplexity_over_a_number_of_tokens():
    def stopped(losses, **rule):
        values = iter(losses)
        baseline = {"x": [0, 10_000], "y": [math.log(100), math.log(100)]}
        rule = KillRule(baseline, **{"delta": 20, "perplexity": True, **rule})
        result = make(evaluate=lambda model, objective: {"loss": next(values)}, callbacks=[rule], eval_every=4).fit()
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
        make(tmp_path / "c", callbacks=[Signal(11)], telemetry=Telemetry(tmp_path)).fit()
    make(tmp_path / "c", telemetry=Telemetry(tmp_path)).fit()
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
        without_loss = {"train": [], "eval": [{"step": 1, "accuracy": 0.5}]}
        for history in ({"train": [], "eval": []}, without_loss, make().fit().history):
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
