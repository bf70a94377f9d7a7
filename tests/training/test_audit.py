"""Rows of evaluation intervals: which part needs the memory, what garbage collection frees, what a log without them gives."""

import sys
import time

import pytest
import torch
from workers import ShuffledBatches, TinyModel, TinyObjective, config

from modernllm.core.callbacks import Callback
from modernllm.core.telemetry import Telemetry
from modernllm.training import audit
from modernllm.training.allocator import collect_garbage
from modernllm.training.audit import FIELDS, Audit, audit_line, audit_rows
from modernllm.training.trainer import Trainer


class Circle:
    def __init__(self, held):
        self.held, self.itself = held, self


@pytest.mark.skipif(sys.platform != "linux", reason="only there memory goes back at once")
def test_memory_of_evaluation_and_garbage_is_seen(tmp_path):
    def evaluate(model, objective):
        Circle(torch.ones(2**24))  # 64 MiB
        return {"loss": 1.0}

    collect_garbage(torch.device("cpu"))
    Trainer(TinyModel(), TinyObjective(), ShuffledBatches(), config(max_steps=4, eval_every=2), evaluate=evaluate,
            callbacks=[Audit()], telemetry=Telemetry(tmp_path)).fit()
    rows = audit_rows(tmp_path)
    assert [row["step"] for row in rows] == [2, 4] and all(list(row) == list(FIELDS) for row in rows)
    assert all(row["eval_peak_mb"] > row["train_peak_mb"] + 50 and row["freed_mb"] > 50 for row in rows)
    assert audit_line(rows).startswith("rounds: 2; training ")


class Slow(Callback):
    "Takes a while in the first step, and fails in the third."

    def updated(self, trainer):
        time.sleep(0.5 * (trainer.step == 1))
        if trainer.step == 3:
            raise KeyError


def a_training(folder, *callbacks):
    return Trainer(TinyModel(), TinyObjective(), ShuffledBatches(), config(max_steps=4, eval_every=4, checkpoint_every_steps=1),
                   evaluate=lambda model, objective: {"loss": 1.0}, callbacks=[Audit(), *callbacks], folder=folder,
                   telemetry=Telemetry(folder))


def test_an_interrupted_round_holds_what_its_checkpoint_holds(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(audit, "peak_mb", lambda: 1e6)
        with pytest.raises(KeyError):
            a_training(tmp_path, Slow()).fit()
    a_training(tmp_path).fit()
    row, = audit_rows(tmp_path)
    assert row["step"] == 4 and row["train_seconds"] > 0.5 and row["eval_seconds"] < 0.5
    assert row["train_peak_mb"] == 1e6 > row["eval_peak_mb"]


def test_garbage_is_collected_once_at_an_evaluation(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(audit, "collect_garbage", lambda device: calls.append(device) or 0)
    a_training(tmp_path).fit()
    assert len(calls) == 2  # before the first step, and after the only evaluation


def test_a_log_without_rounds_has_no_rows(tmp_path):
    Telemetry(tmp_path).event("step", step=1)
    assert audit_rows(tmp_path) == []
