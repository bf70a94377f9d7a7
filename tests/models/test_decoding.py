"Our loop behind `generate` against that of `transformers`: the same tokens, and who does what."

from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune
from transformers import ContinuousBatchingConfig, GenerationConfig, GenerationMixin, LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from modernllm.core.config import InputError
from modernllm.data.tokenizers import SMALLEST, train_bpe
from modernllm.models import decoding, transformer
from modernllm.models.config import ModernLLMConfig
from modernllm.models.feedforward import SwiGLU
from modernllm.models.transformer import ModernDecoderLM

MODELS = {
    "plain": {},
    "grouped, normed": {"num_key_value_heads": 2, "qk_norm": True},
    "sinks, gate": {"attention_sinks": True, "attention_gate": True, "num_key_value_heads": 1},
    "windows": {"sliding_window": 6, "full_attention_every": 2},
    "windows, sinks, norms": {"sliding_window": 5, "attention_sinks": True, "qk_norm": True},
    "experts": {"num_local_experts": 4, "decoder_sparse_step": 2, "shared_expert_intermediate_size": 24},
    "cap, own head": {"final_logit_softcapping": 5.0, "tie_word_embeddings": False},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}},
    "rolling": {"cache_window": 12, "cache_sinks": 4},
}
WAYS = {
    "greedy": {"do_sample": False},
    "until a token": {"do_sample": False, "eos_token_id": 7},
    "sampling": {"do_sample": True, "top_k": 0},
    "top k and p": {"do_sample": True, "top_k": 9, "top_p": 0.9, "temperature": 0.7, "num_return_sequences": 2,
                    "eos_token_id": 7},
    "processors": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5,
                   "eos_token_id": 7},
    "several end tokens": {"do_sample": False, "eos_token_id": [7, 30, 41], "min_new_tokens": 2},
    "several continuations": {"do_sample": True, "num_return_sequences": 3, "eos_token_id": [7, 30]},
    "prompt in pieces": {"do_sample": False, "prefill_chunk_size": 4},
}


def build(**options):
    torch.manual_seed(0)
    fields = dict(vocab_size=60, hidden_size=32, num_attention_heads=4, num_hidden_layers=2, initializer_range=0.3)
    model = ModernDecoderLM(ModernLLMConfig(**fields, max_position_embeddings=64, **options)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # scales of norms, and sinks: not all alike
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    return model


def prompts(padding=(0, 4, 1)):
    ids = torch.randint(1, 60, (len(padding), 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate(padding):
        mask[row, :length] = 0
    return {"input_ids": ids, "attention_mask": mask}


class Odd(LogitsProcessor):
    "Only tokens with odd ids."

    def __call__(self, input_ids, scores):
        return scores.masked_fill(torch.arange(scores.shape[1]) % 2 == 0, -torch.inf)


class Received(BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens.append(value)

    def end(self):
        pass


class Halved(torch.Tensor):
    "A weight that is stored doubled, as quantised weights are stored otherwise: products know, reading does not."

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            with torch._C.DisableTorchFunctionSubclass():
                return function(args[0], args[1] / 2)
        return super().__torch_function__(function, types, args, kwargs or {})


class Rounded(nn.Linear):
    "What a layer of this package may become: it multiplies with other numbers than it stores."

    def forward(self, x):
        return nn.functional.linear(x, self.weight.sign() * self.weight.abs().mean())


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Prepared(ModernDecoderLM):
    calls = 0

    def prepare_inputs_for_generation(self, *args, **kwargs):
        self.calls += 1
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return inputs | {"position_ids": inputs["position_ids"] * 2}


def replaced(model, **attributes):
    "The first down projection becomes a module of another class of this package."
    old, kind = model.model.layers[0].mlp.down_proj, type("BitLinear", (Rounded,), attributes)
    new = kind(old.in_features, old.out_features, bias=False).eval()
    new.weight = old.weight
    model.model.layers[0].mlp.down_proj = new


def subclassed(model):
    projection = model.model.layers[0].self_attn.o_proj
    projection.weight = nn.Parameter(torch.Tensor._make_subclass(Halved, projection.weight.data), requires_grad=False)
    assert type(projection.weight) is Halved


def pruned(model):
    "One layer's feed-forward network gets narrower than the configuration says."
    mlp = model.model.layers[0].mlp
    for matrix in (mlp.gate_proj, mlp.up_proj):
        matrix.weight = nn.Parameter(matrix.weight[:40].detach())
    mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, :40].detach())


def reordered(model):
    model.model.layers = nn.ModuleList(reversed(model.model.layers))


def prepared_in_place(model):
    def prepare(*args, **kwargs):
        inputs = GenerationMixin.prepare_inputs_for_generation(model, *args, **kwargs)
        return inputs | {"position_ids": inputs["position_ids"] * 2}

    model.prepare_inputs_for_generation = prepare


def forward_in_place(model):
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: -SwiGLU.forward(mlp, x)


def bias_added(model):
    model.model.layers[0].self_attn.v_proj.bias = nn.Parameter(torch.linspace(-2, 2, 32))


def hooked(kind):
    def change(model):
        register = getattr(model.model.layers[0].self_attn.q_proj, f"register_forward_{kind}")
        register((lambda _, x: (x[0] * 2,)) if kind == "pre_hook" else (lambda _, x, out: out * 2))

    return change


CHANGES = {  # each of these changes what the model computes
    "forward hook": hooked("hook"),
    "forward pre-hook": hooked("pre_hook"),
    "subclass of Linear": lambda m: replaced(m, __module__="modernllm.models.feedforward"),
    "subclass that calls itself Linear": lambda m: replaced(m, __module__="torch.nn.modules.linear", __qualname__="Linear"),
    "tensor subclass": subclassed,
    "parametrised weight": lambda m: parametrize.register_parametrization(m.model.layers[0].mlp.up_proj, "weight", Doubled()),
    "pruned weights": lambda m: prune.l1_unstructured(m.model.layers[0].mlp.up_proj, "weight", 0.5),
    "bias": bias_added,
    "forward of an instance": forward_in_place,
    "preparation of an instance": prepared_in_place,
    "narrower layer": pruned,
    "other epsilon": lambda m: setattr(m.model.layers[0].post_attention_layernorm, "eps", 9.0),
}
ADAPTERS = {
    "LoRA": LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    "prompt tuning": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix tuning": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


def generate(model, seed=0, **how):
    torch.manual_seed(seed)
    return model.generate(**{"max_new_tokens": 20, "pad_token_id": 0, **how})


@contextmanager
def theirs():
    with patch.object(transformer, "can_decode", lambda *_, **__: False):
        yield


@contextmanager
def steps():
    "Counts how many loops of each kind of step are begun."
    counts = {"FastStep": 0, "ModelStep": 0}

    def counted(name, kind):
        def make(*args):
            counts[name] += 1
            return kind(*args)
        return patch.object(decoding, name, make)

    with counted("FastStep", decoding.FastStep), counted("ModelStep", decoding.ModelStep):
        yield counts


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_the_same_tokens(options):
    model, kind = build(**options), "ModelStep" if "cache_window" in options else "FastStep"
    for way in WAYS.values():
        for inputs in (prompts(), {"input_ids": prompts()["input_ids"]}):
            with steps() as begun:
                ours = generate(model, **inputs, **way)
            assert begun[kind] == sum(begun.values()) == 1
            with theirs():
                assert torch.equal(ours, generate(model, **inputs, **way))


def test_a_step_is_the_model():
    model, inputs = build(qk_norm=True, attention_gate=True), prompts((0,))
    with torch.inference_mode():
        cache = model(inputs["input_ids"], use_cache=True).past_key_values
        step = decoding.FastStep(model, cache, None, torch.tensor([[8]]), 1, 9)
        for token in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5):  # more than there is room for at first
            tokens = torch.tensor([token])
            torch.testing.assert_close(step(tokens), model(tokens[:, None], past_key_values=cache).logits[:, -1],
                                       atol=1e-4, rtol=1e-4)


def test_generation_from_embeddings_and_from_given_positions():
    model, inputs = build(), prompts()
    embedded = model.get_input_embeddings()(inputs["input_ids"]).detach()
    for extra in ({"inputs_embeds": embedded}, {"input_ids": inputs["input_ids"], "position_ids": torch.arange(9)[None] * 2 + 1}):
        how = {"attention_mask": inputs["attention_mask"], "do_sample": False, **extra}
        ours = generate(model, **how)
        with theirs():
            assert torch.equal(ours, generate(model, **how))


def test_what_it_does_not_do_is_done_by_transformers():
    model, inputs = build(), prompts()
    ours = generate(model, **inputs, do_sample=False)
    with patch.object(transformer, "decode", side_effect=AssertionError):
        whole = generate(model, **inputs, do_sample=False, return_dict_in_generate=True)
        assert torch.equal(whole.sequences, ours) and whole.past_key_values.get_seq_length() == 28
        static = generate(model, **inputs, do_sample=False, cache_implementation="static")
        without = generate(model, **inputs, do_sample=False, use_cache=False)
        assert torch.equal(static, ours) and torch.equal(without, ours)
        generate(model, **inputs, do_sample=False, num_beams=2)
        generate(model.train(), **inputs, do_sample=False)


def by_transformers(model, **how):
    "Generate as asked for, and in a way that only the other loop knows: no step of ours is allowed, and no difference."
    with steps() as begun, patch.object(transformer, "decode", side_effect=AssertionError):
        plain = generate(model, **how)
        whole = generate(model, **how, return_dict_in_generate=True).sequences
    assert sum(begun.values()) == 0 and torch.equal(plain, whole)
    return plain


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model_is_left_to_transformers(change):
    model, inputs = build(), prompts()
    before = generate(model, **inputs, do_sample=False)
    change(model)
    assert not torch.equal(by_transformers(model, **inputs, do_sample=False), before)


@pytest.mark.parametrize("config", ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_are_left_to_transformers(config):
    model, inputs = build(), prompts()
    before = generate(model, **inputs, do_sample=False)
    adapted = get_peft_model(model, config).eval()
    for name, weight in adapted.named_parameters():
        if "prompt_encoder" in name:
            nn.init.normal_(weight)
    if config.peft_type == "PREFIX_TUNING":  # without padding: the attention mask is dropped, the prefix is there nevertheless
        inputs = prompts((0, 0, 0))
        before = generate(model, **inputs, do_sample=False)
    ours = by_transformers(adapted, **inputs, do_sample=False)
    assert not torch.equal(ours, before)
    if config.peft_type == "LORA":
        merged = adapted.merge_and_unload()
        with steps() as begun:
            assert torch.equal(generate(merged, **inputs, do_sample=False), ours)
    else:
        with steps() as begun:
            assert torch.equal(generate(adapted.get_base_model(), **inputs, do_sample=False), before)
    assert begun == {"FastStep": 1, "ModelStep": 0}


def test_classes_and_places_that_are_not_as_built():
    inputs = prompts()
    own = build()
    model = Prepared(own.config).eval()
    model.load_state_dict(own.state_dict())
    assert not torch.equal(by_transformers(model, **inputs, do_sample=False), generate(own, **inputs, do_sample=False))
    assert model.calls == 2 * 20
    reordered(own)
    assert not decoding.is_unmodified(own, transformer.OWN_MODULES)
    for change in (lambda m: m.model.layers[0].train(), lambda m: setattr(m.model.embed_tokens, "max_norm", 0.5)):
        own = build()
        change(own)
        assert not decoding.is_unmodified(own, transformer.OWN_MODULES)
    with patch.object(SwiGLU, "forward", lambda self, x: -self.down_proj(x[..., :1].expand(-1, -1, 96))):
        assert not decoding.is_unmodified(build(), transformer.OWN_MODULES)
    handle = register_module_forward_hook(lambda *_: None)
    try:
        assert not decoding.is_unmodified(build(), transformer.OWN_MODULES)
    finally:
        handle.remove()
    assert decoding.is_unmodified(build(), transformer.OWN_MODULES)


def test_inputs_that_are_not_known_and_streamers_are_left_to_transformers():
    model, inputs, streamer = build(), prompts((0,)), Received()
    plain = generate(model, **inputs, do_sample=False)
    assert torch.equal(by_transformers(model, **inputs, do_sample=False, output_attentions=True), plain)
    with steps() as begun:
        assert torch.equal(generate(model, **inputs, do_sample=False, streamer=streamer), plain)
    assert sum(begun.values()) == 0 and torch.cat([t.flatten() for t in streamer.tokens]).tolist() == plain[0].tolist()


def test_processors_and_stop_strings_of_the_caller():
    tokenizer = train_bpe(["some text"], vocab_size=SMALLEST)
    torch.manual_seed(0)
    fields = dict(vocab_size=SMALLEST, hidden_size=32, num_hidden_layers=2, initializer_range=0.3)
    model, ids = ModernDecoderLM(ModernLLMConfig(**fields)).eval(), torch.tensor([tokenizer("some")["input_ids"]])
    free = generate(model, input_ids=ids, do_sample=False)
    new = free[0, ids.shape[1] :].tolist()
    stop = tokenizer.decode(next(token for i, token in enumerate(new) if i > 2 and token not in new[:i] and token < 128))
    for how in ({"logits_processor": [Odd()]}, {"stop_strings": [stop], "tokenizer": tokenizer}):
        with steps() as begun:
            ours = generate(model, input_ids=ids, do_sample=False, **how)
        assert begun["FastStep"] == 1 and not torch.equal(ours, free)
        assert torch.equal(ours, generate(model, input_ids=ids, do_sample=False, return_dict_in_generate=True, **how).sequences)


def test_other_numbers_are_asked_of_the_model_at_every_step():
    for model, around in ((build(), torch.autocast("cpu", torch.bfloat16)), (build().bfloat16(), nullcontext())):
        with around, steps() as begun:
            ours = generate(model, **prompts(), do_sample=False)
        with around, theirs():
            assert begun == {"FastStep": 0, "ModelStep": 1} and torch.equal(ours, generate(model, **prompts(), do_sample=False))


@pytest.mark.parametrize("name", ["windows, sinks, norms", "experts"])
def test_continuous_batching(name):
    model, rows = build(**MODELS[name]), [[3, 4, 5], [7, 8, 9, 10, 11, 12, 13, 14, 15], [1]]
    how = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=59, pad_token_id=0)
    small = ContinuousBatchingConfig(page_size=8, num_blocks=16, max_batch_tokens=32)
    out = model.generate_batch(inputs=rows, generation_config=how, continuous_batching_config=small)
    alone = [model.generate(torch.tensor([row]), generation_config=how)[0, len(row) :].tolist() for row in rows]
    assert [(row.generated_tokens, row.error) for row in out.values()] == [(tokens, None) for tokens in alone]


def test_continuous_batching_refused():
    with pytest.raises(InputError, match="cache_window: given 12"):
        build(**MODELS["rolling"]).generate_batch(inputs=[[1, 2]])
    model = build()
    model.config._attn_implementation = "eager"
    with pytest.raises(InputError, match="attn_implementation: given 'eager'"):
        model.generate_batch(inputs=[[1, 2]])


def test_changed_weights_are_seen_and_results_can_be_used_in_training():
    model, inputs = build(), prompts((0,))
    before = generate(model, **inputs, do_sample=False)
    model.lm_head.weight.data.neg_()  # leaves no trace in the parameter's version
    after = generate(model, **inputs, do_sample=False)
    assert not torch.equal(before, after)
    model.train()(after, labels=after).loss.backward()
