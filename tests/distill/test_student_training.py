"""A student in training: interrupted anywhere, from the teacher or a recording of it, and what cannot be trained."""

import json
import shutil

import pytest
import student_worker as worker
import torch

from modernllm.core.config import InputError, RunFailed
from modernllm.data.tokenizers import train_bpe
from modernllm.distill import recording as recording_module
from modernllm.distill.distillation import DistillationSettings
from modernllm.distill.signals import OnlineTeacher, SignalSettings
from modernllm.distill.student_training import StudentSettings, student_card, teacher_whitening, train_student
from modernllm.distill.teachers import TeacherSettings, asked_signal, recorded_teacher
from modernllm.distill.whitening import layer_states, whitening_statistics
from modernllm.evaluation.perplexity import prefix_loss
from modernllm.experiments.finetuning import finetune
from modernllm.training.audit import audit_rows
from modernllm.training.objectives import LanguageModelling

ORIGIN = {"name": "teacher", "sha256": "a" * 64}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    "The folder of a recording that no test changes."
    folder = tmp_path_factory.mktemp("recorded") / "teacher"
    worker.signals(folder, worker.teacher_model(), worker.split("train", 400, 0))
    return folder


def test_killed_anywhere_a_ternary_distillation_ends_in_the_same_weights_and_projectors(
    processes, kill_everywhere, recorded, tmp_path
):
    def run(name, die_at=None):
        process = processes.Process(target=worker.distil, args=(recorded, tmp_path / name, tmp_path / f"{name}.log",
                                                                tmp_path / f"{name}.json", die_at))
        process.start()
        return process

    plain = run("plain")
    plain.join(60)
    assert plain.exitcode == 0
    folder, log = tmp_path / "killed", tmp_path / "killed.log"
    kill_everywhere(lambda place: run("killed", place), folder, log, ["moment"] * 3, seconds=0.02)
    last = run("killed")
    last.join(60)
    assert last.exitcode == 0
    killed, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("killed", "plain"))
    assert killed == whole and len(whole["history"]["train"]) == 24
    rounds = audit_rows(folder)
    assert [row["step"] for row in rounds] == [5, 10, 15, 20, 24]
    assert all(row["train_seconds"] > 0 < row["eval_seconds"] for row in rounds)
    assert all(row["train_peak_mb"] > 50 < row["eval_peak_mb"] for row in rounds)


def test_the_recording_teaches_what_the_teacher_does(tmp_path):
    "With all logits kept, in 16 bits."
    train, validation, found = worker.split("train", 400, 0), worker.split("validation", 60, 1), []
    config = worker.SETTINGS.training(max_steps=8, precision="fp32")
    asked = asked_signal(worker.LOSS, TeacherSettings(source="full"), worker.student().config, worker.TEACHER)
    for teacher in (OnlineTeacher(worker.teacher_model(), asked),
                    recorded_teacher(tmp_path / "teacher", worker.teacher_model, asked, ORIGIN, worker.SETTINGS.blocks(train, 0),
                                     worker.tokenizer())):
        found.append(train_student(worker.student(), teacher, train, validation, worker.LOSS, worker.SETTINGS, config))
    one, two = (tuned.result.history["train"] for tuned in found)
    for mine, other in zip(one, two, strict=True):
        assert mine == pytest.approx(other, rel=2e-3)
    assert found[0].first["loss"] == found[1].first["loss"] and found[0].best["loss"] != found[0].first["loss"]


def test_the_best_weights_are_scored_on_all_of_validation(tmp_path):
    train, validation = worker.split("train", 400, 0), worker.split("validation", 60, 1)
    student = worker.student()
    signal = asked_signal(worker.LOSS, TeacherSettings(), student.config, worker.TEACHER)
    config = worker.SETTINGS.training(max_steps=6, eval_every=2, precision="fp32")
    tuned = train_student(student, OnlineTeacher(worker.teacher_model(), signal), train, validation, worker.LOSS,
                          StudentSettings(context=16, batch_size=4, eval_tokens=60), config, folder=tmp_path)
    rows = tuned.result.history["eval"]
    assert tuned.best["loss"] == min(row["loss"] for row in rows) != rows[-1]["loss"]
    card = student_card(tuned.model, validation, worker.SETTINGS)
    assert card.loss == pytest.approx(tuned.best["loss"]) and card.tokens == 59 and card.words == 60


def test_without_a_teacher_the_same_blocks_train_the_same_student():
    train, validation = worker.split("train", 400, 0), worker.split("validation", 60, 1)
    evaluate = prefix_loss(validation, context=16, max_tokens=60)
    config = worker.SETTINGS.training(max_steps=6, precision="fp32", log_every=1)
    tuned = finetune(worker.student(), LanguageModelling(), worker.SETTINGS.blocks(train, 0), evaluate, config)
    loss = DistillationSettings(logits_weight=1e-30, target_weight=1)
    asked = asked_signal(loss, TeacherSettings(), worker.student().config, worker.TEACHER)
    teacher = OnlineTeacher(worker.teacher_model(), asked)
    taught = train_student(worker.student(), teacher, train, validation, loss, worker.SETTINGS, config)
    alone, beside = ([row["loss"] for row in found.result.history["train"]] for found in (tuned, taught))
    assert alone == pytest.approx(beside, rel=1e-5) and len(set(alone)) == 6


def test_whitening_is_read_from_the_recording_or_estimated_from_many_states(recorded):
    train = worker.split("train", 400, 0)
    blocks, settings = worker.SETTINGS.blocks(train, 0), SignalSettings(hidden=(2,))
    online = OnlineTeacher(worker.teacher_model(), settings)
    exact = whitening_statistics(layer_states(online, (blocks.batch([n]) for n in range(24)), 2))  # 24 = 16 · 24 / 16
    found = teacher_whitening(online, blocks)[2]
    assert torch.equal(found.mean, exact.mean) and torch.equal(found.matrix, exact.matrix)
    kept = worker.signals(recorded, None, train)
    assert torch.equal(teacher_whitening(kept, blocks)[2].matrix, kept.recording.whitening(2).matrix)


def test_a_recording_gives_the_logits_it_has_where_nothing_is_asked(recorded):
    kept = worker.signals(recorded, None, worker.split("train", 400, 0)).recording
    configs = worker.student().config, worker.TEACHER
    there = asked_signal(worker.LOSS, TeacherSettings(), *configs, kept)
    assert (there.logits, there.k) == ("topk", 8)
    assert asked_signal(worker.LOSS, TeacherSettings(source="full"), *configs, kept).logits == "full"
    warmer = asked_signal(worker.LOSS, TeacherSettings(temperature=2), *configs, kept)
    assert (warmer.k, warmer.temperature) == (8, 2.0) and asked_signal(worker.LOSS, TeacherSettings(k=4), *configs, kept).k == 4
    mse = DistillationSettings(logits="mse")
    assert asked_signal(mse, TeacherSettings(), *configs, recorded=True).logits == "full"  # which it needs


def test_an_unfinished_recording_is_finished_as_it_was_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(recording_module, "SHARD_BYTES", 20_000)
    train, folder = worker.split("train", 400, 0), tmp_path / "teacher"
    whole = worker.signals(folder, worker.teacher_model(), train)
    assert whole.recording.shards > 1 and whole.flops_per_token(16) == 0 and whole.recording.manifest["flops_per_token"] > 0
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    for name in ("shard-00001.safetensors", "whitening.safetensors"):  # one at a time, as a kill may leave them missing
        (folder / name).unlink()
        blocks = worker.SETTINGS.blocks(train, 0)
        recorded_teacher(folder, worker.teacher_model, SignalSettings(logits="topk", k=8), ORIGIN, blocks, worker.tokenizer(),
                         bf16=True)  # which would be another recording
        assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == before


@pytest.mark.parametrize("change, said", [
    ({"origin": {"name": "another", "sha256": "b" * 64}}, "another teacher: teacher, weights aaaaaaaaaaaa, here another"),
    ({"tokenizer": train_bpe(["other text"], worker.SMALLEST + 1)}, "recording of another tokenizer"),
    ({"blocks": worker.SETTINGS.blocks(worker.split("train", 401, 0), 0)}, "recording of other data"),
    ({"signal": SignalSettings(hidden=(0,))}, "was not recorded"),
])
def test_what_does_not_belong_to_a_recording_is_refused(change, said, recorded):
    train = worker.split("train", 400, 0)
    given = {"signal": SignalSettings(logits="topk", k=8), "origin": ORIGIN, "blocks": worker.SETTINGS.blocks(train, 0),
             "tokenizer": worker.tokenizer()} | change
    with pytest.raises(InputError) as error:
        recorded_teacher(recorded, worker.teacher_model, **given)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_recording_without_an_origin_is_known_by_its_weights(tmp_path, recorded):
    train = worker.split("train", 400, 0)
    folder, blocks = shutil.copytree(recorded, tmp_path / "copy"), worker.SETTINGS.blocks(train, 0)
    manifest = json.loads((folder / "recording.json").read_text()) | {"teacher": {}}
    (folder / "recording.json").write_text(json.dumps(manifest))
    signal, loaded = SignalSettings(logits="topk", k=8), []

    def load(scale):
        model = worker.teacher_model()
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(scale)
        return loaded.append(scale) or model

    assert recorded_teacher(folder, lambda: load(1), signal, ORIGIN, blocks, worker.tokenizer()).recording.folder == folder
    with pytest.raises(InputError, match="is a recording of another teacher: teacher sha256"):
        recorded_teacher(folder, lambda: load(2), signal, ORIGIN, blocks, worker.tokenizer())
    assert loaded == [1, 2]


def test_a_teacher_whose_logits_are_not_finite_ends_the_training(tmp_path):
    "Finite weights that overflow in the middle."
    model, train = worker.teacher_model(), worker.split("train", 400, 0)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(3e38)
    student = worker.student()
    loss = DistillationSettings()
    teacher = OnlineTeacher(model, asked_signal(loss, TeacherSettings(), student.config, model.config))
    with pytest.raises((InputError, RunFailed)) as error:
        train_student(student, teacher, train, worker.split("validation", 60, 1), loss, worker.SETTINGS,
                      worker.SETTINGS.training(max_steps=2, precision="fp32"))
    assert "teacher" in str(error.value) and "finite" in str(error.value)
