"What the processes of the kill test do."

import os
import signal

import torch

from modernllm.core.seeding import generator
from modernllm.distill.ternary_student import ternary_student
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.callbacks import Callback
from modernllm.training.config import TrainConfig
from modernllm.training.objectives import LanguageModelling
from modernllm.training.trainer import Trainer


class Rows:
    "Batch i: random tokens."

    def __getitem__(self, i):
        ids = torch.randint(0, 40, (2, 9), generator=generator(0, i))
        return {"input_ids": ids[:, :-1], "targets": ids[:, 1:]}


class Die(Callback):
    "Kill this process in the middle of a step."

    def __init__(self, step):
        self.step = step

    def updated(self, trainer):
        if trainer.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, out, die_at=None):
    "Eight steps of a student that is ternary from the sixth on."
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model, warmup = ternary_student(ModernDecoderLM(ModernLLMConfig(**shape, attention_dropout=0.2)), 5, eight_bit_backward=True)
    config = TrainConfig(max_steps=8, warmup_steps=0, precision="fp32", checkpoint_every_steps=3, checkpoint_every_minutes=0,
                         eval_every=2, log_every=1)

    def evaluate(model, objective):
        with torch.no_grad():
            loss = objective.loss(model, Rows()[99])
        return {"loss": loss.total.item() / int(loss.weight)}

    trainer = Trainer(model, LanguageModelling(), Rows(), config, evaluate=evaluate, callbacks=[warmup, Die(die_at)],
                      folder=folder)
    history = trainer.fit().history
    torch.save({"model": model.state_dict(), "history": [row["loss"] for row in (*history["train"], *history["eval"])]}, out)
