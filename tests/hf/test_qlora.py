"""QLoRA: what is stored in 4 bits, its adapters, and training on it, killed and resumed."""

import copy
import json
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.hf.adapters import LoraSettings, add_lora, load_adapter, merge, save_adapter
from modernllm.hf.qlora import load_4bit, load_8bit
from modernllm.hf.task_training import Tuning, prepare_model, trained_share
from modernllm.hf.tasks import find_task
from modernllm.models.pretrained import find_pretrained
from modernllm.models.sources import load_pretrained, save_model
from modernllm.training import checkpoint as checkpoints
from modernllm.training.callbacks import Callback
from modernllm.training.config import TrainConfig
from modernllm.training.identity import model_identity
from modernllm.training.objectives import LanguageModelling
from modernllm.training.trainer import Trainer

TOKENIZER = train_bpe(["the sea was calm and the ship was slow"] * 9, 270)
VOCABULARY = len(TOKENIZER)
IDS = torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))


def llama(**changes):
    torch.manual_seed(0)
    shape = dict(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(LlamaConfig(**{**shape, **changes}))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("base")
    model = llama()
    model.generation_config.max_new_tokens = 7
    save_model(folder, model, TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def in_4bit(base):
    return load_4bit(base)[0]


def narrow_layers(model):
    return [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def far(one, other):
    return ((one - other).norm() / one.norm()).item()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="^a base in 4 bits needs the package bitsandbytes: pip install bitsandbytes$"):
        load_4bit("no such folder")


def test_linear_layers_of_the_backbone_are_nf4(base, in_4bit):
    from bitsandbytes.functional import dequantize_4bit

    wide, tokenizer = load_pretrained(base)
    assert len(narrow_layers(in_4bit)) == 2 * 7 and all(name.startswith("model.layers.") for name in narrow_layers(in_4bit))
    for name in narrow_layers(in_4bit):
        layer, before = in_4bit.get_submodule(name), wide.get_submodule(name).weight
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested, state.blocksize, layer.compute_dtype) == ("nf4", True, 64, torch.bfloat16)
        assert far(before, dequantize_4bit(layer.weight.data, state)) < 0.12 and not layer.weight.requires_grad
    rest = {name for name, p in in_4bit.named_parameters() if p.dtype == torch.float32}
    assert rest == {name for name, _ in wide.named_parameters() if "proj" not in name}
    assert 0 < far(logits(wide), logits(in_4bit)) < 0.15
    assert in_4bit.generation_config.max_new_tokens == 7 and not in_4bit.training and len(tokenizer) == VOCABULARY


def test_8_bits(base, in_4bit):
    wide, model = load_pretrained(base)[0], load_8bit(base)[0]
    layers = [name for name, module in model.named_modules() if type(module).__name__ == "Linear8bitLt"]
    assert layers == narrow_layers(in_4bit) and all(model.get_submodule(name).weight.dtype == torch.int8 for name in layers)
    assert 0 < 4 * far(logits(wide), logits(model)) < far(logits(wide), logits(in_4bit))
    adapted = add_lora(model, LoraSettings(r=2))
    adapted(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for name, p in adapted.named_parameters() if "lora_" in name)


def test_a_head_for_classification_stays_float32_and_is_trained(base):
    model = load_4bit(base, "classification", num_labels=3)[0]
    assert type(model.score) is torch.nn.Linear and len(narrow_layers(model)) == 2 * 7
    model.config.pad_token_id = 0
    adapted = add_lora(model, LoraSettings(r=2), "SEQ_CLS")
    adapted(IDS, labels=torch.tensor([0, 2])).loss.backward()
    assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora_A" in name or "modules_to_save" in name)


def test_conv1d_of_gpt2_and_biases(base, tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    save_model(tmp_path, GPT2LMHeadModel(config), TOKENIZER)
    wide, narrow = load_pretrained(tmp_path)[0], load_4bit(tmp_path)[0]
    state = {name: t.clone() for name, t in narrow.state_dict().items()}
    assert len(narrow_layers(narrow)) == 4 and far(logits(wide), logits(load_4bit(tmp_path)[0])) < 0.15
    logits(narrow)
    assert all(torch.equal(t, state[name]) and t.dtype == state[name].dtype for name, t in narrow.state_dict().items())


def test_nothing_to_store_in_4_bits(base, tmp_path):
    save_model(tmp_path / "flat", llama(num_hidden_layers=0), TOKENIZER)
    with pytest.raises(InputError, match="flat: LlamaForCausalLM has no linear layers that could be stored in 4 bits$"):
        load_4bit(tmp_path / "flat")
    with pytest.raises(InputError, match="kind of model.*causal"):
        load_4bit(base, "encoder")


def test_adapters_fit_both_bases_and_no_other(base, in_4bit, tmp_path):
    own = add_lora(copy.deepcopy(in_4bit), LoraSettings(r=2)).eval()
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    save_adapter(tmp_path / "adapter", own, find_pretrained(str(base)))
    assert json.loads((tmp_path / "adapter/base.json").read_text())["load_in_4bit"] is True
    trained = logits(own)
    assert torch.equal(logits(load_adapter(tmp_path / "adapter", load=load_4bit)[0]), trained)
    wide = load_adapter(tmp_path / "adapter")[0]
    assert far(trained, logits(in_4bit)) > 0.3 > 0.15 > far(trained, logits(wide)) > 0
    assert far(logits(wide), logits(merge(copy.deepcopy(wide)))) < 1e-5
    save_model(tmp_path / "other", llama(intermediate_size=64), TOKENIZER)
    with pytest.raises(InputError, match="is an adapter for base"):
        load_adapter(tmp_path / "adapter", find_pretrained(str(tmp_path / "other")), load=load_4bit)
    save_adapter(tmp_path / "of float32", add_lora(load_pretrained(base)[0], LoraSettings(r=2)), find_pretrained(str(base)))
    assert json.loads((tmp_path / "of float32/base.json").read_text())["load_in_4bit"] is False


def test_an_evaluation_changes_no_gradient(in_4bit):
    "Left alone, bitsandbytes packs the weights at the first evaluation on some processors; their product has no gradient."
    model = add_lora(copy.deepcopy(in_4bit), LoraSettings(r=2))

    def gradients():
        model.train().zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    before = gradients()
    evaluated = logits(model.eval())
    assert all(torch.equal(gradient, before[name]) for name, gradient in gradients().items())
    assert any(gradient.any() for name, gradient in before.items() if "layers.0" in name)
    assert torch.equal(evaluated, logits(model.train()))


@pytest.mark.parametrize("kind", ["causal", "classification"])
def test_a_task_is_prepared_on_a_base_in_4_bits(base, kind):
    weights, task = find_pretrained(str(base)), find_task("sst2")
    wide, narrow = (prepare_model(weights, task, Tuning(lora_r=2, qlora=qlora), kind)[0] for qlora in (False, True))
    assert narrow.is_loaded_in_4bit and not getattr(wide, "is_loaded_in_4bit", False)
    trained, total = wide.get_nb_trainable_parameters()
    assert trained_share(narrow) == trained_share(wide) == trained / total


# Training


class Batches:
    def __getitem__(self, i):
        drawn = torch.randint(0, VOCABULARY, (2, 13), generator=torch.Generator().manual_seed(i))
        return {"input_ids": drawn[:, :-1], "targets": drawn[:, 1:]}


class Killed(Exception):
    pass


class KilledAtStep8(Callback):
    def step_end(self, trainer, row):
        if row["step"] == 8:
            raise Killed


def loss_of(model, objective):
    out = objective.loss(model, Batches()[99])
    return {"loss": out.total / out.weight}


def trainer(folder, base, callbacks=()):
    torch.manual_seed(1)
    model = add_lora(load_4bit(base)[0], LoraSettings(r=2, dropout=0.1))
    config = TrainConfig(max_steps=12, learning_rate=1e-2, eval_every=3, log_every=1, checkpoint_every_steps=5, trackers=())
    return Trainer(model, LanguageModelling(), Batches(), config, evaluate=loss_of, callbacks=list(callbacks), folder=folder)


def test_killed_and_resumed_bit_for_bit(base, tmp_path):
    alone = trainer(None, base)
    whole = alone.fit()
    with pytest.raises(Killed):
        trainer(tmp_path, base, [KilledAtStep8()]).fit()
    resumed = trainer(tmp_path, base)
    assert resumed.fit().history == whole.history
    kept, fresh = resumed.model.state_dict(), trainer(None, base).model.state_dict()
    assert all(torch.equal(kept[name], t) for name, t in alone.model.state_dict().items())
    changed = {name for name, t in fresh.items() if not torch.equal(t, kept[name])}
    assert changed == {name for name in fresh if "lora" in name}
    assert all("lora" in name for name in checkpoints.load_latest(tmp_path).weights)


def test_another_base_of_the_same_codes_is_refused(base, in_4bit, tmp_path):
    "Twice the weights have the same indices and other scales."
    model = load_pretrained(base)[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.mul_(2)
    save_model(tmp_path / "twice", model, TOKENIZER)
    again, twice = load_4bit(base)[0], load_4bit(tmp_path / "twice")[0]
    assert torch.equal(in_4bit.model.layers[0].mlp.up_proj.weight, twice.model.layers[0].mlp.up_proj.weight)
    digests = [model_identity(m, m.model.layers)["digest of frozen weights"] for m in (in_4bit, again, twice)]
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(Killed):
        trainer(tmp_path / "run", base, [KilledAtStep8()]).fit()
    with pytest.raises(InputError, match="digest of frozen weights is"):
        trainer(tmp_path / "run", tmp_path / "twice").fit()
