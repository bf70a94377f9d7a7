"""Compiled training: the losses of eager training, the same bits after a kill, one line where it is not possible.

Where only the captured graphs matter they are run as they are (`aot_eager`): code for the CPU takes most of a minute."""

import json
import signal

import pytest
import torch
import torch._dynamo
import workers
from peft import LoraConfig, get_peft_model
from torch._dynamo.backends.debugging import aot_eager
from workers import ShuffledBatches, tiny_decoder, weights_hash

from modernllm.core.config import InputError
from modernllm.core.telemetry import Telemetry
from modernllm.models import logprobs
from modernllm.models.plain import is_unmodified
from modernllm.models.transformer import OWN_MODULES
from modernllm.training import compiling
from modernllm.training.callbacks import Callback
from modernllm.training.objectives import LanguageModelling
from modernllm.training.trainer import Trainer


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    "The graphs that were captured."
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(compiling, "BACKEND", {"backend": backend})
    torch._dynamo.reset()
    return found


class Documents(ShuffledBatches):
    "Rows of two documents."

    def __getitem__(self, i):
        batch = super().__getitem__(i)
        return batch | {"position_ids": torch.cat((torch.arange(5), torch.arange(7))).expand(4, -1)}


def make(model=None, batches=None, folder=None, compile="on", objective=None, **changes):
    fields = dict(max_steps=20, accumulation=1, eval_every=0, log_every=1, precision="fp32", compile=compile) | changes
    given = {name: fields.pop(name, default) for name, default in (("callbacks", ()), ("evaluate", None))}
    return Trainer(model or tiny_decoder(), objective or LanguageModelling(), batches or ShuffledBatches(),
                   workers.config(**fields), folder=folder, **given)


def losses(trainer):
    return [row["loss"] for row in trainer.fit().history["train"]]


def adapted():
    model = tiny_decoder()
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))


def recomputing():
    model = tiny_decoder()
    model.gradient_checkpointing_enable()
    return model


@pytest.mark.parametrize("case", [
    {"model": tiny_decoder, "accumulation": 2, "max_steps": 200}, {"model": tiny_decoder, "batches": Documents},
    {"model": adapted},
    {"model": recomputing}, {"model": lambda: tiny_decoder(attention_sinks=True), "precision": "bf16"},
], ids=["accumulation", "documents", "adapter", "recomputing", "sinks in bfloat16"])  # fmt: skip
def test_losses_are_those_of_eager_training(capsys, graphs, case):
    model, batches = case.pop("model"), case.pop("batches", ShuffledBatches)
    eager = losses(make(model(), batches(), compile="off", **case))
    assert not graphs and capsys.readouterr().err == ""
    trainer = make(model(), batches(), **case)
    rough = case.get("precision") == "bf16"
    assert losses(trainer) == pytest.approx(eager, rel=2e-2 if rough else 1e-4)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("2 layers compiled in "), line
    assert len(graphs) == (2 if model is adapted else 1)  # layers share it; without embeddings to train the first has its own
    assert all(layer._compiled_call_impl is None for layer in compiling.repeated_layers(trainer.model))


@pytest.mark.parametrize("takes_out", [True, False], ids=["fewer positions", "all positions"])
@pytest.mark.parametrize("extras", [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}], ids=["plain", "smoothed"])
def test_the_loss_is_compiled_once_as_on_a_gpu(monkeypatch, capsys, graphs, takes_out, extras):
    "Each batch has another number of scored positions; these may or may not be taken out."
    model = {"final_logit_softcapping": 5.0} if extras else {}
    eager = losses(make(tiny_decoder(**model), objective=LanguageModelling(**extras), compile="off"))
    monkeypatch.setattr(compiling, "FUSES_LOSS", {"cpu"})
    if not takes_out:
        monkeypatch.setattr(logprobs, "TAKES_OUT", set())
    compiled = losses(make(tiny_decoder(**model), objective=LanguageModelling(**extras)))
    assert compiled == pytest.approx(eager, rel=1e-4)
    assert capsys.readouterr().err.startswith("2 layers compiled in ") and len(graphs) == 2


def test_a_wrong_compiled_loss_is_noticed(monkeypatch, capsys):
    monkeypatch.setattr(compiling, "FUSES_LOSS", {"cpu"})
    monkeypatch.setattr(compiling, "chunk_loss", lambda *given: (*logprobs.chunk_loss(*given)[:2], 1.01 * given[0]))
    make(max_steps=1).fit()
    assert "loss or gradients of the first step differ by" in capsys.readouterr().err


def test_experts_train_eagerly(capsys, graphs):
    eager = make(tiny_decoder(num_local_experts=2, num_experts_per_tok=1), compile="off", max_steps=2)
    asked = make(tiny_decoder(num_local_experts=2, num_experts_per_tok=1), max_steps=2)
    assert losses(eager) == losses(asked) and not graphs
    assert capsys.readouterr().err == "training is not compiled: each expert would process every token\n"


def test_killed_and_resumed_compiled_training_ends_in_the_same_bits(processes, tmp_path):
    "With real compiled code, from a cache that the three processes share."

    def run(name, **given):
        process = processes.Process(target=workers.train_compiled, args=(tmp_path / name, tmp_path / "cache"), kwargs=given)
        process.start()
        process.join()
        return process.exitcode

    assert run("plain") == 0
    assert run("killed", die_at=14) == -signal.SIGKILL and not (tmp_path / "killed/result.json").exists()
    assert run("killed") == 0
    assert run("eager", compile="off") == 0
    names = ("plain", "killed", "eager")
    whole, resumed, eager = (json.loads((tmp_path / f"{name}/result.json").read_text()) for name in names)
    assert whole == resumed and whole["weights"] != eager["weights"]
    assert whole["losses"] == pytest.approx(eager["losses"], rel=1e-4)
    events = [event for event in Telemetry.read(tmp_path / "killed") if event["kind"] == "compile"]
    assert len(events) == 2 and all(event["layers"] == 2 and 0 < event["difference"] < 1e-3 for event in events)


def test_eager_and_compiled_checkpoints_are_one(tmp_path, capsys):
    class Stop(Callback):
        def step_end(self, trainer, row):
            if row["step"] == 6:
                raise KeyError

    whole = losses(make(compile="off", max_steps=12))
    for first, second in (("off", "on"), ("on", "off")):
        with pytest.raises(KeyError):
            make(folder=tmp_path / first, compile=first, max_steps=12, callbacks=[Stop()]).fit()
        capsys.readouterr()
        trainer = make(folder=tmp_path / first, compile=second, max_steps=12)
        assert losses(trainer) == pytest.approx(whole, rel=1e-4)
        kinds = "eager and goes on compiled" if first == "off" else "compiled and goes on eager"
        line = f"the training so far was {kinds}: its results are those of neither, to rounding"
        assert capsys.readouterr().err.splitlines()[-1] == line


def test_evaluation_meets_an_ordinary_model(graphs):
    seen = []

    def evaluate(model, objective):
        seen.append(is_unmodified(model, OWN_MODULES))
        for length in (3, 5, 7):
            model(torch.zeros(1, length, dtype=torch.long))
        return {"loss": 1.0}

    make(evaluate=evaluate, eval_every=5, max_steps=10).fit()
    assert seen == [True, True] and len(graphs) == 1


def test_batches_of_other_shapes_run_eagerly(graphs, capsys):
    class Shorter(ShuffledBatches):
        def __getitem__(self, i):
            batch = super().__getitem__(i)
            return {name: values[:, : 12 - i % 3] for name, values in batch.items()}

    eager = losses(make(batches=Shorter(), compile="off", max_steps=9))
    assert losses(make(batches=Shorter(), max_steps=9)) == pytest.approx(eager, rel=1e-4) and len(graphs) == 1
    assert capsys.readouterr().err.splitlines()[1:] == ["batches of other shapes than the first one are not compiled"]


def test_a_wrong_or_failing_compiler_leaves_training_as_it_is(monkeypatch, capsys):
    def wrong(graph, inputs):
        return lambda *args: tuple(1.5 * x if x.is_floating_point() else x for x in graph(*args))

    def failing(graph, inputs):
        raise OSError("no space left\non this disk")

    eager = make(compile="off", max_steps=3)
    eager.fit()
    for backend, words in ((wrong, "loss or gradients of the first step differ by "), (failing, "no space left")):
        monkeypatch.setattr(compiling, "BACKEND", {"backend": backend})
        torch._dynamo.reset()
        trainer = make(max_steps=3)
        trainer.fit()
        line = capsys.readouterr().err
        assert line.startswith("training is not compiled: ") and words in line and line.count("\n") == 1, line
        assert weights_hash(trainer.model) == weights_hash(eager.model)


def test_a_short_training_is_not_compiled_unasked():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [compiling.wants_compiled("auto", gpu, batches) for batches in (1, 1_666, 1_667, 10**9)] == [False, False, True, True]
    assert not compiling.wants_compiled("auto", cpu, 10**9) and not compiling.wants_compiled("off", gpu, 10**9)
    assert compiling.wants_compiled("on", cpu, 1)


def test_without_a_compiler(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="'on', but there is no C\\+\\+ compiler: no-such-compiler was not found; allowed"):
        make().fit()
    make(compile="auto", max_steps=1).fit()  # a CPU: eager, without a word
    assert capsys.readouterr().err == ""
    asked = []
    monkeypatch.setattr(compiling, "wants_compiled", lambda *given: asked.append(given) or True)  # what auto is with a GPU
    make(compile="auto", max_steps=1, accumulation=2).fit()
    assert asked == [("auto", torch.device("cpu"), 2)]
    assert capsys.readouterr().err == "training is not compiled: no C++ compiler: no-such-compiler was not found\n"
    assert compiling.not_compilable(torch.nn.Linear(2, 2)) == "Linear names no repeated layers (_no_split_modules)"
    assert compiling.not_compilable(tiny_decoder(), "full") == "parameters are sharded"
