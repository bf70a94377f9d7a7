"""What the processes of the interrupted distillations do. They are forked from a server that has imported this module once."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import torch

from modernllm.core.telemetry import Telemetry
from modernllm.data.corpus import TokenSplit
from modernllm.data.tokenizers import SMALLEST, train_bpe
from modernllm.distill import student_training
from modernllm.distill.distillation import DistillationSettings
from modernllm.distill.search import search
from modernllm.distill.search_space import SearchSettings, narrowed, widest_signal
from modernllm.distill.signals import OnlineTeacher
from modernllm.distill.student import new_student
from modernllm.distill.student_training import StudentSettings, train_student
from modernllm.distill.teachers import TeacherSettings, asked_signal, recorded_teacher
from modernllm.distill.ternary_student import ternary_student
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.audit import Audit
from modernllm.training.callbacks import Callback

TEACHER = ModernLLMConfig(vocab_size=SMALLEST, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3,
                          max_position_embeddings=16)
LOSS = DistillationSettings(hidden="cosine", layers="uniform", projector="ensemble", target_weight=0.1, student_noise=0.1)
SETTINGS = StudentSettings(context=16, batch_size=4, eval_tokens=40)


def teacher_model():
    torch.manual_seed(1)
    return ModernDecoderLM(TEACHER)


def tokenizer():
    return train_bpe(["some text"], SMALLEST)


def split(name, n, seed):
    tokens = np.random.default_rng(seed).integers(8, SMALLEST, n).astype(np.uint16)
    tokens[0] = 1
    return TokenSplit("noise", name, tokens=tokens, document_starts=np.array([0]), vocab_size=SMALLEST, n_bytes=2 * n, n_words=n,
                      n_line_ends=0, fingerprint="f")


def student():
    return new_student("layers=2 hidden=16 heads=2", TEACHER, tokenizer(), context=16, seed=0)


def signals(folder, model, train):
    "The teacher as it is read from a folder."
    asked = asked_signal(LOSS, TeacherSettings(k=8), student().config, TEACHER, recorded=True)
    origin = {"name": "teacher", "sha256": "a" * 64}
    return recorded_teacher(folder, lambda: model, asked, origin, SETTINGS.blocks(train, 0), tokenizer())


class Noted(Callback):
    "Writes down what was trained, projectors included, and when a step was done."

    def __init__(self, log, result):
        self.log, self.result = Path(log), Path(result)

    def step_end(self, trainer, row):
        with self.log.open("a") as file:
            file.write(f"{row['step']} {row['loss']!r}\n")

    def fit_end(self, trainer):
        from workers import weights_hash  # of tests/training, which the server of processes finds

        if trainer.step == trainer.total_steps:
            modules = trainer.model, trainer.objective.projectors
            self.result.write_text(json.dumps({"weights": weights_hash(*modules), "history": trainer.history}))


def distil(recording, folder, log, result, die_at=None):
    "One session of a ternary student's distillation from a recording that is there; writes `result` when it reaches the end."
    from workers import die, die_inside_checkpoint

    torch.set_num_threads(1)
    if die_at and die_at != "evaluation":
        die_inside_checkpoint(die_at)
    usual, calls = student_training.prefix_loss, []

    def prefix_loss(*given, **more):
        evaluate = usual(*given, **more)

        def counted(model, objective):
            calls.append(None)
            return die() if die_at == "evaluation" and len(calls) > 2 else evaluate(model, objective)
        return counted

    student_training.prefix_loss = prefix_loss
    train = split("train", 400, 0)
    config = SETTINGS.training(max_steps=24, eval_every=5, checkpoint_every_steps=3, log_every=1, precision="fp32", trackers=[])
    learner, warmup = ternary_student(student(), 12, eight_bit_backward=True)
    callbacks, telemetry = [Audit(), warmup, Noted(log, result)], Telemetry(folder)
    train_student(learner, signals(recording, None, train), train, split("validation", 60, 1), LOSS, SETTINGS, config,
                  callbacks=callbacks, folder=folder, telemetry=telemetry)
    os._exit(0)


class Events:
    "Writes down what happens in a search; the process is killed in place of one event."

    def __init__(self, log, end):
        self.log, self.end, self.n = Path(log), end, 0

    def add(self, what):
        if self.n == self.end:
            os.kill(os.getpid(), signal.SIGKILL)
        self.n += 1
        with self.log.open("a") as file:
            file.write(f"{what}\n")


class Steps(Callback):
    "Writes down the steps of a trial, each before a checkpoint that it may be written into."

    def __init__(self, events, trial):
        self.events, self.trial = events, trial

    def updated(self, trainer):
        self.events.add(f"{self.trial}:{trainer.step}")


def search_trials(folder, log, end=None):
    "Three trials of six steps each; the rows of the search."
    torch.set_num_threads(1)
    events, train, validation = Events(log, end), split("train", 400, 0), split("validation", 60, 1)
    asked = SearchSettings(layer_maps=("last", "uniform", ((1, 2),)), projectors=("linear", "ensemble"))
    teacher = OnlineTeacher(teacher_model(), widest_signal(asked.losses(LOSS), LOSS.signal(2, 2), 2, 2))
    config = SETTINGS.training(max_steps=6, eval_every=2, checkpoint_every_steps=2, precision="fp32", trackers=[])

    def fit(loss, place, callback):
        return train_student(student(), narrowed(teacher, loss, 2), train, validation, loss, SETTINGS, config,
                             callbacks=[callback, Steps(events, place.name)], folder=place)

    return search(folder, asked, LOSS, 3, fit, lambda line: events.add("told:" + line.split()[1].strip(":"))).rows
