"""Forward and backward pass replayed as a CUDA graph: losses of compiled training, the same bits after resuming.

There is no GPU here: a stand-in of the capture computes at each replay, from the graph's buffers into its tensors."""

import pytest
import torch
import torch._dynamo
from peft import LoraConfig, get_peft_model
from torch._dynamo.backends.debugging import aot_eager
from workers import ShuffledBatches, config, tiny_decoder, weights_hash

from modernllm.core.config import RunFailed
from modernllm.training import compiling, cuda_graphs
from modernllm.training.callbacks import Callback
from modernllm.training.cuda_graphs import not_replayable
from modernllm.training.objectives import LanguageModelling
from modernllm.training.trainer import Trainer
from modernllm.training.update import TrainStep


def copy_out(kept, new):
    for place, value in zip(
        (kept.total, kept.weight, *kept.metrics.values()), (new.total, new.weight, *new.metrics.values())
    ):
        place.copy_(value)


class Captures:
    "Stands in for `capture`."

    def __init__(self):
        self.replays = 0

    def __call__(self, compute, device):
        out = compute()

        def replay():
            self.replays += 1
            copy_out(out, compute())

        return replay, out


@pytest.fixture(autouse=True)
def captures(monkeypatch):
    found = Captures()
    monkeypatch.setattr(compiling, "BACKEND", {"backend": aot_eager})
    monkeypatch.setattr(cuda_graphs, "DEVICES", {"cpu"})
    monkeypatch.setattr(cuda_graphs, "capture", found)
    torch._dynamo.reset()
    return found


class Shorter(ShuffledBatches):
    "Every third batch has shorter rows."

    def __getitem__(self, i):
        return {name: values[:, : 12 - (i % 3 == 1)] for name, values in super().__getitem__(i).items()}


def make(model=None, batches=None, objective=None, folder=None, callbacks=(), **changes):
    fields = dict(max_steps=8, accumulation=1, eval_every=0, log_every=1, precision="fp32", compile="on") | changes
    return Trainer(model or tiny_decoder(), objective or LanguageModelling(), batches or ShuffledBatches(), config(**fields),
                   folder=folder, callbacks=callbacks)  # fmt: skip


def trained(monkeypatch, replays=True, **given):
    if not replays:
        monkeypatch.setattr(cuda_graphs, "DEVICES", set())
    trainer = make(**given)
    losses = [row["loss"] for row in trainer.fit().history["train"]]
    monkeypatch.setattr(cuda_graphs, "DEVICES", {"cpu"})
    return losses


@pytest.mark.parametrize("given", [{}, {"accumulation": 3}, {"batches": Shorter(), "accumulation": 2}, {"optimizer": "muon"},
                                   {"objective": LanguageModelling(label_smoothing=0.1, z_loss=1e-3)}, {"precision": "bf16"}],
                         ids=["plain", "accumulation", "other shapes between", "muon", "metrics", "bfloat16"])  # fmt: skip
def test_losses_are_those_without_a_graph(monkeypatch, captures, capsys, given):
    without = trained(monkeypatch, replays=False, **given)
    assert captures.replays == 0 and "CUDA graph: none without a GPU" in capsys.readouterr().err
    rough = given.get("precision") == "bf16"  # a gradient lies otherwise in memory and is summed in another order
    assert trained(monkeypatch, **given) == pytest.approx(without, rel=1e-3 if rough else 1e-6)
    micro = 8 * given.get("accumulation", 1)
    assert captures.replays == 1 + (micro - micro // 3 if "batches" in given else micro)  # one of the guard
    assert "CUDA graph: replayed\n" in capsys.readouterr().err


def test_resumed_training_ends_in_the_same_bits(tmp_path, captures):
    class Fails(Callback):
        def step_end(self, trainer, row):
            if row["step"] == 5:
                raise RunFailed("here")

    whole = make()
    whole.fit()
    with pytest.raises(RunFailed, match="here"):
        make(folder=tmp_path, callbacks=[Fails()], checkpoint_every_steps=3).fit()
    before = captures.replays
    resumed = make(folder=tmp_path, checkpoint_every_steps=3)
    resumed.fit()
    assert weights_hash(resumed.model) == weights_hash(whole.model) and captures.replays == before + 1 + 5


def stale_batch(compute, device):
    out = compute()

    def replay():
        out.total.fill_(1.0)

    return replay, out


def not_permitted(compute, device):
    compute()
    raise RuntimeError("operation not permitted when stream is capturing\nat line 3")


@pytest.mark.parametrize(
    "stand_in, words",
    [
        (stale_batch, "loss or gradients of its first replay differ by "),
        (not_permitted, "RuntimeError: operation not permitted when stream is capturing at line 3"),
    ],
)
def test_a_wrong_or_failing_capture_leaves_compiled_training_as_it_is(monkeypatch, capsys, stand_in, words):
    without = trained(monkeypatch, replays=False)
    capsys.readouterr()
    monkeypatch.setattr(cuda_graphs, "capture", stand_in)
    assert trained(monkeypatch) == without
    line = capsys.readouterr().err
    assert f"CUDA graph: {words}" in line and line.count("\n") == 1, line


def test_weights_that_are_moved_leave_the_graph(captures):
    class Moves(Callback):
        def step_end(self, trainer, row):
            if row["step"] == 4:
                weight = trainer.model.lm_head.weight
                weight.data = weight.data.clone()

    whole, moved = make(), make(callbacks=[Moves()])
    whole.fit(), moved.fit()
    weights = [trainer.model.state_dict() for trainer in (whole, moved)]
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
    assert captures.replays == (1 + 8) + (1 + 4)


class Scheduled(LanguageModelling):
    "Its loss depends on how often it was computed."


def test_what_may_decide_from_batch_to_batch_is_not_captured(monkeypatch):
    def why(model=None, objective=None, batch=None, processes=1):
        step = TrainStep(model or tiny_decoder(), objective or LanguageModelling(), bf16=False)
        return not_replayable(step, batch or ShuffledBatches()[0], processes)

    recomputing, hooked = tiny_decoder(), tiny_decoder()
    recomputing.gradient_checkpointing_enable()
    hooked.model.layers[0].register_forward_hook(lambda *given: None)
    adapted = get_peft_model(tiny_decoder(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert why() == "" and "modified" in why(hooked) and "computes activations again" in why(recomputing)
    assert "experts" in why(tiny_decoder(num_local_experts=2, num_experts_per_tok=1))
    assert why(adapted).startswith("LanguageModelling of PeftModel") and why(objective=Scheduled()).startswith(
        "Scheduled"
    )
    assert why(processes=2) == "gradients are reduced over processes"
    assert (
        why(batch=ShuffledBatches()[0] | {"step": 3})
        == "its batches have a mask, whose content decides, or hold more than tensors"
    )
    assert why(batch=ShuffledBatches()[0] | {"attention_mask": torch.ones(4, 12)}).startswith("its batches have a mask")
    monkeypatch.setattr(cuda_graphs, "LARGEST", 10)
    assert why() == "it has more than 10 parameters"
