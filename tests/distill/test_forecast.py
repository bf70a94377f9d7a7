"""The forecast of a distillation: memory beside what a process needs, operations and time by hand, what cannot be forecast."""

import os
import subprocess
import sys

import pytest
from transformers import GPT2Config, LlamaConfig, MixtralConfig

from modernllm.core.config import InputError
from modernllm.distill import forecast as forecasts
from modernllm.distill.distillation import DistillationSettings
from modernllm.distill.forecast import CARDS, equal_decoder, find_machine, forecast, on_meta
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


def of(student, teacher, training=None, card="l4", recorded=False, loss=LOSS, settings=SETTINGS):
    signal = loss.signal(student.num_hidden_layers, teacher.num_hidden_layers)
    training = settings.training(**(training or {"max_steps": 10}))
    return forecast(student, teacher, signal, loss, settings, training, find_machine(card), recorded)


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
    kept = of(student, teacher, {"max_tokens": 10**9}, recorded=True)
    assert "for the recording" in kept.lines()[2] and "pass of the teacher" not in kept.lines()[2]
    assert kept.peak < told.peak and sum(kept.flops) == pytest.approx(by_hand) and kept.flops[1] > 0
    assert of(student, teacher, {"max_steps": 7, "accumulation": 2}).tokens == 7 * 2 * 8 * 128
    assert "allowed: max_steps" in of(student, teacher, {"max_epochs": 1}).lines()[2]
    assert "does not fit" in of(student, teacher, settings=StudentSettings(context=1024, batch_size=2048)).lines()[1]


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
