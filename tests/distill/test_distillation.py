"""The objective of distillation: each term by itself, all together, what is trained and resumed, and students that do not fit."""

import math

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch._dynamo.backends.debugging import aot_eager
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from modernllm.core.config import InputError
from modernllm.data.encoding import IGNORE
from modernllm.distill import distillation
from modernllm.distill.attention_losses import attention_loss
from modernllm.distill.distillation import Distillation, DistillationSettings
from modernllm.distill.gradients import GRADIENT_RULES
from modernllm.distill.hidden_losses import hidden_loss
from modernllm.distill.layers import unit_rms
from modernllm.distill.projectors import Whiten
from modernllm.distill.regularise import batch_statistics_loss
from modernllm.distill.signals import OnlineTeacher
from modernllm.distill.whitening import whitening_statistics
from modernllm.models.budget import model_flops
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training import compiling
from modernllm.training.callbacks import Callback
from modernllm.training.config import TrainConfig
from modernllm.training.trainer import Trainer

V = 50
LLAMA = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "max_position_embeddings": 32}
ALL = {"logits": "kl", "hidden": "cosine", "attention": "kl", "target_weight": 0.5, "batch_weight": 0.1}


def decoder(width=16, layers=2, vocabulary=V, **more):
    torch.manual_seed(width + layers)
    return ModernDecoderLM(ModernLLMConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=2 * width,
        initializer_range=0.2, max_position_embeddings=32, **more,
    ))


def batch_of(n, seed=0):
    "Rows of which the second ends early, with ignored positions in the first."
    ids = torch.randint(0, V, (n, 10), generator=torch.Generator().manual_seed(seed))
    targets = ids[:, 1:].clone()
    targets[0, :2] = targets[1, 5:] = IGNORE
    mask = torch.ones_like(targets)
    mask[1, 6:] = 0
    return {"input_ids": ids[:, :-1], "targets": targets, "attention_mask": mask}


def pair(student=None, teacher=None, source="full", T=1.0, whitening=None, **given):
    "A student, and the objective that compares it with a teacher."
    student, teacher = student or decoder(), teacher or decoder(24, 4)
    settings = DistillationSettings(**given)
    asked = settings.signal(student.config.num_hidden_layers, teacher.config.num_hidden_layers, source=source, k=8, temperature=T)
    torch.manual_seed(5)
    return student, Distillation(student, OnlineTeacher(teacher, asked), settings, whitening)


def outputs(model, batch):
    inputs = {name: values for name, values in batch.items() if name != "targets"}
    out = model(**inputs, output_hidden_states=True, output_attentions=True, use_cache=False)
    return out, batch["targets"] != IGNORE


def test_every_term_is_the_loss_of_its_page():
    "With two layers beside four, at a temperature, weights on all terms."
    batch, weights = batch_of(3), {"logits_weight": 0.7, "hidden_weight": 2.0, "attention_weight": 3.0}
    student, objective = pair(T=2.0, layers="uniform", attention_layers=((1, 1), (2, 4)), **weights, **ALL)
    found = objective.loss(student, batch)
    (out, scored), (aim, _) = outputs(student, batch), outputs(objective.teacher.model, batch)
    z, y = out.logits[scored], aim.logits[scored]
    expected = {
        "logits": 4 * F.kl_div((z / 2).log_softmax(-1), (y / 2).log_softmax(-1), log_target=True, reduction="sum"),
        "nats": F.cross_entropy(z, batch["targets"][scored], reduction="sum"),
    }
    maps = [(out.attentions[s - 1], aim.attentions[t - 1]) for s, t in ((1, 1), (2, 4))]
    expected["attention"] = sum(attention_loss("kl", *both, scored) for both in maps) / 2
    states = [(projector(out.hidden_states[s][scored]), aim.hidden_states[t][scored])
              for (s, t), projector in zip(((1, 2), (2, 4)), objective.projectors)]
    expected["hidden"] = sum(hidden_loss("cosine", *both) for both in states) / 2
    expected["batch"] = sum(batch_statistics_loss(*both) for both in states) / 2
    assert found.weight == scored.sum() == 7 + 5 + 9 and found.metrics.keys() == expected.keys()
    torch.testing.assert_close(found.metrics, {name: value.detach() for name, value in expected.items()}, rtol=1e-5, atol=1e-5)
    factors = {"logits": 0.7, "nats": 0.5, "hidden": 2.0, "batch": 0.1, "attention": 3.0}
    total = sum(factors[name] * value for name, value in expected.items())
    torch.testing.assert_close(found.total, total, rtol=1e-5, atol=1e-5)
    trained = [*student.parameters(), *objective.projectors.parameters()]
    for mine, other in zip(*(torch.autograd.grad(loss, trained) for loss in (found.total, total)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", [
    {}, {"logits": "none", "hidden": "mse"}, {"logits": "none", "attention": "mse"}, {"logits": "none", "batch_weight": 1.0},
    {"logits": "none", "hidden": "cka", "projector": "none"}, {"logits": "none", "hidden": "infonce", "target_weight": 1.0},
])
def test_what_is_off_is_not_asked_for(given, monkeypatch):
    student, objective = pair(**given)
    asked = objective.teacher.settings
    assert (asked.logits == "none") == ("logits" in given)
    assert bool(asked.hidden) == ("hidden" in given or "batch_weight" in given)
    assert bool(asked.attentions) == ("attention" in given)
    seen, run = [], distillation.run_student
    monkeypatch.setattr(distillation, "run_student", lambda *args: seen.append(args[2:]) or run(*args))
    out = objective.loss(student, batch_of(2))
    assert seen == [(bool(asked.hidden), (2,) if asked.attentions else ())]
    names = {"hidden": "hidden", "attention": "attention", "target_weight": "nats", "batch_weight": "batch"}
    assert out.metrics.keys() == ({names[name] for name in given if name in names} if given else {"logits"})
    out.total.backward()
    assert all(p.grad is not None for p in student.model.embed_tokens.parameters())


@pytest.mark.parametrize("source", ["topk", "sampled"])
def test_teachers_that_give_less(source):
    torch.manual_seed(0)
    student, objective = pair(source=source, T=1.5)
    out = objective.loss(student, batch_of(2))
    assert out.total.isfinite() and out.total > 0
    full = pair(T=1.5)[1].loss(student, batch_of(2)).total
    assert source == "sampled" or out.total < full


@pytest.mark.parametrize("make", [
    lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    lambda: GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=32, attn_implementation="eager",
                                       bos_token_id=0, eos_token_id=0, attn_pdrop=0.0)),
])
def test_students_and_teachers_of_transformers(make):
    torch.manual_seed(0)
    student = make()
    for given in ({"student": student}, {"student": decoder(), "teacher": make()}):
        model, objective = pair(**given, layers="first_last", **ALL)
        out = objective.loss(model, batch_of(2))
        out.total.backward()
        assert out.total.isfinite() and all(value.isfinite() for value in out.metrics.values())
        assert all(p.grad is not None for p in model.parameters())


def test_a_student_without_a_plain_head_gives_the_same(monkeypatch):
    student, objective = pair(target_weight=0.5)
    plain = objective.loss(student, batch_of(2))
    monkeypatch.setattr(distillation, "output_head", lambda model, inputs: None)
    torch.testing.assert_close(objective.loss(student, batch_of(2)).total, plain.total)
    other, objective = pair(logits="none", hidden="mse", target_weight=0.5)
    nats = objective.loss(other, batch_of(2)).metrics["nats"]
    torch.testing.assert_close(nats, plain.metrics["nats"])


def test_attention_of_a_student_with_another_implementation():
    "Maps are computed also where the student's own implementation gives none, which it has again afterwards."
    totals = []
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        student = LlamaForCausalLM(LlamaConfig(**LLAMA, attn_implementation=implementation))
        model, objective = pair(student, attention="kl")
        out = objective.loss(model, batch_of(2))
        totals.append((out.total, torch.autograd.grad(out.total, student.model.layers[0].self_attn.q_proj.weight)[0]))
        assert student.config._attn_implementation == implementation
    torch.testing.assert_close(*totals)


def test_attention_maps_after_dropout_are_not_compared():
    "Models of transformers give them so in training; ours give them before."
    gpt2 = GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    for student in (GPT2LMHeadModel(gpt2), LlamaForCausalLM(LlamaConfig(**LLAMA, attention_dropout=0.1))):
        with pytest.raises(InputError, match="the student's attention dropout is 0.1, .* after dropout; allowed: 0"):
            pair(student, attention="kl")
        pair(student, hidden="mse")
    student, _ = pair(decoder(attention_dropout=0.5), attention="kl")
    ids = batch_of(2)["input_ids"]
    maps = distillation.run_student(student.train(), {"input_ids": ids}, False, (1,)).maps[1]
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))


def test_ignored_positions_and_padding_have_no_part():
    "What stands behind the last target of a row, or under its mask, changes neither a term nor a gradient."
    for hidden in ("mse", "cosine", "cka", "infonce", "sinkhorn"):
        student, objective = pair(**{**ALL, "hidden": hidden}, layers="uniform")
        results = []
        for filler in (3, 17):
            batch = batch_of(3)
            batch["input_ids"][1, 5:] = filler
            out = objective.loss(student, batch)
            results.append((out, torch.autograd.grad(out.total, student.model.layers[0].mlp.down_proj.weight)[0]))
        (one, slope), (other, same) = results
        torch.testing.assert_close((one.total, one.metrics, slope), (other.total, other.metrics, same), rtol=1e-5, atol=1e-5)


def test_a_batch_without_targets_has_no_loss():
    student, objective = pair(**ALL)
    batch = batch_of(2)
    batch["targets"] = torch.full_like(batch["targets"], IGNORE)
    out = objective.loss(student, batch)
    out.total.backward()
    assert out.total == 0 and out.weight == 0 and all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_learnt_maps_are_mixtures_of_all_layers():
    student, objective = pair(hidden="mse", attention="mse", layers="learnt", attention_layers="learnt")
    out = objective.loss(student, batch_of(3))
    asked = objective.teacher.settings
    assert asked.hidden == asked.attentions == (1, 2, 3, 4) and len(objective.projectors) == 2
    (mine, scored), (aim, _) = outputs(student, batch_of(3)), outputs(objective.teacher.model, batch_of(3))
    hidden = maps = 0
    for s, projector in zip((1, 2), objective.projectors):
        weights, others = (mixture.weights()[s - 1] for mixture in (objective.mixture, objective.map_mixture))
        target = sum(w * unit_rms(aim.hidden_states[t][scored]) for t, w in enumerate(weights, 1))
        hidden += hidden_loss("mse", projector(mine.hidden_states[s][scored]), target) / 2
        target = sum(w * aim.attentions[t - 1] for t, w in enumerate(others, 1))
        maps += attention_loss("mse", mine.attentions[s - 1], target, scored) / 2
    torch.testing.assert_close(out.metrics["hidden"], hidden.detach())
    torch.testing.assert_close(out.metrics["attention"], maps.detach())
    out.total.backward()
    assert objective.mixture.scores.grad.any() and objective.map_mixture.scores.grad.any()


def test_whitened_teacher():
    teacher = decoder(24, 4)
    states = outputs(teacher, batch_of(8, seed=1))[0].hidden_states[4].detach().flatten(0, 1)
    whitening = {4: whitening_statistics([states])}
    student, objective = pair(teacher=teacher, hidden="mse", whiten=True, projector="orthogonal", whitening=whitening)
    (mine, scored), (aim, _) = outputs(student, batch_of(3)), outputs(teacher, batch_of(3))
    target = Whiten(whitening[4])(aim.hidden_states[4][scored])
    expected = hidden_loss("mse", objective.projectors[0](mine.hidden_states[2][scored]), target)
    torch.testing.assert_close(objective.loss(student, batch_of(3)).metrics["hidden"], expected.detach())
    assert "whitening of layer 4" in objective.identity()
    with pytest.raises(InputError, match="whiten: there are no statistics of layers 4 of the teacher"):
        pair(hidden="mse", whiten=True)


@pytest.mark.parametrize("noise", ["teacher_noise", "student_noise"])
def test_noise_in_training_only(noise):
    student, objective = pair(hidden="mse", **{noise: 0.3})
    clean = pair(hidden="mse")[1]
    student.eval()
    values = [side.loss(student, batch_of(2)).metrics["hidden"] for side in (objective, clean)]
    assert values[0] == values[1]
    student.train()
    torch.manual_seed(1)
    first = objective.loss(student, batch_of(2)).metrics["hidden"]
    torch.manual_seed(1)
    assert first == objective.loss(student, batch_of(2)).metrics["hidden"] != values[0]


@pytest.mark.parametrize("rule", GRADIENT_RULES[1:])
def test_rules_for_gradients(rule):
    student, objective = pair(gradients=rule, **ALL)
    plain_student, plain = pair(**ALL)
    out, expected = objective.loss(student, batch_of(3)), plain.loss(plain_student, batch_of(3))
    torch.testing.assert_close(out.total, expected.total)
    pairs = ("output_hidden", "output_attention", "hidden_attention")
    assert out.metrics.keys() - expected.metrics.keys() == {f"{what}_{pair}" for what in ("cosine", "conflict") for pair in pairs}
    assert all(-1 <= out.metrics[f"cosine_{pair}"] / out.weight <= 1 for pair in pairs)
    for mine, other in ((student, plain_student), (objective.projectors, plain.projectors)):
        for name, p in mine.named_parameters():
            p.grad, other.get_parameter(name).grad = None, None
    out.total.backward()
    expected.total.backward()
    gradients = [(p.grad, plain_student.get_parameter(name).grad) for name, p in student.named_parameters()]
    same = [torch.allclose(*both, rtol=1e-4, atol=1e-5) for both in gradients]
    conflicts = any(out.metrics[f"conflict_{pair}"] for pair in pairs)
    assert all(same) == (rule == "measure" or not conflicts)
    for p, other in zip(objective.projectors.parameters(), plain.projectors.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-4, atol=1e-5)  # of one term alone
    student.eval()
    assert objective.loss(student, batch_of(3)).metrics.keys() == expected.metrics.keys()  # nothing is measured in evaluation


def test_a_student_with_experts_balances_them():
    student, objective = pair(decoder(num_local_experts=4, num_experts_per_tok=2))
    training = objective.loss(student, batch_of(2))
    student.eval()
    assert training.metrics.keys() > objective.loss(student, batch_of(2)).metrics.keys()
    training.total.backward()
    assert all(p.grad.any() for name, p in student.named_parameters() if "gate" in name and "proj" not in name)


class Crash(Callback):
    def step_end(self, trainer, row):
        if row["step"] == 4:
            raise KeyError


def train(folder, callbacks=(), **changes):
    student, objective = pair(layers="learnt", teacher_noise=0.1, projector="orthogonal", gradients="project",
                              **{"hidden": "mse", "attention": "kl", **changes})
    config = TrainConfig(max_steps=7, learning_rate=1e-2, log_every=1, checkpoint_every_steps=3, precision="bf16")
    trainer = Trainer(student, objective, [batch_of(3, i) for i in range(7)], config, callbacks=list(callbacks), folder=folder)
    return trainer, trainer.fit()


def test_trained_parts_are_checkpointed_and_resumed_bit_for_bit(tmp_path):
    whole, result = train(tmp_path / "whole")
    with pytest.raises(KeyError):
        train(tmp_path / "cut", [Crash()])
    resumed, again = train(tmp_path / "cut")
    assert again.history == result.history
    ours, theirs = (trainer.trained_parameters() for trainer in (resumed, whole))
    assert any("mixture" in name for name in ours) and any("projectors" in name for name in ours)
    assert not any("teacher" in name for name in ours) and all(p.equal(theirs[name]) for name, p in ours.items())
    start = pair(hidden="mse", layers="learnt", projector="orthogonal")[1]
    moved = dict(whole.objective.named_parameters())
    assert not any(p.equal(moved[name]) for name, p in start.named_parameters() if not name.startswith("teacher"))
    assert all(p.equal(moved[name]) for name, p in start.named_parameters() if name.startswith("teacher"))


@pytest.mark.parametrize("given", [{}, {"hidden": "cosine", "layers": "uniform", "target_weight": 0.5}, {"attention": "kl"}],
                         ids=["logits", "hidden states", "attention maps"])
def test_compiled_training_has_the_losses_of_eager_training(given, monkeypatch, capsys):
    "The captured graphs are run as they are: code for the CPU takes most of a minute."
    graphs, found = [], []
    monkeypatch.setattr(compiling, "BACKEND", {"backend": lambda graph, inputs: graphs.append(graph) or aot_eager(graph, inputs)})
    for mode in ("off", "on"):
        torch._dynamo.reset()
        student, objective = pair(**given)
        config = TrainConfig(max_steps=4, learning_rate=1e-2, log_every=1, precision="fp32", compile=mode)
        trainer = Trainer(student, objective, [batch_of(3, i) for i in range(4)], config, callbacks=[])
        found.append([row["loss"] for row in trainer.fit().history["train"]])
        assert bool(graphs) == (mode == "on")
    assert found[1] == pytest.approx(found[0], rel=1e-4) and len(set(found[0])) == 4
    assert capsys.readouterr().err.startswith("2 layers compiled in ")


def test_another_objective_does_not_resume(tmp_path):
    with pytest.raises(KeyError):
        train(tmp_path, [Crash()])
    with pytest.raises(InputError, match="hidden is cosine here and mse there"):
        train(tmp_path, hidden="cosine")


@pytest.mark.parametrize(("match", "given"), [
    ("vocabulary: the teacher has 50 tokens, the student 40", {"student": lambda: decoder(vocabulary=40)}),
    (r"layer map: \(3, 1\) is out of range; allowed: pairs of a layer of the student, 0 to 2",
     {"hidden": "mse", "layers": ((3, 1),)}),
    (r"layer map: \(1, 5\) is out of range; .* one of the teacher, 0 to 4", {"hidden": "mse", "layers": ((1, 5),)}),
    (r"layer map: \(0, 1\) is out of range; allowed: pairs of a layer of the student, 1 to 2",
     {"attention": "kl", "attention_layers": ((0, 1),)}),
    ("projector 'orthogonal': the student is 32 wide, the teacher 24", {"student": lambda: decoder(32), "hidden": "mse",
                                                                        "projector": "orthogonal"}),
    ("projector 'none': the student is 16 wide, the teacher 24", {"hidden": "mse", "projector": "none"}),
    ("projector 'none': the student is 16 wide, the teacher 24", {"hidden": "cka", "batch_weight": 1.0, "projector": "none"}),
    ("'mse' compares raw logits; given: 'topk'", {"logits": "mse", "source": "topk"}),
    ("'mse' compares raw logits; given: 'full' at temperature 2.0", {"logits": "mse", "T": 2.0}),
    ("loss of logits is 'jsd'; allowed with sampled tokens: 'kl'", {"logits": "jsd", "source": "sampled"}),
    ("temperature is 0.0; allowed", {"T": 0.0}),
])
def test_a_student_that_does_not_fit(match, given):
    with pytest.raises(InputError, match=match):
        pair(**{name: value() if callable(value) else value for name, value in given.items()})


def test_a_teacher_that_was_not_asked():
    student, teacher = decoder(), decoder(24, 4)
    asked = DistillationSettings(logits="none", hidden="mse").signal(2, 4)
    for given, match in [({}, "logits: the loss is 'kl' and the teacher gives none"),
                         ({"logits": "none", "hidden": "mse", "layers": "uniform"},
                          "hidden: layers 2 of the teacher are compared, it gives 4"),
                         ({"logits": "none", "attention": "kl"},
                          "attentions: layers 4 of the teacher are compared, it gives none")]:
        with pytest.raises(InputError, match=match):
            Distillation(student, OnlineTeacher(teacher, asked), DistillationSettings(**given))


@pytest.mark.parametrize(("given", "match"), [
    ({"logits": "none"}, "all are off; allowed: one of them at least"),
    ({"logits": "none", "target_weight": 1.0}, "all are off; allowed: one of them at least"),
    ({"gradients": "drop"}, "gradients: 'drop' compares terms; allowed with one term: 'sum'"),
    ({"logits": "k"}, "logits is 'k'; allowed"),
    ({"hidden_weight": 0.0}, "hidden_weight is 0.0; allowed"),
    ({"student_noise": -1.0}, "student_noise is -1.0; allowed"),
    ({"teacher_noise": math.inf}, "teacher_noise"),
    ({"layers": "middle"}, "layers is 'middle'; allowed"),
])
def test_settings_that_are_refused(given, match):
    with pytest.raises(InputError, match=match):
        DistillationSettings(**given)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("match", "given"), [
    ("logits are not finite", {}), ("logits are not finite", {"logits": "jsd"}),
    ("the teacher's hidden states of layer 3 are not finite", {"logits": "none", "hidden": "mse", "layers": ((1, 1), (2, 3))}),
])
def test_a_teacher_that_overflows(value, match, given):
    student, objective = pair(**given)
    with torch.no_grad():
        objective.teacher.model.model.layers[2].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(InputError, match=match):
        objective.loss(student, batch_of(2))


def test_flops_count_the_teachers_work_and_leave_out_heads_that_are_not_used():
    batch = {name: values[:, :8] for name, values in batch_of(2).items()}
    batch["targets"] = torch.ones_like(batch["targets"])
    batch["targets"][0, :4] = IGNORE  # a token of weight 1 is four thirds of a position
    student, both = pair()
    own, theirs = model_flops(student, 8), model_flops(both.teacher.model, 8)
    assert both.flops_per_token(student, batch) == (3 * sum(own.values()) + sum(theirs.values())) * 16 / 12
    student, states = pair(logits="none", hidden="cosine")
    headless = 3 * (sum(own.values()) - own["head"]) + sum(theirs.values()) - theirs["head"]
    assert states.flops_per_token(student, batch) == headless * 16 / 12
    ruled = pair(student, hidden="cosine", gradients="project")[1]  # one more backward pass, from the hidden states on
    more = 3 * sum(own.values()) + 2 * (sum(own.values()) - own["head"]) + sum(theirs.values())
    assert ruled.flops_per_token(student, batch) == more * 16 / 12
    student.requires_grad_(False)
    assert states.flops_per_token(student, batch) is None
