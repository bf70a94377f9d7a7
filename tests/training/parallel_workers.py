"What the processes of the tests of several processes do: many small trainings in one start."

import json
import os
import signal
from pathlib import Path

import torch
import torch.distributed.fsdp  # noqa: F401  (here, so that it is loaded once and not in every process)
import torch.distributed.tensor  # noqa: F401
from torch import nn
from workers import Signal

from modernllm.core.config import InputError, RunFailed
from modernllm.core.seeding import generator
from modernllm.core.telemetry import Telemetry
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training import compiling
from modernllm.training.averaging import EMA, LastAverage
from modernllm.training.config import TrainConfig
from modernllm.training.guard import SpikeGuard
from modernllm.training.objectives import LanguageModelling
from modernllm.training.parallel import check_same_step, is_sharded
from modernllm.training.trainer import Trainer

BAD = 5  # a batch of the third step, which the second of two processes gets


class Windows:
    "Random tokens; a batch has fewer targets than the one before."

    def __getitem__(self, i):
        ids = torch.randint(0, 61, (2, 13), generator=generator(0, i))
        targets = ids[:, 1:].clone()
        targets[0, : i % 12] = -100
        return {"input_ids": ids[:, :-1], "targets": targets}


class Projected(LanguageModelling):
    "With a module of its own; a loss that is no number for one batch."

    def __init__(self, poisoned):
        super().__init__()
        torch.manual_seed(2)
        self.poisoned, self.projector = poisoned, nn.Linear(32, 3)

    def loss(self, model, batch):
        out = super().loss(model, batch)
        total = out.total + self.projector(model.model.embed_tokens.weight).square().mean()
        bad = self.poisoned and torch.equal(batch["input_ids"], Windows()[BAD]["input_ids"])
        return out._replace(total=total * (float("nan") if bad else 1.0))


def evaluate(model, objective):
    out = LanguageModelling().loss(model, Windows()[1000])
    return {"loss": out.total / out.weight}


def decoder(**fields):
    torch.manual_seed(0)
    fields |= dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                  intermediate_size=48, max_position_embeddings=16)
    return ModernDecoderLM(ModernLLMConfig.checked(**fields))


def trainer(folder=None, *, poisoned=False, callbacks=(), evaluate=evaluate, experts=0, telemetry=None, **changes):
    fields = dict(max_steps=6, learning_rate=3e-3, eval_every=3, log_every=1, precision="fp32", grad_clip=0.5, keep_checkpoints=9,
                  checkpoint_every_steps=1, checkpoint_every_minutes=0, trackers=())
    return Trainer(decoder(num_local_experts=experts), Projected(poisoned), Windows(), TrainConfig(**{**fields, **changes}),
                   evaluate=evaluate, callbacks=[*callbacks], folder=folder, telemetry=telemetry)


def averages():
    return [EMA(0.5), LastAverage(2, every=2)]


def of(result):
    return {"history": result.history, "stopped": result.stopped, "steps": result.steps}


def message(error, call, *args):
    try:
        call(*args)
    except error as caught:
        return str(caught)


def share(trainer):
    "Which part of all parameters this process holds."
    weights = [*trainer.model.parameters(), *trainer.objective.parameters()]
    return sum(p.to_local().numel() for p in weights) / sum(p.numel() for p in weights)


def interrupted(training):
    try:
        training.fit()
    except KeyboardInterrupt:
        return training.step


def join(rank, port):
    "Become one of two processes."
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)


def compiled(rank, port, folder):
    "One of two processes with whole parameters: eager, then compiled, in graphs that are run as they are."
    join(rank, port)
    compiling.BACKEND, compiling.missing_compiler = {"backend": "aot_eager"}, lambda device: ""
    fields = dict(max_steps=3, eval_every=0, checkpoint_every_steps=0, accumulation=2)
    facts, telemetry = {"eager": of(trainer(compile="off", **fields).fit())}, Telemetry(folder / f"log {rank}")
    facts["compiled"] = of(trainer(compile="on", telemetry=telemetry, **fields).fit())
    telemetry.close()
    events = Telemetry.read(folder / f"log {rank}")
    facts["events"] = [event for event in events if event["kind"] == "compile"]
    Path(folder / f"compiled {rank}.json").write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()


def two(rank, port, folder):
    "One of two processes; `folder` has the checkpoints of `one`."
    join(rank, port)
    signal.signal(signal.SIGTERM, lambda *_: None)  # the interruption that both agree on ends one training, not the process
    facts, shared = {}, dict(sharding="full")

    for optimizer in ("adamw", "muon"):
        training = trainer(callbacks=averages(), optimizer=optimizer, **shared)
        facts[f"share of {optimizer}"] = share(training)
        facts[optimizer] = of(training.fit())
        assert not any(is_sharded(p) for p in training.model.parameters())
        if rank == 0 and optimizer == "muon":
            training.model.save_pretrained(folder / "model")
            torch.save(training.model.state_dict(), folder / "model.pt")
    facts["experts"] = of(trainer(experts=4, **shared).fit())
    facts["plain"] = of(trainer(callbacks=averages(), accumulation=1).fit())

    told = trainer(folder / "from two", callbacks=[*averages(), Signal(3 if rank == 1 else 99)], optimizer="muon", **shared)
    facts["interrupted at"] = interrupted(told)
    for name, changes in (("one to two", shared), ("one to two plain", {})):
        facts[name] = of(trainer(folder / name, callbacks=averages(), optimizer="muon", **changes).fit())

    facts["no number"] = message(RunFailed, trainer(poisoned=True, **shared).fit)
    guarded = trainer(folder / "guarded", poisoned=True, callbacks=[SpikeGuard(window=1)], **shared)
    facts["guarded"] = of(guarded.fit()) | {"skips": guarded.data.skips}

    losses = iter([1.0, 2.0 - 1.5 * rank, 3.0])  # the second process sees no reason to stop
    stopping = dict(evaluate=lambda model, objective: {"loss": next(losses)}, eval_every=1, early_stop_patience=1)
    facts["early stop"] = of(trainer(**stopping, **shared).fit())
    facts["other folder"] = message(InputError, check_same_step, rank, "folder")
    Path(folder / f"{rank}.json").write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()
