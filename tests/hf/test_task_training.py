"""Fine-tuning on a task: three kinds of models, adapter-only checkpoints, resume bit for bit, and what is refused."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from modernllm.core.config import InputError
from modernllm.data.encoding import IGNORE
from modernllm.data.tokenizers import train_bpe
from modernllm.hf.adapters import load_adapter, load_model, save_adapter
from modernllm.hf.task_evaluation import evaluate_task, model_kind
from modernllm.hf.task_training import Tuning, encode_for, finetune_task, prepare_model
from modernllm.hf.tasks import TASKS, read_task
from modernllm.models.pretrained import find_pretrained
from modernllm.models.sources import save_model
from modernllm.training.callbacks import Callback
from modernllm.training.checkpoint import load

SST2 = TASKS["sst2"]
TRAIN, VALIDATION = (read_task(SST2, split, "generated_reviews") for split in ("train", "validation"))
TOKENIZER = train_bpe([SST2.template.source(row) + " " + SST2.template.answer(row) for row in TRAIN.rows], 320)
IDS = {"vocab_size": len(TOKENIZER), "pad_token_id": TOKENIZER.pad_token_id, "eos_token_id": TOKENIZER.eos_token_id}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    models = {"causal": LlamaForCausalLM(LlamaConfig(**IDS, **shape, max_position_embeddings=160)),
              "seq2seq": T5ForConditionalGeneration(T5Config(**IDS, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4,
                                                             decoder_start_token_id=TOKENIZER.pad_token_id))}
    folder = tmp_path_factory.mktemp("bases")
    for name, model in models.items():
        save_model(folder / name, model, TOKENIZER)
    return {name: find_pretrained(str(folder / name)) for name in models}


def trained(weights, tuning, kind="causal", folder=None, callbacks=(), precision="fp32", **given):
    model, tokenizer = prepare_model(weights, SST2, tuning, kind)
    config = tuning.training(SST2, **{"max_steps": 6, "eval_every": 2, "precision": precision, **given})
    rows = encode_for(model, tokenizer, SST2, TRAIN.sample(64), tuning)
    tuned = finetune_task(model, tokenizer, SST2, rows, VALIDATION.sample(12), tuning, config, folder=folder, callbacks=callbacks)
    return tuned, tokenizer


@pytest.mark.parametrize("kind, start", [("causal", "causal"), ("seq2seq", "seq2seq"), ("classification", "causal")])
@pytest.mark.parametrize("rank", [0, 2])
def test_every_kind_is_trained_saved_and_loaded(bases, tmp_path, kind, start, rank):
    tuned, tokenizer = trained(bases[start], Tuning(lora_r=rank, batch_size=8), kind)
    assert tuned.result.steps == 6 and {"loss", "accuracy"} <= tuned.best.keys()
    if rank:
        save_adapter(tmp_path, tuned.model, bases[start])
        assert not (tmp_path / "model.safetensors").exists()
    else:
        save_model(tmp_path, tuned.model, tokenizer)
    again, its_tokenizer, weights = load_model(tmp_path)
    assert model_kind(again) == kind and weights.sha256 == (bases[start].sha256 if rank else weights.sha256)
    now, before = (evaluate_task(m, t, SST2, VALIDATION) for m, t in ((again, its_tokenizer), (tuned.model, tokenizer)))
    assert now.metrics == before.metrics and [e.output for e in now.examples] == [e.output for e in before.examples]


class _Dies(Callback):
    def updated(self, trainer):
        if trainer.step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_training_ends_with_the_same_adapter(bases, tmp_path, precision):
    tuning = Tuning(lora_r=2, lora_dropout=0.1, batch_size=8)
    every = {"checkpoint_every_steps": 2, "precision": precision}
    whole, _ = trained(bases["causal"], tuning, folder=tmp_path / "whole", **every)
    with pytest.raises(KeyboardInterrupt):
        trained(bases["causal"], tuning, folder=tmp_path / "killed", callbacks=[_Dies()], **every)
    resumed, _ = trained(bases["causal"], tuning, folder=tmp_path / "killed", **every)
    pairs = zip(whole.model.state_dict().items(), resumed.model.state_dict().items())
    assert all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)
    saved = load(tmp_path / "whole", 6).weights
    assert saved and all("lora_" in name for name in saved)


def test_the_loss_is_on_the_answer_only_and_long_rows_are_counted(bases):
    model, tokenizer = prepare_model(bases["causal"], SST2, Tuning(lora_r=1))
    rows = encode_for(model, tokenizer, SST2, TRAIN, Tuning(max_length=80))
    for ids, labels in list(zip(rows.inputs, rows.labels))[:20]:
        learnt = tokenizer.decode([token for token in labels if token != IGNORE])
        assert learnt in ("positive", "negative") and len(ids) == len(labels) <= 80
    short = encode_for(model, tokenizer, SST2, TRAIN, Tuning(max_length=max(map(len, rows.inputs)) - 4))
    lost = len(rows) - len(short)
    assert lost > 0 and f"{lost:,} of {len(TRAIN):,} examples too long" in short.note


def test_an_adapter_of_another_base_and_targets_that_match_nothing(bases, tmp_path):
    model, _ = prepare_model(bases["causal"], SST2, Tuning(lora_r=1))
    save_adapter(tmp_path / "a", model, bases["causal"])
    entry = json.loads((tmp_path / "a/base.json").read_text())
    (tmp_path / "a/base.json").write_text(json.dumps(entry | {"sha256": "0" * 64}))
    with pytest.raises(InputError, match="is an adapter for causal with weights 0000"):
        load_adapter(tmp_path / "a")
    with pytest.raises(InputError, match="no linear layer 'query' .it has: down_proj, gate_proj"):
        prepare_model(bases["causal"], SST2, Tuning(lora_targets=("query",)))


def test_a_tokenizer_of_another_model_is_refused(bases, tmp_path):
    small = LlamaConfig(vocab_size=100, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    save_model(tmp_path, LlamaForCausalLM(small), TOKENIZER)
    with pytest.raises(InputError, match="the tokenizer does not belong to the model: it has 320 tokens, the model 100"):
        prepare_model(find_pretrained(str(tmp_path)), SST2, Tuning())


def test_weights_that_are_missing_are_not_drawn(bases, tmp_path):
    config = json.loads((bases["causal"].folder / "config.json").read_text())
    for file in bases["causal"].folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match="weights are missing, such as model.layers.2"):
        prepare_model(find_pretrained(str(tmp_path)), SST2, Tuning())


def test_what_does_not_go_together(bases):
    with pytest.raises(InputError, match="kind is classification, but task 'samsum' has no labels"):
        prepare_model(bases["causal"], TASKS["samsum"], Tuning(), "classification")
    with pytest.raises(InputError, match="lora_r is 0; allowed: 1 or more"):
        prepare_model(bases["causal"], SST2, Tuning(qlora=True, lora_r=0))
    model, tokenizer = prepare_model(bases["causal"], SST2, Tuning(lora_r=1), "classification")
    with pytest.raises(InputError, match="a classifier takes no shots"):
        evaluate_task(model, tokenizer, SST2, VALIDATION, shots=TRAIN.rows[:2])
