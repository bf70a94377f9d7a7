"""The forecast of a distillation: memory beside what a process needs, operations and time by hand, what cannot be forecast."""

import os
import subprocess
import sys

import pytest
from transformers import GPT2Config, LlamaConfig, MixtralConfig

from modernllm.core.config import InputError
from modernllm.distill import forecast as forecasts
from modernllm.distill.distillation import DistillationSettings
from modernllm.distill.forecast import CARDS, equal_decoder, find_machine, forecast, on_meta, recorded_bytes
from modernllm.distill.packed_logits import packed_size
from modernllm.distill.recording_files import Recording
from modernllm.distill.shards import write_shard
from modernllm.distill.signals import SignalSettings
from modernllm.distill.student_training import StudentSettings
from modernllm.models.budget import forward_flops, mean_keys, training_flops
from modernllm.models.config import ModernLLMConfig

STUDENT = {"vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
TEACHER = {"vocab_size": 8192, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}
LOSS = DistillationSettings(hidden="cosine")
SETTINGS = StudentSettings(context=128, batch_size=8)

PROGRAM = """
import torch, torch._dynamo
from modernllm.benchmarking.bench import ZipfBatches
from modernllm.distill.distillation import Distillation, DistillationSettings
from modernllm.distill.signals import OnlineTeacher
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.trainer import TrainConfig, Trainer

def held(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def distil(steps, student, teacher, rows, context):
    model, loss = ModernDecoderLM(ModernLLMConfig(**student)), DistillationSettings(hidden="cosine")
    frozen = OnlineTeacher(ModernDecoderLM(ModernLLMConfig(**teacher)), loss.signal(model.config.num_hidden_layers,
                                                                                  teacher["num_hidden_layers"]))
    config = TrainConfig(max_steps=steps, precision="bf16", log_every=1)
    batches = ZipfBatches(model.config.vocab_size, rows, context)
    Trainer(model, Distillation(model, frozen, loss), batches, config, callbacks=[]).fit()

torch.set_num_threads(1)
tiny = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
distil(1, tiny, tiny, 1, 8)
before = held("VmRSS")
distil(3, %r, %r, 8, 128)
print(held("VmHWM") - before)
"""


def of(student, teacher, training=None, card="l4", recorded=False, loss=LOSS, settings=SETTINGS, recording=None):
    signal = loss.signal(student.num_hidden_layers, teacher.num_hidden_layers)
    training = settings.training(**(training or {"max_steps": 10}))
    return forecast(student, teacher, signal, loss, settings, training, find_machine(card), recorded, recording)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_predicted_memory_is_within_a_third_of_what_a_process_needs(monkeypatch):
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TOP_PAD_": "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM % (STUDENT, TEACHER)], capture_output=True, text=True, check=True,
                          env=environment)
    monkeypatch.setattr(forecasts, "matmul_limit", lambda *given: 1e11)
    told = of(ModernLLMConfig(**STUDENT), ModernLLMConfig(**TEACHER), card=None)
    assert told.machine.kind == "cpu" and 3 / 4 < told.peak / int(done.stdout) < 4 / 3, (told.memory, done.stdout)


def test_operations_time_and_price_are_those_of_the_parts(monkeypatch):
    monkeypatch.setenv("MODERNLLM_GPU_HOUR_PRICE", "3")
    student, teacher = ModernLLMConfig(**STUDENT), ModernLLMConfig(**TEACHER)
    told = of(student, teacher, {"max_tokens": 10**9})
    by_hand = sum(training_flops(student, 128).values()) + sum(forward_flops(teacher, mean_keys(128)).values())
    assert told.flops == (pytest.approx(by_hand), 0.0) and told.tokens == 10**9
    hours = 1e9 * by_hand / (0.2 * CARDS["l4"][2]) / 3600
    assert told.hours == pytest.approx(hours) and told.usd == pytest.approx(3 * hours)
    assert of(student, teacher, {"max_steps": 7, "accumulation": 2}).tokens == 7 * 2 * 8 * 128
    assert "allowed: max_steps" in of(student, teacher, {"max_epochs": 1}).lines()[2]
    assert "does not fit" in of(student, teacher, settings=StudentSettings(context=1024, batch_size=2048)).lines()[1]


def a_recording(folder, shards):
    "One of 1,001 tokens in four shards of two rows, of which so many are there."
    there = Recording(folder, {"key": {"data": {"n_tokens": 1001, "block_size": 128}, "signal": {}}, "blocks_per_shard": 2})
    for shard in range(shards):
        write_shard(there.path(shard), {})
    return there


def test_a_recording_is_charged_for_what_the_teacher_has_still_to_read(tmp_path, monkeypatch):
    monkeypatch.delenv("MODERNLLM_GPU_HOUR_PRICE", raising=False)
    student, teacher = ModernLLMConfig(**STUDENT), ModernLLMConfig(**TEACHER)
    once, speed = sum(forward_flops(teacher, mean_keys(128)).values()), 0.2 * CARDS["l4"][2] * 3600
    each = sum(training_flops(student, 128).values())
    new = of(student, teacher, {"max_tokens": 10**6}, recorded=True)
    assert new.flops == (pytest.approx(each), pytest.approx(once)) and new.hours == pytest.approx(1e6 * each / speed)
    work, line = new.lines()[2], new.lines()[-1]
    assert "training split once" in line and f"{1e9 * once / speed:,.4g} hours" in line and "pass of the teacher" not in work
    begun = of(student, teacher, {"max_tokens": 10**6}, recorded=True, recording=a_recording(tmp_path, 3))
    assert begun.to_record == 1000 - 6 * 128 and begun.hours == pytest.approx((1e6 * each + 232 * once) / speed)
    whole = of(student, teacher, {"max_tokens": 10**6}, recorded=True, recording=a_recording(tmp_path, 4))
    assert whole.hours == new.hours and whole.lines()[-1] == "recording: is there; the teacher is not run"
    assert "recording" not in of(student, teacher).lines()[-1]


def test_memory_is_that_of_the_larger_phase(tmp_path):
    "A large teacher is recorded beside the student, and is gone in training."
    student, teacher = (ModernLLMConfig(**STUDENT | {"hidden_size": width}) for width in (64, 1024))
    few = StudentSettings(context=128, batch_size=1)
    new = of(student, teacher, recorded=True, settings=few)
    whole = of(student, teacher, recorded=True, settings=few, recording=a_recording(tmp_path, 4))
    weights = {"student": on_meta(student).num_parameters(), "teacher": on_meta(teacher).num_parameters()}
    assert new.memory["the student's weights while the teacher is recorded"] == 4 * weights["student"]
    assert new.memory["the teacher's weights"] == 4 * weights["teacher"] and new.peak > 4 * sum(weights.values()) > whole.peak
    same = of(student, student, recorded=True, settings=StudentSettings(context=128, batch_size=256))
    assert "the student's training step" in same.memory and same.memory.keys() == whole.memory.keys()


def test_bytes_of_a_recording():
    teacher = ModernLLMConfig(**TEACHER)
    top = SignalSettings(logits="topk", k=16, hidden=(2, 6), attentions=(1,))
    assert recorded_bytes(teacher, top, 64) == packed_size(16, 8192) + 2 * 2 * 384 + 2 * 6 * 64 + 8 / 64
    assert recorded_bytes(teacher, SignalSettings(hidden=(6,)), 64) == 2 * 384 + 8 / 64  # the head reads the last layer
    drawn = SignalSettings(logits="sampled", k=16)
    assert recorded_bytes(teacher, drawn, 64) == packed_size(16, 8192) - 16 - 6 + 8 / 64


def test_attention_maps_of_all_student_layers_are_kept():
    student, teacher = ModernLLMConfig(**STUDENT), ModernLLMConfig(**TEACHER)
    told = of(student, teacher, loss=DistillationSettings(attention="kl"))
    assert told.memory["the student's attention maps"] == (4 + 2) * 4 * 8 * 4 * 128**2  # layers, rows, heads, map
    assert of(student, teacher).memory["the student's attention maps"] == 0


def test_every_card_has_its_price(monkeypatch):
    monkeypatch.delenv("MODERNLLM_GPU_HOUR_PRICE", raising=False)
    usual = [find_machine(card) for card in ("h100", "a100", "l4")]
    assert [machine.usd_per_hour for machine in usual] == [3.0, 2.0, 0.7] and "on demand" in usual[0].price
    monkeypatch.setenv("MODERNLLM_GPU_HOUR_PRICE", "1.5")
    assert find_machine("l4").usd_per_hour == 1.5 and "on demand" not in find_machine("l4").price


GROUPED = {"hidden_size": 128, "intermediate_size": 300, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize("config", [GPT2Config(n_layer=2), LlamaConfig(**GROUPED, num_key_value_heads=2)])
def test_a_decoder_of_equal_size_stands_for_another_class(config):
    model = on_meta(config)
    ours = on_meta(equal_decoder(model)).num_parameters()
    positions = getattr(config, "n_positions", 0) * config.hidden_size  # a table that ours have not
    assert ours == pytest.approx(model.num_parameters() - positions, rel=0.01)


def test_what_cannot_be_forecast(monkeypatch):
    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = MixtralConfig(**small, num_key_value_heads=2)
    with pytest.raises(InputError, match="allowed: decoders without experts"):
        of(ModernLLMConfig(**small), experts, loss=DistillationSettings())
    with pytest.raises(InputError, match="'h10'; did you mean 'h100'"):
        find_machine("h10")
