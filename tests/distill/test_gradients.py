"""Conflicting gradients: cosine, dropping and projection, for two and three losses, on a model with fused kernels."""

import pytest
import torch
from torch import nn

from modernllm.core.config import InputError
from modernllm.distill import gradients
from modernllm.distill.gradients import GRADIENT_RULES, combine_gradients, inner_product, without_conflict
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM


def linear_losses(*slopes):
    "Losses whose gradients are the slopes."
    vector = nn.Parameter(torch.zeros(len(slopes[0])))
    return vector, {f"loss{i}": (vector * torch.tensor(slope)).sum() for i, slope in enumerate(slopes)}


def combined(rule, *slopes):
    vector, losses = linear_losses(*slopes)
    total, measured = combine_gradients(losses, [vector], rule)
    assert total == 0
    (3 * total).backward()
    return vector.grad / 3, measured


def test_three_losses():
    "Each loses its part against each other one; with (1, 0), (-1, 1), (0, 1) only the first two conflict."
    slopes = [1.0, 0.0], [-1.0, 1.0], [0.0, 1.0]
    gradient, measured = combined("project", *slopes)
    torch.testing.assert_close(gradient, torch.tensor([0.5, 0.5]) + torch.tensor([0.0, 1.0]) + torch.tensor([0.0, 1.0]))
    assert measured["conflict_loss0_loss1"] == 1 and measured["conflict_loss0_loss2"] == measured["conflict_loss1_loss2"] == 0
    assert measured["cosine_loss1_loss2"].item() == pytest.approx(0.5**0.5)
    torch.testing.assert_close(combined("drop", *slopes)[0], torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(combined("measure", *slopes)[0], torch.tensor([0.0, 2.0]))


def test_the_order_of_projections_is_random_and_seeded():
    slopes = [1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, -1.0, 1.0]
    found = set()
    for seed in range(8):
        torch.manual_seed(seed)
        one = combined("project", *slopes)[0]
        torch.manual_seed(seed)
        assert combined("project", *slopes)[0].equal(one)
        found.add(tuple(one.tolist()))
    assert len(found) > 1


def test_a_gradient_of_zeros_conflicts_with_nothing():
    for rule in GRADIENT_RULES[1:]:
        gradient, measured = combined(rule, [1.0, 2.0], [0.0, 0.0])
        assert gradient.tolist() == [1.0, 2.0] and measured["cosine_loss0_loss1"] == 0 and measured["conflict_loss0_loss1"] == 0


def test_only_shared_parameters_count():
    "Of the second vector, which one loss alone has, nothing is measured and nothing changed."
    shared, own = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    for rule, expected in (("drop", [1.0, 0.0]), ("project", [0.5, 1.5]), ("measure", [0.0, 1.0])):
        losses = {"logits": (shared * torch.tensor([1.0, 0.0])).sum(),
                  "hidden": (shared * torch.tensor([-1.0, 1.0])).sum() + (own * torch.tensor([9.0, 9.0])).sum()}
        total, measured = combine_gradients(losses, [shared, own], rule)
        found = torch.autograd.grad(total, (shared, own))
        assert found[0].tolist() == expected and found[1].tolist() == [9.0, 9.0]
        assert measured["cosine_logits_hidden"].item() == pytest.approx(-(0.5**0.5))


def test_parameters_that_no_loss_has_get_no_gradient():
    vector, losses = linear_losses([1.0], [2.0])
    other = nn.Parameter(torch.zeros(1))
    combine_gradients(losses, [vector, other], "project")[0].backward()
    assert vector.grad.tolist() == [3.0] and other.grad is None


def test_after_projection_nothing_conflicts():
    torch.manual_seed(0)
    for _ in range(20):
        a, b = [torch.randn(5), torch.randn(3)], [torch.randn(5), torch.randn(3)]
        clean = without_conflict(a, b)
        assert inner_product(clean, b) > -1e-5
        assert inner_product(a, b) < 0 or all(x is y or x.equal(y) for x, y in zip(clean, a))


@pytest.mark.parametrize("bf16", [False, True])
def test_on_a_model_measuring_changes_no_gradient(bf16):
    torch.manual_seed(0)
    model = ModernDecoderLM(ModernLLMConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2))
    ids = torch.randint(0, 40, (2, 9))
    parameters = list(model.parameters())

    def losses():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
            return {"logits": out.logits.float().logsumexp(-1).sum(), "hidden": (out.hidden_states[1].float() - 1).square().sum()}

    plain = torch.autograd.grad(sum(losses().values()), parameters)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        total, measured = combine_gradients(losses(), parameters, "measure")
    tolerance = {"rtol": 0.05, "atol": 0.05 * max(g.abs().max().item() for g in plain)} if bf16 else {"rtol": 1e-4, "atol": 1e-4}
    for expected, found in zip(plain, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(found, expected, **tolerance)
    assert -1 <= measured["cosine_logits_hidden"] <= 1


def test_refused():
    vector, losses = linear_losses([1.0], [2.0])
    with pytest.raises(InputError, match="unknown rule for gradients 'projet'; did you mean 'project'"):
        combine_gradients(losses, [vector], "projet")


def test_sharded_parameters_are_refused(monkeypatch):
    vector, losses = linear_losses([1.0], [2.0])
    monkeypatch.setattr(gradients, "DTensor", nn.Parameter)
    with pytest.raises(InputError, match="'drop' needs whole parameters, these are sharded; allowed with sharding: 'sum'"):
        combine_gradients(losses, [vector], "drop")
