"""Online teachers: logits, hidden states and attention maps are those of the model itself; what is asked wrongly is refused."""

import json
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM,
    T5Config, T5ForConditionalGeneration,
)

from modernllm.core.config import InputError
from modernllm.data.encoding import IGNORE
from modernllm.distill.signals import (
    OnlineTeacher, SignalSettings, TeacherHead, check_vocabulary, draw_tokens, kept_attention, model_sha256, top_logits,
)
from modernllm.models.config import ModernLLMConfig
from modernllm.models.logprobs import ROWS
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.objectives import Objective

V = 70


def ours(**more):
    torch.manual_seed(0)
    return ModernDecoderLM(ModernLLMConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                           initializer_range=0.3, **more)).eval()


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.3, pad_token_id=0, **more)).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3,
                                      bos_token_id=0, eos_token_id=0)).eval()


def with_bias():
    "A model whose head is no plain matrix."
    model = llama(tie_word_embeddings=False)
    model.lm_head = nn.Linear(32, V)
    return model.eval()


MODELS = {"ours": ours, "softcap": lambda: ours(final_logit_softcapping=5.0), "llama": llama, "gpt2": gpt2, "bias": with_bias}


def a_batch(rows=3, time=9):
    ids = torch.randint(1, V, (rows, time + 1), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].clone()
    targets[1, 4:] = targets[0, 2] = IGNORE
    return {"input_ids": ids[:, :-1], "targets": targets}


BATCH = a_batch()
SCORED = BATCH["targets"] != IGNORE


def table(given):
    if not isinstance(given, TeacherHead):
        return given
    product = given.hidden @ given.weight.T
    return given.softcap * torch.tanh(product / given.softcap) if given.softcap else product


@pytest.mark.parametrize("name", MODELS)
def test_full_logits_are_those_of_the_model(name):
    model = MODELS[name]()
    expected = model(input_ids=BATCH["input_ids"]).logits[SCORED]
    given = OnlineTeacher(model).signal(BATCH)
    assert isinstance(given.logits, TeacherHead) == (name != "bias") and not given.hidden and not given.attentions
    torch.testing.assert_close(table(given.logits), expected.detach(), rtol=1e-5, atol=1e-5)


class Sizes(TorchDispatchMode):
    "The largest tensor with the vocabulary as its last dimension that an operation made."

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.ndim and out.shape[-1] == V and out.shape != (32, V):  # the matrix
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("kind, rows", [("full", 0), ("topk", 4), ("sampled", 4)])
def test_the_table_of_logits_never_exists(kind, rows, monkeypatch):
    monkeypatch.setitem(ROWS, "cpu", (4, 3))
    teacher = OnlineTeacher(ours(), SignalSettings(logits=kind, k=3, hidden=(0, 2)))
    with Sizes() as seen:
        teacher.signal(BATCH)
    assert seen.largest == rows * V < SCORED.sum() * V


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("k, temperature", [(1, 1.0), (5, 0.7), (V, 3.0)])
def test_top_logits(name, k, temperature):
    model = MODELS[name]()
    logprobs = (model(input_ids=BATCH["input_ids"]).logits[SCORED].detach() / temperature).log_softmax(-1)
    given = OnlineTeacher(model, SignalSettings(logits="topk", k=k, temperature=temperature)).signal(BATCH).logits
    assert given.ids.shape == given.logprobs.shape == (int(SCORED.sum()), k) and given.logprobs.dtype == torch.float32
    torch.testing.assert_close(given.logprobs, logprobs.sort(descending=True).values[:, :k], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given.logprobs, logprobs.gather(1, given.ids), rtol=1e-5, atol=1e-5)
    rest = logprobs.scatter(1, given.ids, -math.inf).logsumexp(-1)
    torch.testing.assert_close(given.tail, rest, rtol=1e-4, atol=1e-4)
    assert (given.tail == -math.inf).all() == (k == V)


def test_chunks_do_not_matter(monkeypatch):
    logits = TeacherHead(torch.randn(11, 8), torch.randn(V, 8), 20.0)
    whole, as_table = top_logits(logits, 6, 2.0), top_logits(table(logits), 6, 2.0)
    monkeypatch.setitem(ROWS, "cpu", (4, 3))
    parts = top_logits(logits, 6, 2.0)
    for one, other in zip((*whole, *whole), (*parts, *as_table)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert draw_tokens(logits, 5).ids.shape == (11, 5)


def test_small_tails_are_exact():
    for far in (5.0, 15.0, 30.0, 60.0):
        logits = torch.tensor([[0.0, 0.3, -far, -far - 1]])
        expected = logits.double().log_softmax(-1)[0, 2:].logsumexp(-1)
        assert top_logits(logits, 2).tail.item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_scored_place():
    batch = {**BATCH, "targets": torch.full_like(BATCH["targets"], IGNORE)}
    for kind, width in (("topk", 3), ("sampled", 3)):
        given = OnlineTeacher(ours(), SignalSettings(logits=kind, k=3)).signal(batch).logits
        assert given.ids.shape == (0, width)
    assert OnlineTeacher(ours()).signal(batch).logits.hidden.shape == (0, 32)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_draws_follow_the_distribution_and_the_seed(temperature):
    model = ours()
    teacher = OnlineTeacher(model, SignalSettings(logits="sampled", k=20_000, temperature=temperature))
    expected = (model(input_ids=BATCH["input_ids"]).logits[SCORED] / temperature).softmax(-1)
    torch.manual_seed(3)
    ids = teacher.signal(BATCH).logits.ids
    shares = torch.stack([row.bincount(minlength=V) for row in ids]) / 20_000
    torch.testing.assert_close(shares, expected.detach(), rtol=0, atol=0.015)
    torch.manual_seed(3)
    assert teacher.signal(BATCH).logits.ids.equal(ids)


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_counted_as_in_transformers(name):
    model = MODELS[name]()
    n = model.config.num_hidden_layers
    expected = model(input_ids=BATCH["input_ids"], output_hidden_states=True).hidden_states
    given = OnlineTeacher(model, SignalSettings(hidden=(n, 0, 1))).signal(BATCH).hidden
    assert list(given) == [n, 0, 1]
    for layer, values in given.items():
        torch.testing.assert_close(values, expected[layer].detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ours", "llama", "gpt2"])
def test_attention_maps(name):
    model = MODELS[name]()
    implementation, n = model.config._attn_implementation, model.config.num_hidden_layers
    assert implementation == "sdpa"  # which does not give any
    given = OnlineTeacher(model, SignalSettings(logits="full", attentions=(n,), hidden=(1,))).signal(BATCH)
    assert list(given.attentions) == [n] and model.config._attn_implementation == implementation
    logits = model(input_ids=BATCH["input_ids"]).logits[SCORED].detach()
    torch.testing.assert_close(table(given.logits), logits, rtol=1e-4, atol=1e-4)
    if name != "ours":
        model.set_attn_implementation("eager")
    expected = model(input_ids=BATCH["input_ids"], output_attentions=True).attentions[n - 1]
    torch.testing.assert_close(given.attentions[n], expected.detach(), rtol=1e-4, atol=1e-5)
    assert given.attentions[n].triu(1).abs().max() == 0


def test_attention_and_logits_alone():
    given = OnlineTeacher(ours(), SignalSettings(logits="none", attentions=(1,))).signal(BATCH)
    assert given.logits is None and not given.hidden and given.attentions[1].shape == (3, 2, 9, 9)


@pytest.mark.parametrize("name", ["ours", "llama"])
def test_padding_is_masked(name):
    teacher = OnlineTeacher(MODELS[name](), SignalSettings(hidden=(1,), attentions=(1,)))
    short = {"input_ids": BATCH["input_ids"][:, :6], "targets": BATCH["targets"][:, :6].clone()}
    pad = torch.zeros(3, 3, dtype=torch.int64)
    padded = {"input_ids": torch.cat((pad, short["input_ids"]), 1), "targets": torch.cat((pad + IGNORE, short["targets"]), 1),
              "attention_mask": torch.cat((pad, torch.ones(3, 6, dtype=torch.int64)), 1),
              "position_ids": torch.arange(-3, 6).clamp(min=0).expand(3, -1)}
    alone, with_pads = teacher.signal(short), teacher.signal(padded)
    torch.testing.assert_close(with_pads.logits.hidden, alone.logits.hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_pads.hidden[1][:, 3:], alone.hidden[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_pads.attentions[1][:, :, 3:, 3:], alone.attentions[1], rtol=1e-4, atol=1e-5)


def test_frozen_and_without_dropout_inside_an_objective():
    objective, model = Objective(), llama(attention_dropout=0.5).train()
    objective.teacher = OnlineTeacher(model)
    objective.student = nn.Linear(2, 2)
    objective.train()
    assert objective.student.training and not any(module.training for module in objective.teacher.modules())
    one, two = (objective.teacher.signal(BATCH).logits.hidden for _ in range(2))
    assert one.equal(two) and not one.requires_grad and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["ours", "llama"])
def test_kept_attention_has_gradients_and_ends_with_the_block(name):
    model = MODELS[name]()
    with kept_attention(model, (2,)) as found:
        out = model.model(input_ids=BATCH["input_ids"], output_attentions=True)
    assert list(found) == [2] and all(maps is None for maps in out.attentions)
    found[2].square().sum().backward()
    assert model.model.layers[1].self_attn.q_proj.weight.grad.abs().sum() > 0
    assert model.model(input_ids=BATCH["input_ids"], output_attentions=True).attentions is not None and len(found) == 1


def test_a_model_without_attention_probabilities_is_refused():
    model = MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(InputError, match="attentions: layer 1 of a MambaForCausalLM gives no attention probabilities"):
        OnlineTeacher(model, SignalSettings(attentions=(1,))).signal(BATCH)


@pytest.mark.parametrize("kind", ["full", "topk", "sampled"])
def test_under_autocast(kind):
    teacher = OnlineTeacher(llama(), SignalSettings(logits=kind, k=4, hidden=(1,), attentions=(1,)))
    exact = teacher.signal(BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        given = teacher.signal(BATCH)
    torch.testing.assert_close(given.hidden[1].float(), exact.hidden[1], rtol=0.05, atol=0.1)
    if kind == "topk":
        assert given.logits.logprobs.dtype == torch.float32
        torch.testing.assert_close(given.logits.logprobs, exact.logits.logprobs, rtol=0, atol=0.2)


def test_sha256_is_of_weights_and_configuration(tmp_path):
    model = llama()
    one = OnlineTeacher(model).sha256
    model.requires_grad_(True).train().save_pretrained(tmp_path)
    assert model_sha256(model) == model_sha256(LlamaForCausalLM.from_pretrained(tmp_path)) == one
    assert model_sha256(llama(rope_parameters={"rope_type": "default", "rope_theta": 5e5})) != one
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[-1, -1] += 1e-3  # the last number of a matrix
    assert model_sha256(model) != one


def test_identity():
    model = ours()
    one = OnlineTeacher(model, SignalSettings(logits="topk", k=3)).identity()
    assert json.loads(json.dumps(one)) == one and one["k"] == 3 and len(one["teacher"]) == 64
    assert OnlineTeacher(ours(), SignalSettings(logits="topk", k=3)).identity() == one
    assert OnlineTeacher(model, SignalSettings(logits="topk", k=4)).identity() != one


@pytest.mark.parametrize("values, named", [
    ({"temperature": 0}, "temperature is 0; allowed: greater than 0"), ({"temperature": -1.0}, "temperature"),
    ({"temperature": math.nan}, "temperature"), ({"k": 0}, "k is 0"), ({"logits": "top"}, "logits"),
    ({"hidden": (-1,)}, "hidden.0"), ({"attentions": (0,)}, "attentions.0"), ({"logits": "none"}, "nothing is asked for"),
    ({"hiden": (1,)}, "did you mean 'hidden'"),
])
def test_settings_refused(values, named):
    with pytest.raises(InputError, match=named) as caught:
        SignalSettings(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values, named", [
    ({"logits": "topk", "k": V + 1}, f"k is {V + 1}, more than the {V} tokens of the teacher's vocabulary"),
    ({"hidden": (1, 3)}, "hidden: layer 3 is out of range; allowed: 0 to 2"),
    ({"attentions": (3,)}, "attentions: layer 3 is out of range; allowed: 1 to 2"),
])
def test_more_than_the_teacher_has(values, named):
    with pytest.raises(InputError, match=named):
        OnlineTeacher(ours(), SignalSettings(**values))


def test_encoder_decoders_are_refused():
    model = T5ForConditionalGeneration(T5Config(vocab_size=V, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(InputError, match="T5ForConditionalGeneration, an encoder-decoder"):
        OnlineTeacher(model)


def test_weights_that_are_not_finite():
    model = ours()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = math.nan
    with pytest.raises(InputError, match=r"its weight model.layers.1.mlp.up_proj.weight holds values that are not finite"):
        OnlineTeacher(model)


@pytest.mark.parametrize("kind", ["full", "topk", "sampled"])
@pytest.mark.parametrize("name", ["ours", "bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite(kind, name, value, monkeypatch):
    monkeypatch.setitem(ROWS, "cpu", (4, 3))
    model = MODELS[name]()
    teacher = OnlineTeacher(model, SignalSettings(logits=kind, k=3))
    teacher.signal(BATCH)
    places = SCORED.nonzero().tolist()

    def overflow(module, given, out):
        out[0][tuple(places[13])] = value
        return out

    model.model.register_forward_hook(overflow)
    with pytest.raises(InputError, match="teacher: its logits are not finite at scored position 13 of the batch") as caught:
        teacher.signal(BATCH)
    assert "\n" not in str(caught.value)


def test_vocabulary_mismatch():
    check_vocabulary(V, V)
    with pytest.raises(InputError, match="the teacher has 49,152 tokens, the student 8,192; .*as a shape, or .* trained "
                       "with the teacher's tokenizer"):
        check_vocabulary(49_152, 8192)


def test_models_that_do_not_keep_documents_apart_are_refused():
    batch = {**BATCH, "position_ids": torch.arange(9).remainder(5).expand(3, -1)}
    assert OnlineTeacher(ours()).signal(batch).logits.hidden.isfinite().all()
    with pytest.raises(InputError, match="BloomForCausalLM does not keep documents apart"):
        OnlineTeacher(BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=32, n_layer=1, n_head=2))).signal(batch)
