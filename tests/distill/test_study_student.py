"""One student of a study: equal work, the same blocks with and without a teacher, a recording for one specification."""

from pathlib import Path

import pytest
import student_worker as worker
import torch

from modernllm.core.config import InputError
from modernllm.core.locks import unlock
from modernllm.core.runs import Run
from modernllm.data.corpus import Corpus
from modernllm.distill.distillation import DistillationSettings
from modernllm.distill.signals import OnlineTeacher, SignalSettings
from modernllm.distill.study_student import keep_recording, matched_tokens, read_teacher, training_work, tune_student
from modernllm.models.pretrained import Weights

WEIGHTS = Weights("noise", "folder", Path(), None, "a" * 64)
LOSS = DistillationSettings(target_weight=1.0)


@pytest.fixture
def corpus():
    sizes = {"train": 200, "validation": 60, "test": 60}
    splits = {name: worker.split(name, size, seed) for seed, (name, size) in enumerate(sizes.items())}
    return Corpus("noise", worker.tokenizer(), splits, "f")


@pytest.fixture
def start(tmp_path):
    def started(**params):
        return Run.start(study="demo", variant="student", seed=0, profile="smoke", run_dir=tmp_path / "run", params=params)

    return started


def test_a_student_alone_has_the_work_of_one_with_a_teacher():
    student, teacher = worker.student(), OnlineTeacher(worker.teacher_model(), LOSS.signal(2, 2))
    own, asked = training_work(student, teacher, 16, 1000)
    assert asked > 0 and training_work(student, None, 16, 1000) == (own, 0.0)
    for tokens in (1, 1000, 12_345):
        assert abs(matched_tokens(student, teacher, 16, tokens) * own - tokens * (own + asked)) <= own / 2


def test_the_work_of_a_recording_is_counted_whole(tmp_path):
    student, kept = worker.student(), worker.signals(tmp_path / "teacher", worker.teacher_model(), worker.split("train", 400, 0))
    once = OnlineTeacher(worker.teacher_model(), kept.settings).flops_per_token(worker.SETTINGS.context) * 399
    own, asked = training_work(student, kept, 16, 1000)
    assert once > 0 and asked * 1000 == pytest.approx(once)
    assert matched_tokens(student, kept, 16, 1000) == round(1000 + once / own)


def test_with_and_without_a_teacher_the_same_blocks_are_read(corpus, tmp_path):
    read = []

    def noted(module, args, kwargs):
        if module.training and torch.is_grad_enabled():
            read.append(kwargs["input_ids"].clone())

    config = worker.SETTINGS.training(max_steps=3, eval_every=3, precision="fp32", seed=5)
    for teacher in (None, OnlineTeacher(worker.teacher_model(), LOSS.signal(2, 2))):
        student = worker.student()
        student.model.register_forward_pre_hook(noted, with_kwargs=True)
        run = Run.start(study="demo", variant="student", seed=0, profile="smoke")
        tune_student(run, student, teacher, corpus, LOSS, worker.SETTINGS, config)
    alone, distilled = read[:3], read[3:]
    assert len(read) == 6 and all(torch.equal(a, b) for a, b in zip(alone, distilled))


def test_a_recording_belongs_to_one_specification(corpus, start):
    def record(k):  # in one folder, as a study does whose plan has changed
        run = start(k=k)
        keep_recording(run, WEIGHTS, worker.teacher_model(), corpus, worker.SETTINGS, SignalSettings(logits="topk", k=k))
        run.telemetry.close()
        unlock(run._lock)
        return run._artifacts["recording"]

    first = record(2)
    assert record(3) != first and record(2) == first


def test_a_run_without_a_teacher_says_what_is_missing(start):
    with pytest.raises(InputError, match="input 'teacher'"):
        read_teacher(start())
