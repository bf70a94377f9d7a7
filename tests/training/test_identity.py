"A folder of checkpoints belongs to one training: another is refused with one line, and nothing is written."

import hashlib
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from test_resume import Crash
from test_trainer import Counter, make
from transformers import LlamaConfig, LlamaForCausalLM
from workers import ShuffledBatches, TinyObjective, weights_hash

from modernllm.core.config import InputError
from modernllm.data.corpus import LMBatches, TokenSplit
from modernllm.training import checkpoint as checkpoints
from modernllm.training.averaging import EMA
from modernllm.training.callbacks import ProgressBar
from modernllm.training.config import TrainConfig
from modernllm.training.guard import SpikeGuard
from modernllm.training.objectives import LanguageModelling
from modernllm.training.trainer import Trainer


def contents(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def refused(folder, trainer, *said):
    before = contents(folder)
    with pytest.raises(InputError) as refusal:
        trainer.fit()
    line = str(refusal.value)
    assert all(part in line for part in said) and "\n" not in line, line
    assert contents(folder) == before


# Callbacks


def averaged(folder, *callbacks):
    trainer = make(folder, callbacks=callbacks, max_steps=12)
    result = trainer.fit()
    memory = {type(c).__name__: (c.state_dict(), {name: t.sum().item() for name, t in c.tensors().items()}) for c in callbacks}
    return weights_hash(trainer.model, trainer.objective), result.history, memory


def test_callbacks_are_known_by_their_class_in_any_order(tmp_path):
    whole = averaged(tmp_path / "whole", EMA(0.9), Counter())
    with pytest.raises(KeyError):
        averaged(tmp_path / "cut", ProgressBar(), EMA(0.9), Counter(), Crash(7))
    again = averaged(tmp_path / "cut", Counter(), EMA(0.9))
    assert again[:2] == whole[:2] and again[2] == whole[2]


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        (lambda: [EMA(0.9)], "callbacks with state are EMA here and EMA, Counter, EMA there"),
        (lambda: [], "callbacks with state are none here and EMA, Counter, EMA there"),
        (lambda: [EMA(0.9), Counter(), EMA(0.99), SpikeGuard()], "EMA, Counter, EMA, SpikeGuard here and EMA, Counter, EMA"),
        (lambda: [EMA(0.99), Counter(), EMA(0.9)], "callbacks differ: EMA: decay is 0.99 here and 0.9 there"),
        (lambda: [EMA(0.9), Counter(), EMA(0.5)], "callbacks differ: EMA: decay is 0.5 here and 0.99 there"),
    ],
)
def test_other_callbacks_are_refused(cut, callbacks, said):
    refused(cut, make(cut, callbacks=callbacks()), said)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    "Checkpoints of a training that was cut off."
    folder = tmp_path_factory.mktemp("cut")
    with pytest.raises(KeyError):
        make(folder, callbacks=[EMA(0.9), Counter(), EMA(0.99), Crash(7)]).fit()
    return folder


# Model, objective, batches, evaluation


class OtherDocuments(ShuffledBatches):
    def __init__(self):
        super().__init__()
        self.documents = self.documents.flip(0)


OtherDocuments.__name__ = "ShuffledBatches"


class Other(TinyObjective):
    pass


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: {"batches": OtherDocuments()}, "batches: batch 11 is another one here"),
        (lambda: {"batches": [ShuffledBatches()[i] for i in range(40)]}, "batches: class is list here and ShuffledBatches there"),
        (lambda: {"objective": Other()}, "objective: class is Other here and TinyObjective there"),
        (lambda: {"evaluate": None}, "evaluate: class is None here and evaluate there"),
        (lambda: {"evaluate": lambda model, objective: {"loss": 1.0}}, "evaluate: class is <lambda> here and evaluate there"),
    ],
)
def test_another_training_is_refused(cut, other, said):
    refused(cut, make(cut, callbacks=[EMA(0.9), Counter(), EMA(0.99)], **other()), said)


def split(fingerprint="a"):
    tokens = np.arange(400) % 30 + 2
    return TokenSplit("x", "train", tokens, np.array([0, 200]), 32, 1, 1, 0, fingerprint=fingerprint)


def llama(**changes):
    torch.manual_seed(0)
    fields = dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(**fields | changes))


def language(folder, model=None, objective=None, text=None, callbacks=(), evaluate=None, **changes):
    shape = dict(block_size=8, batch_size=2, seed=0, shuffle=True, separate_documents=False)
    config = TrainConfig(max_steps=6, checkpoint_every_steps=2, trackers=(), precision="fp32", learning_rate=1e-2)
    return Trainer(model or llama(), objective or LanguageModelling(), LMBatches(text or split(), **shape | changes), config,
                   callbacks=callbacks, folder=folder, evaluate=evaluate)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.raises(KeyError):
        language(folder, callbacks=[Crash(3)]).fit()
    return folder


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"text": split("b")}, "batches: fingerprint is b here and a there"),
        ({"block_size": 10}, "batches: block_size is 10 here and 8 there"),
        ({"batch_size": 3}, "batches: batch_size is 3 here and 2 there"),
        ({"seed": 1}, "batches: seed is 1 here and 0 there"),
        ({"shuffle": False}, "batches: shuffle is False here and True there"),
        ({"separate_documents": True}, "batches: separate_documents is True here and False there"),
        ({"objective": LanguageModelling(z_loss=1e-4)}, "objective: z_loss is 0.0001 here and 0.0 there"),
        ({"model": llama(rms_norm_eps=1e-3)}, "model: rms_norm_eps is 0.001 here and 1e-06 there"),
        ({"model": llama(hidden_size=32)}, "model: head_dim is 16 here and 8 there; model: hidden_size is 32 here and 16 there"),
        ({"model": llama().bfloat16()}, "model: type of trained weights is torch.bfloat16 here and torch.float32 there"),
    ],
)
def test_other_batches_objectives_and_models_are_refused(trained, other, said):
    refused(trained, language(trained, **other), said)


def test_checkpoints_without_this_knowledge_go_on(tmp_path):
    "As earlier versions wrote them."
    with pytest.raises(KeyError):
        make(tmp_path, callbacks=[EMA(0.9), Counter(), Crash(7)], max_steps=12).fit()
    for step in checkpoints.saved_steps(tmp_path):
        place = checkpoints.checkpoint_path(tmp_path, step)
        state = json.loads((place / "state.json").read_text())
        for added in ("identity", "memories", "last_batch"):
            del state[added]
        data = json.dumps(state).encode()
        manifest = json.loads((place / "manifest.json").read_text())
        manifest["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (place / "state.json").write_bytes(data)
        (place / "manifest.json").write_text(json.dumps(manifest))
    averaged_again = averaged(tmp_path, EMA(0.9), Counter())
    assert averaged_again == averaged(None, EMA(0.9), Counter())


# Adapters of peft


ADAPTERS = {
    "lora": lambda: LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]),
    "prompt": lambda: PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3),
    "prefix": lambda: PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3),
    "projected prefix": lambda: PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3, prefix_projection=True,
                                                   encoder_hidden_size=8),
}


def adapted(name, seed=0, **changes):
    model = llama(**changes)
    torch.manual_seed(seed)
    return get_peft_model(model, ADAPTERS[name]())


def loss_of(model, objective=None):
    batch = LMBatches(split(), block_size=8, batch_size=2)[3]
    out = LanguageModelling().loss(model, batch)
    return {"loss": out.total / out.weight}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_resume_bit_for_bit(tmp_path, name):
    def trainer(folder, callbacks=(), **given):
        return language(folder, adapted(name, **given), LanguageModelling(), callbacks=[EMA(0.9), *callbacks], evaluate=loss_of)

    alone = trainer(tmp_path / "alone")
    whole = alone.fit()
    with pytest.raises(KeyError):
        trainer(tmp_path / "cut", [Crash(4)]).fit()
    resumed = trainer(tmp_path / "cut", seed=1)  # what an adapter starts from is replaced
    assert resumed.fit().history == whole.history
    assert weights_hash(resumed.model) == weights_hash(alone.model) != weights_hash(adapted(name))
    assert weights_hash(resumed.model.get_base_model()) == weights_hash(alone.model.get_base_model())
    kept = checkpoints.load_latest(tmp_path / "cut").weights
    wanted = set(resumed.trained_parameters())
    assert set(kept) == wanted and sum(t.numel() for t in kept.values()) < 700
    best = alone.load_best()
    alone.model.eval()
    assert loss_of(alone.model)["loss"].item() == best["loss"]


def test_an_adapter_does_not_go_on_upon_another_base(tmp_path):
    with pytest.raises(KeyError):
        language(tmp_path, adapted("lora"), LanguageModelling(), callbacks=[Crash(4)]).fit()
    other = adapted("lora")
    with torch.no_grad():
        other.get_base_model().lm_head.weight.mul_(2)
    refused(tmp_path, language(tmp_path, other, LanguageModelling()), "model: digest of frozen weights is")
    other = adapted("lora")
    other.peft_config["default"].lora_alpha = 99
    refused(tmp_path, language(tmp_path, other, LanguageModelling()), "model: default.lora_alpha is 99 here and 8 there")
    other = language(tmp_path, adapted("prompt"), LanguageModelling())
    refused(tmp_path, other, "default.peft_type is PROMPT_TUNING here and LORA there")
