"""Callbacks that own weights or send a training back: killed and resumed, the result is the same."""

import pytest
import torch
from test_trainer import make
from workers import ShuffledBatches, TinyObjective, weights_hash

from modernllm.core.config import InputError, RunFailed
from modernllm.training import checkpoint as checkpoints
from modernllm.training.averaging import EMA, LastAverage
from modernllm.training.callbacks import Callback
from modernllm.training.guard import SpikeGuard
from modernllm.training.objectives import LanguageModelling
from modernllm.training.data_order import data_position


class Crash(Callback):
    def __init__(self, *steps):
        self.steps = list(steps)

    def step_end(self, trainer, row):
        if row["step"] in self.steps:
            self.steps.remove(row["step"])
            raise KeyError


def tensors_of(trainer):
    return {name: t for c in trainer.callbacks for name, t in c.tensors().items()}


@pytest.mark.parametrize("average", [lambda: EMA(0.9), lambda: LastAverage(3, every=2)])
def test_averages_resume_bit_for_bit(tmp_path, average):
    alone = make(tmp_path / "alone", callbacks=[average()])
    whole = alone.fit()
    with pytest.raises(KeyError):
        make(tmp_path / "cut", callbacks=[average(), Crash(11)]).fit()
    resumed = make(tmp_path / "cut", callbacks=[average()])
    assert resumed.fit().history == whole.history
    ours, theirs = tensors_of(resumed), tensors_of(alone)
    assert ours and ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_best_weights_are_the_averaged_ones(tmp_path):
    trainer = make(tmp_path, callbacks=[EMA(0.9)])
    trainer.fit()
    row = trainer.load_best()
    trainer.model.eval()
    assert trainer.evaluate(trainer.model, trainer.objective)["loss"].item() == row["loss"]


class Poison(TinyObjective):
    "A loss that is no number for the batches of one document."

    def loss(self, model, batch):
        out = super().loss(model, batch)
        bad = torch.equal(batch["input_ids"], ShuffledBatches()[27]["input_ids"])
        return out._replace(total=out.total * (float("nan") if bad else 1.0))


def guarded(folder, *crashes, **changes):
    trainer = make(folder, objective=Poison(), callbacks=[SpikeGuard(window=2), Crash(*crashes)], keep_checkpoints=4, **changes)
    return trainer


def test_a_rewind_survives_kills(tmp_path):
    "Before the bad step, right after going back, and later: the same weights. So with other checkpoints to go back to."
    alone = guarded(tmp_path / "alone")
    whole = alone.fit()
    assert alone.data.skips == [[11, 15]] and whole.steps == 20
    other = {"checkpoint_every_steps": 5}
    for name, crashes, changes in (("early", [13], {}), ("back", [11], {}), ("late", [18], {}), ("other", [], other)):
        trainer = guarded(tmp_path / name, *crashes, **changes)
        for _ in crashes:
            with pytest.raises(KeyError):
                trainer.fit()
            trainer = guarded(tmp_path / name, **changes)
        assert trainer.fit().history == whole.history
        assert trainer.data.skips == alone.data.skips
        assert weights_hash(trainer.model, trainer.objective) == weights_hash(alone.model, alone.objective)


def test_a_spike_is_gone_around_too(tmp_path):
    class Spike(TinyObjective):
        "Ten times the loss for the batches of one document."

        def loss(self, model, batch):
            out = super().loss(model, batch)
            bad = torch.equal(batch["input_ids"], ShuffledBatches()[27]["input_ids"])
            return out._replace(total=out.total * (10.0 if bad else 1.0))

    trainer = make(tmp_path, objective=Spike(), callbacks=[SpikeGuard(recent=8, window=1)], log_every=1)
    result = trainer.fit()
    losses = [row["loss"] for row in result.history["train"]]
    assert trainer.data.skips and result.steps == 20 and len(losses) == 20 and max(losses) < 2 * losses[0]
    (first, last), = trainer.data.skips
    assert last - first == 2 and first <= 13 <= last + 1  # around the step that read batch 27


def test_a_guard_gives_up(tmp_path):
    class Never(TinyObjective):
        def loss(self, model, batch):
            out = super().loss(model, batch)
            return out._replace(total=out.total * float("nan"))

    with pytest.raises(RunFailed, match="after 3 rollbacks"):
        make(tmp_path, objective=Never(), callbacks=[SpikeGuard(window=1)]).fit()
    with pytest.raises(InputError, match="folder"):
        make(callbacks=[SpikeGuard()]).fit()


def test_places_never_repeat():
    skips = [[3, 5], [4, 9], [1, 1], [20, 22]]
    found = [data_position(n, skips) for n in range(1, 40)]
    passed = {p for first, last in skips for p in range(first, last + 1)}
    assert found == sorted(set(range(found[-1] + 1)) - passed)


def test_checkpoints_without_tensors_are_as_before(tmp_path):
    make(tmp_path).fit()
    newest = checkpoints.checkpoint_path(tmp_path, checkpoints.saved_steps(tmp_path)[-1])
    assert {p.name for p in newest.iterdir()} == {"weights.safetensors", "optimizer.pt", "state.json", "manifest.json"}


@pytest.mark.parametrize("wrong", [lambda: EMA(1.0), lambda: LastAverage(0), lambda: SpikeGuard(window=0),
                                   lambda: LanguageModelling(label_smoothing=1.0), lambda: LanguageModelling(z_loss=-1)])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError):
        wrong()
