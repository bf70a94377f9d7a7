"""What the processes of the interruption tests do. They are forked from a server that has imported this module once."""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import torch
import torch._dynamo  # noqa: F401  (the first optimizer would load it: one second in every process)
from torch import nn

from modernllm.core.seeding import generator
from modernllm.core.telemetry import Telemetry
from modernllm.training import checkpoint as checkpoints
from modernllm.training.callbacks import Callback
from modernllm.models.config import ModernLLMConfig
from modernllm.models.logprobs import linear_logprobs
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.objectives import LossOutput, Objective
from modernllm.training.trainer import TrainConfig, Trainer

VOCABULARY, WIDTH, TIME, BATCH, BATCHES_PER_EPOCH = 29, 16, 12, 4, 7


class TinyModel(nn.Module):
    "Predicts the next token from this one, with dropout."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.3), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids):
        return self.layers(self.table(ids))


class TinyObjective(Objective):
    "Next token, through a trainable module of its own; the weight differs from batch to batch."

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.projector = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1))

    def loss(self, model, batch):
        hidden = self.projector(model(batch["input_ids"])).flatten(0, 1)
        targets = batch["targets"].flatten()
        logprobs = linear_logprobs(hidden, model.head.weight, targets, reduction="sum")
        weight = (targets >= 0).sum()
        return LossOutput(-logprobs, weight, {"squares": hidden.detach().float().square().sum()})


class ShuffledBatches:
    "Documents in an order that changes each epoch; what is handed out is written to a log."

    tokens_per_batch = BATCH * TIME

    def __init__(self, log=None, pause=0.0):
        self.documents = torch.randint(0, VOCABULARY, (BATCHES_PER_EPOCH * BATCH, TIME + 1), generator=generator(7))
        self.log, self.pause = log, pause

    def __getitem__(self, i):
        time.sleep(self.pause)
        epoch, within = divmod(i, BATCHES_PER_EPOCH)
        order = torch.randperm(len(self.documents), generator=generator(3, epoch))
        chosen = self.documents[order[within * BATCH:(within + 1) * BATCH]]
        targets = chosen[:, 1:].clone()
        targets[0, : i % TIME] = -100
        if self.log:
            digest = hashlib.sha256(chosen.numpy().tobytes()).hexdigest()[:16]
            with open(self.log, "a") as file:
                file.write(f"{i} {digest}\n")
        return {"input_ids": chosen[:, :-1], "targets": targets}


def evaluate_on(batch, kill=False, pause=0.0):
    def evaluate(model, objective):
        time.sleep(pause)
        if kill:
            die()
        torch.rand(1)  # an evaluation may use random numbers without any consequence
        hidden = model(batch["input_ids"]).flatten(0, 1)
        return {"loss": -linear_logprobs(hidden, model.head.weight, batch["targets"].flatten()).mean()}
    return evaluate


def weights_hash(*modules):
    tensors = [t.detach().contiguous().numpy().tobytes() for m in modules for t in m.state_dict().values()]
    return hashlib.sha256(b"".join(tensors)).hexdigest()


def config(**changes):
    fields = dict(max_steps=300, learning_rate=3e-3, accumulation=2, seed=5, eval_every=7, log_every=4,
                  checkpoint_every_steps=3, checkpoint_every_minutes=0, keep_checkpoints=2, trackers=())
    return TrainConfig(**{**fields, **changes})


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_inside_checkpoint(place):
    "Arrange the death of this process at one of several places within the writing of a checkpoint."
    if place == "rename":
        checkpoints._sync_folder = lambda folder: die()
        return
    if place == "removal":
        remove = shutil.rmtree
        shutil.rmtree = lambda path, **kw: die() if ".dead" in str(path) else remove(path, **kw)
        return
    real = checkpoints._write

    def half(folder, name, data):
        if name != place:
            return real(folder, name, data)
        (folder / name).write_bytes(bytes(data)[: len(data) // 2])
        die()

    checkpoints._write = half


def train(folder, log, result, *, pause=0.0, die_at=None, telemetry=None, dropout=True, threads=1, **changes):
    "One session of a training; writes `result` when it reaches the end."
    torch.set_num_threads(threads)
    if die_at and die_at != "evaluation":
        die_inside_checkpoint(die_at)
    model, objective = TinyModel(), TinyObjective()
    for module in [*model.modules(), *objective.modules()]:
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    evaluate = evaluate_on(ShuffledBatches()[10_000], kill=die_at == "evaluation", pause=pause)
    trainer = Trainer(model, objective, ShuffledBatches(log, pause), config(**changes), evaluate=evaluate, callbacks=[],
                      folder=folder, telemetry=Telemetry(telemetry) if telemetry else None)
    out = trainer.fit()
    found = {"weights": weights_hash(model, objective), "history": out.history, "best": out.best, "tokens": out.tokens}
    Path(result).write_text(json.dumps(found))


def train_distributed(rank, world, port, result, **changes):
    "One process of several."
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
    train(None, f"{result}.{rank}.log", f"{result}.{rank}", dropout=False, **changes)


class Signal(Callback):
    "Sends a signal to this process after a step."

    def __init__(self, step, number=signal.SIGINT):
        self.step, self.number = step, number

    def step_end(self, trainer, row):
        if row["step"] == self.step:
            os.kill(os.getpid(), self.number)


def tiny_decoder(**changes):
    torch.manual_seed(0)
    fields = dict(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, residual_dropout=0.1,
                  max_position_embeddings=TIME)
    return ModernDecoderLM(ModernLLMConfig(**{**fields, **changes}))


class Block(nn.Module):
    "So small that its compiled code is few kernels: each takes the C++ compiler seconds."

    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)

    def forward(self, x):
        return x + self.dropout(torch.tanh(self.linear(x)))


class BlockModel(TinyModel):
    _no_split_modules = ["Block"]

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Block(), Block())


class DieAt(Callback):
    "Ends this process in the middle of a training."

    def __init__(self, step):
        self.step = step

    def step_end(self, trainer, row):
        if row["step"] == self.step:
            die()


def train_compiled(folder, cache, die_at=None, compile="on"):
    "One session of a training of compiled blocks."
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    from torch._inductor import config as inductor

    inductor.compile_threads, inductor.cpp_cache_precompile_headers, inductor.cpp.simdlen = 1, False, 1  # less to compile
    torch.set_num_threads(1)
    fields = dict(max_steps=20, accumulation=1, eval_every=0, log_every=1, checkpoint_every_steps=5, precision="fp32",
                  compile=compile)
    trainer = Trainer(BlockModel(), TinyObjective(), ShuffledBatches(), config(**fields), folder=folder,
                      callbacks=[DieAt(die_at)], telemetry=Telemetry(folder))
    losses = [row["loss"] for row in trainer.fit().history["train"]]
    found = {"losses": losses, "weights": weights_hash(trainer.model, trainer.objective)}
    (folder / "result.json").write_text(json.dumps(found))
