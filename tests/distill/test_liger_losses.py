"""Liger's kernels against the chunked losses, under Triton's interpreter where both are installed; and what is refused."""

import os
from importlib.util import find_spec

import pytest
import torch

from modernllm.core.config import InputError
from modernllm.distill import distillation, liger_losses
from modernllm.distill.distillation import Distillation, DistillationSettings
from modernllm.distill.liger_losses import BETAS, check_liger, liger_loss
from modernllm.distill.logit_losses import logit_loss
from modernllm.distill.signals import OnlineTeacher, TeacherHead
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM


runs = pytest.mark.skipif(find_spec("liger_kernel") is None or os.environ.get("TRITON_INTERPRET") != "1",
                          reason="Triton's interpreter is off (pip install --no-deps triton liger-kernel, TRITON_INTERPRET=1)")


def example(n=24):
    torch.manual_seed(n)
    hidden, weight = torch.randn(n, 16, requires_grad=True), torch.randn(300, 16, requires_grad=True)
    return hidden, weight, TeacherHead(torch.randn(n, 24), 0.4 * torch.randn(300, 24))


@runs
@pytest.mark.parametrize("kind", BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sums_and_gradients_are_those_of_the_chunks(kind, temperature):
    hidden, weight, teacher = example()
    found = []
    for loss in (logit_loss, liger_loss):
        value = loss(hidden, weight, teacher, kind=kind, temperature=temperature)
        found.append((value.detach(), *torch.autograd.grad(value, (hidden, weight))))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def small(width, **more):
    torch.manual_seed(width)
    return ModernDecoderLM(ModernLLMConfig(vocab_size=50, hidden_size=width, intermediate_size=32, num_hidden_layers=2,
                                           num_attention_heads=4, max_position_embeddings=32, initializer_range=0.2, **more))


def step(kernels, student, **terms):
    "Loss, metrics and gradients of one step."
    settings = DistillationSettings(kernels=kernels, **terms)
    objective = Distillation(student, OnlineTeacher(small(24), settings.signal(2, 2)), settings)
    ids = torch.arange(40).reshape(2, 20)
    out = objective.loss(student, {"input_ids": ids[:, :-1], "targets": ids[:, 1:]})
    return out.total, out.metrics, torch.autograd.grad(out.total, list(student.parameters()))


TERMS = [{}, {"target_weight": 0.5}, {"logits": "jsd", "hidden": "cosine", "logits_weight": 2.0}]


@pytest.mark.parametrize("terms", TERMS)
def test_a_step_with_a_stand_in_for_the_kernels_is_the_same(terms, monkeypatch):
    monkeypatch.setattr(distillation, "check_liger", lambda kind, source: None)
    monkeypatch.setattr(distillation, "liger_loss", logit_loss)
    test_a_step_is_the_same(terms)


@runs
@pytest.mark.parametrize("terms", TERMS)
def test_a_step_is_the_same(terms):
    student = small(16)
    torch.manual_seed(0)
    ours = step("chunks", student, **terms)
    torch.manual_seed(0)
    torch.testing.assert_close(step("liger", student, **terms), ours, rtol=1e-4, atol=1e-5)


@runs
def test_logits_that_are_capped_are_refused():
    with pytest.raises(InputError, match="capped.*kernels=chunks"):
        step("liger", small(16, final_logit_softcapping=30.0))


@pytest.mark.parametrize(("kind", "source"), [("mse", "full"), ("kl", "topk"), ("none", "none")])
def test_other_losses_are_refused(kind, source):
    with pytest.raises(InputError, match="kl, reverse_kl, jsd with source=full, or kernels=chunks"):
        check_liger(kind, source)


def test_missing_package_and_missing_gpu_are_told_apart(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(liger_losses, "find_spec", lambda name: object() if name == "triton" else None)
    with pytest.raises(InputError, match="not installed.*kernels=chunks"):
        check_liger("kl", "full")
    monkeypatch.setattr(liger_losses, "find_spec", lambda name: object())
    with pytest.raises(InputError, match="needs a GPU"):
        check_liger("kl", "full")
