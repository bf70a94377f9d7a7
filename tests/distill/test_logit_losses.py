"""Losses of logits against plain formulas over full tables: every teacher, temperature, cap and chunk; and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from modernllm.core.config import InputError
from modernllm.distill.logit_losses import LOGIT_LOSSES, logit_and_target_loss, logit_loss
from modernllm.distill.signals import SampledTokens, TeacherHead, TopLogits
from modernllm.models.logprobs import linear_loss

V = 33


def example(n, dtype=torch.float32):
    torch.manual_seed(n)
    hidden = torch.randn(n, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, 8, dtype=dtype, requires_grad=True)
    return hidden, weight, TeacherHead(torch.randn(n, 12, dtype=dtype), 0.7 * torch.randn(V, 12, dtype=dtype), 9.0)


def capped(logits, softcap):
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def full(teacher):
    return capped(teacher.hidden @ teacher.weight.T, teacher.softcap)


def top(logits, k, T=1.0):
    logprobs = (logits / T).log_softmax(-1)
    best = logprobs.topk(k, -1)
    return TopLogits(best.indices, best.values, logprobs.scatter(-1, best.indices, -torch.inf).logsumexp(-1))


def divergence(kind, p, q):
    "Of probabilities, by the definitions."
    def kl(a, b):
        return (torch.xlogy(a, a) - torch.xlogy(a, b)).sum()

    if kind == "jsd":
        return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2
    return kl(p, q) if kind == "kl" else kl(q, p)


def reference(kind, y, z, T):
    if kind == "mse":
        return (z - y).square().mean(-1).sum()
    return T**2 * divergence(kind, (y / T).softmax(-1), (z / T).softmax(-1))


def merged(probs, ids):
    "Probabilities of some tokens, and of all others."
    some = probs.gather(-1, ids)
    rest = torch.ones_like(probs).scatter(-1, ids, 0.0)
    return torch.cat((some, (probs * rest).sum(-1, keepdim=True)), -1)


def assert_same(ours, theirs, parameters, upstream=1.0):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, other in zip(*(torch.autograd.grad(loss * upstream, parameters) for loss in (ours, theirs))):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 20), chunk=st.integers(1, 25), kind=st.sampled_from(LOGIT_LOSSES), T=st.sampled_from([0.5, 1.0, 3.0]),
       softcap=st.sampled_from([None, 5.0]), table=st.booleans(), upstream=st.sampled_from([1.0, -0.7]))
def test_full_logits(n, chunk, kind, T, softcap, table, upstream):
    T = 1.0 if kind == "mse" else T
    hidden, weight, teacher = example(n)
    y = full(teacher)
    ours = logit_loss(hidden, weight, y if table else teacher, kind=kind, temperature=T, softcap=softcap, chunk=chunk)
    assert_same(ours, reference(kind, y, capped(hidden @ weight.T, softcap), T), (hidden, weight), upstream)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 20), chunk=st.integers(1, 25), kind=st.sampled_from(LOGIT_LOSSES[:3]), T=st.sampled_from([0.5, 1.0, 3.0]),
       k=st.sampled_from([1, 7, V - 1, V]))
def test_top_k(n, chunk, kind, T, k):
    hidden, weight, teacher = example(n)
    y, z = full(teacher), hidden @ weight.T
    given = top(y, k, T)
    ours = logit_loss(hidden, weight, given, kind=kind, temperature=T, chunk=chunk)
    p, q = (merged((logits / T).softmax(-1), given.ids) for logits in (y, z))
    assert_same(ours, reference(kind, y, z, T) if k == V else T**2 * divergence(kind, p, q), (hidden, weight))


def test_drawn_tokens_that_have_the_teachers_shares_give_the_gradient_of_kl():
    hidden, weight, _ = example(5)
    ids = torch.tensor([[0, 0, 1, 2]]).repeat(5, 1)
    p = torch.zeros(5, V).scatter_add(1, ids, torch.full((5, 4), 0.25))
    ours = logit_loss(hidden, weight, SampledTokens(ids), temperature=2.0, chunk=3)
    theirs = reference("kl", 2.0 * p.log().clamp(min=-1e4), hidden @ weight.T, 2.0)
    entropy = -torch.xlogy(p, p).sum() * 4
    assert_same(ours - entropy, theirs, (hidden, weight))


@pytest.mark.parametrize("kind", LOGIT_LOSSES)
def test_gradcheck(kind):
    hidden, weight, teacher = example(4, torch.float64)
    weight, teacher = weight[:5].detach().requires_grad_(), teacher._replace(weight=teacher.weight[:5])
    T = 1.0 if kind == "mse" else 2.0

    def function(h, w):
        return logit_loss(h, w, teacher, kind=kind, temperature=T, softcap=4.0, chunk=3)

    assert torch.autograd.gradcheck(function, (hidden, weight))


@pytest.mark.parametrize("T", [1.0, 2.0])
def test_cross_entropy_beside_it(T):
    hidden, weight, teacher = example(9)
    targets = torch.randint(0, V, (9,))
    both = {"temperature": T, "softcap": 6.0}
    ours, loss, nats = logit_and_target_loss(hidden, weight, teacher, targets, weights=(0.4, 3.0), chunk=4, **both)
    alone, expected = logit_loss(hidden, weight, teacher, **both), linear_loss(hidden, weight, targets, softcap=6.0)[0]
    torch.testing.assert_close((loss, nats), (alone.detach(), expected.detach()))
    assert not loss.requires_grad and not nats.requires_grad
    assert_same(ours, 0.4 * alone + 3.0 * expected, (hidden, weight))


@pytest.mark.parametrize("kind", LOGIT_LOSSES)
def test_logits_of_a_student_without_a_plain_head(kind):
    hidden, weight, teacher = example(9)
    logits = (hidden @ weight.T).detach().requires_grad_()
    before = logits.detach().clone()
    assert_same(logit_loss(logits, None, teacher, kind=kind, chunk=4), reference(kind, full(teacher), logits, 1.0), [logits])
    assert logits.equal(before)


def test_a_table_of_the_teacher_is_not_changed():
    hidden, weight, teacher = example(9)
    table = full(teacher)
    before = table.clone()
    logit_loss(hidden, weight, table, temperature=2.0)
    assert table.equal(before)


class Largest(TorchDispatchMode):
    "The largest tensor that any operation returns."

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("kind", LOGIT_LOSSES)
def test_neither_table_of_logits_exists_whole(kind):
    hidden, weight, teacher = example(64)
    with Largest() as seen:
        logit_loss(hidden, weight, teacher, kind=kind, chunk=8).backward()
    assert 0 < seen.numel <= max(8 * V, hidden.numel(), teacher.hidden.numel(), teacher.weight.numel()) < 64 * V
    with Largest() as seen:
        reference(kind, full(teacher), hidden @ weight.T, 1.0)
    assert seen.numel >= 64 * V  # the measurement sees such tables


@pytest.mark.parametrize("source", ["head", "top", "drawn"])
def test_under_autocast_as_close_as_plain_autocast(source):
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 64, requires_grad=True), (0.1 * torch.randn(500, 64)).requires_grad_()
    teacher = TeacherHead(torch.randn(300, 48), 0.2 * torch.randn(500, 48))
    y = full(teacher)
    given = {"head": teacher, "top": top(y, 64), "drawn": SampledTokens(torch.multinomial(y.softmax(-1), 8))}[source]

    def plain(y):
        z = (hidden @ weight.T).float()
        if source == "head":
            return reference("kl", y.float(), z, 1.0)
        if source == "top":
            return divergence("kl", *(merged(logits.softmax(-1), given.ids) for logits in (full(teacher), z)))
        return -z.log_softmax(-1).gather(-1, given.ids).mean(-1).sum()

    exact = torch.autograd.grad(plain(y), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        ours, usual = logit_loss(hidden, weight, given, chunk=64), plain(full(teacher))
    assert ours.dtype == torch.float32
    grads, others = (torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, usual))
    for mine, other, true in zip(grads, others, exact):
        assert mine.dtype == torch.float32 and (mine - true).norm() < 1.1 * (other - true).norm() + 1e-3 * true.norm()


@pytest.mark.parametrize("kind", LOGIT_LOSSES)
def test_extreme_logits_stay_finite(kind):
    "Probabilities that underflow on one side or both."
    z = torch.tensor([[1000.0, 0.0, -1000.0]], requires_grad=True)
    y = torch.tensor([[0.0, 1000.0, -500.0]])
    loss = logit_loss(z, None, y, kind=kind)
    loss.backward()
    expected = {"kl": 1000.0, "reverse_kl": 1000.0, "jsd": math.log(2), "mse": (1e6 + 1e6 + 25e4) / 3}
    assert loss.item() == pytest.approx(expected[kind]) and z.grad.isfinite().all()


@pytest.mark.parametrize("kind", LOGIT_LOSSES[:3])
def test_top_k_of_which_nothing_is_left(kind):
    "A tail that rounded to nothing: the loss stays finite, whatever the student gives the others."
    given = TopLogits(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]).log(), torch.tensor([-torch.inf]))
    for others in (0.0, -3000.0):
        z = torch.tensor([[1.0, 2.0, others]], requires_grad=True)
        loss = logit_loss(z, None, given, kind=kind)
        loss.backward()
        assert loss.isfinite() and z.grad.isfinite().all() and abs(z.grad.sum()) < 1e-5


def test_only_wanted_gradients():
    hidden, weight, teacher = example(9)
    logit_loss(hidden.detach(), weight, teacher).backward()
    assert weight.grad is not None
    logit_loss(hidden, weight.detach(), teacher).backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not logit_loss(hidden, weight, teacher).requires_grad


def test_nothing_to_score():
    hidden, weight, teacher = example(3)
    loss = logit_loss(hidden[:0], weight, TeacherHead(teacher.hidden[:0], teacher.weight))
    loss.backward()
    assert loss == 0 and not weight.grad.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("source", "kind"), [(source, kind) for source in ("head", "table", "top")
                                              for kind in LOGIT_LOSSES if (source, kind) != ("top", "mse")])
def test_a_teacher_that_is_not_finite(value, source, kind):
    hidden, weight, teacher = example(6)
    table, some = full(teacher), top(full(teacher), 4)
    {"head": teacher.hidden, "table": table, "top": some.logprobs}[source][2:4, 0] = value
    uncapped = teacher._replace(softcap=None)  # a cap would make infinite logits finite
    with pytest.raises(InputError, match="the teacher's logits are not finite at 2 of 6 positions"):
        logit_loss(hidden, weight, {"head": uncapped, "table": table, "top": some}[source], kind=kind, chunk=4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_tail_that_is_not_finite(value):
    hidden, weight, teacher = example(6)
    some = top(full(teacher), 4)
    some.tail[5] = value
    with pytest.raises(InputError, match="the teacher's logits are not finite at 1 of 6 positions"):
        logit_loss(hidden, weight, some, chunk=4)


def test_a_student_that_diverges_is_no_fault_of_the_teacher():
    hidden, weight, teacher = example(6)
    assert logit_loss(hidden * math.nan, weight, teacher).isnan()


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan, math.inf])
def test_temperature_is_above_0(temperature):
    hidden, weight, teacher = example(2)
    with pytest.raises(InputError, match="temperature is .*; allowed: above 0"):
        logit_loss(hidden, weight, teacher, temperature=temperature)


def test_what_is_refused():
    hidden, weight, teacher = example(4)
    some, drawn = top(full(teacher), 3), SampledTokens(torch.zeros(4, 2, dtype=torch.long))
    wide = TopLogits(torch.zeros(4, V + 1, dtype=torch.long), torch.zeros(4, V + 1), torch.zeros(4))
    for wrong, match, options in [
        (TeacherHead(teacher.hidden, teacher.weight[:-3]), "vocabulary: the teacher has 30 tokens, the student 33", {}),
        (full(teacher)[:, 1:], "vocabulary: the teacher has 32 tokens, the student 33", {}),
        (wide, "the teacher gives 34 tokens for each position, the student has 33", {}),
        (TeacherHead(teacher.hidden[1:], teacher.weight), "the teacher has 3 positions, the student 4", {}),
        (teacher, "unknown loss of logits 'kll'; did you mean 'kl'", {"kind": "kll"}),
        (teacher, "'mse' compares raw logits; given: 'full' at temperature 2", {"kind": "mse", "temperature": 2.0}),
        (some, "'mse' compares raw logits; given: 'topk' at temperature 1", {"kind": "mse"}),
        (drawn, "loss of logits is 'jsd'; allowed with sampled tokens: 'kl'", {"kind": "jsd"}),
    ]:
        with pytest.raises(InputError, match=match):
            logit_loss(hidden, weight, wrong, **options)
