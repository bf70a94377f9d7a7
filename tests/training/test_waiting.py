"""Training steps on a GPU: the host waits for it neither to read a value nor to copy one.

Tensors without data, on torch's device `meta`, stand in for a GPU: whatever depends on a value fails there."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from workers import tiny_decoder

from modernllm.models import logprobs
from modernllm.models.logprobs import linear_logprobs, linear_loss
from modernllm.training import objectives, update
from modernllm.training.config import TrainConfig
from modernllm.training.objectives import Classification, LanguageModelling
from modernllm.training.update import TrainStep, Update, move_batch

META = torch.device("meta")


class NoCopies(TorchDispatchMode):
    "Fails where an operation touches a tensor of the CPU: between devices that is a copy for which the host waits."

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        places = {t.device.type for t in tree_leaves((args, kwargs, made)) if isinstance(t, torch.Tensor)}
        assert "cpu" not in places, f"{operation} on {places}"
        return made


@pytest.fixture
def accelerator(monkeypatch):
    "Of one process with a device that has neither autocast nor a fused optimizer."
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None)
    return SimpleNamespace(device=META, process_index=0, num_processes=1, no_sync=lambda module: nullcontext(),
                           reduce=lambda tensor, how: tensor.clone(), prepare=lambda optimizer: optimizer,
                           prepare_model=lambda module, **_: module)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("extras", [{}, {"label_smoothing": 0.1, "z_loss": 1e-4}])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_waits_for_nothing(accelerator, monkeypatch, documents, extras, optimizer):
    with META:
        model = tiny_decoder(residual_dropout=0.1, final_logit_softcapping=30.0).train()
        ids = torch.empty(4, 12, dtype=torch.long)
    batch = {"input_ids": ids, "targets": ids} | ({"position_ids": ids} if documents else {})
    monkeypatch.setitem(objectives._keeps_apart, model, True)  # found out once in a run
    config = TrainConfig(max_steps=2, accumulation=2, optimizer=optimizer)
    step = Update(TrainStep(model, LanguageModelling(**extras), bf16=False), config, accelerator)
    with NoCopies():
        for number in (1, 2):
            losses = step(number, 1e-3, [batch, batch])
    assert losses.sums.device == META and len(losses.names) == bool(extras)


def test_the_weight_of_labels_is_made_on_the_device():
    scores = torch.nn.Embedding(5, 3, device=META)
    batch = {"rows": torch.empty(4, dtype=torch.long, device=META), "labels": torch.empty(4, dtype=torch.long, device=META)}
    with NoCopies():
        assert Classification().loss(lambda rows: SimpleNamespace(logits=scores(rows)), batch).weight.dtype == torch.long
    one = Classification().loss(lambda rows: SimpleNamespace(logits=torch.eye(4)[rows]),
                                {"rows": torch.arange(4), "labels": torch.arange(4)})
    assert one.weight == 4 and one.metrics["accuracy"] == 4


def test_a_batch_is_copied_from_pinned_memory(monkeypatch):
    "Only to a GPU: elsewhere it is what Accelerate makes of it."
    calls, sent, rows = [], [], torch.arange(8).view(2, 4)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: calls.append(tensor) or tensor)
    monkeypatch.setattr(update, "send_to_device", lambda batch, device, non_blocking=False: sent.append(non_blocking) or batch)
    batch = {"input_ids": rows[:, :-1], "there": torch.zeros(2, device=META), "rows": None}
    assert move_batch(batch, torch.device("cpu")) is batch and not calls and sent == [False]
    moved = move_batch(batch, torch.device("cuda"))
    assert len(calls) == 1 and moved["input_ids"] is calls[0] and sent == [False, True]
    assert calls[0].is_contiguous() and calls[0].equal(rows[:, :-1])  # CUDA would wait for a copy with gaps
    assert list(moved) == list(batch) and moved["there"] is batch["there"] and moved["rows"] is None


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("extras", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}])
def test_ignored_positions_that_stay_change_nothing(monkeypatch, extras, softcap):
    "As on a GPU, on this CPU: the same loss and gradients, even with hidden states that are NaN at ignored positions."
    torch.manual_seed(0)
    targets = torch.randint(0, 11, (30,))
    targets[::3] = -100
    hidden, weight = torch.randn(30, 4).masked_fill(targets[:, None] < 0, torch.nan), torch.randn(11, 4)

    def results():
        ours, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        total, nats = linear_loss(ours, head, targets, softcap=softcap, chunk=7, **extras)
        total.backward()
        each = linear_logprobs(ours, head, targets, softcap=softcap, chunk=7)
        assert not each[::3].any()
        (each * torch.arange(30)).sum().backward()
        with torch.no_grad():
            alone = linear_logprobs(ours, head, targets, softcap=softcap, reduction="sum")
        return total.detach(), nats, each.detach(), alone, ours.grad, head.grad

    expected = results()
    monkeypatch.setattr(logprobs, "TAKES_OUT", set())
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda tensor: pytest.fail("depends on the values"))
    found = results()
    assert all(value.isfinite().all() for value in found) and not found[-2][::3].any()
    torch.testing.assert_close(found, expected)
