"""Comparisons beside peft and the pipeline, on a tiny model: they run to the end; nothing is timed."""

import gzip
import hashlib
import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modernllm.benchmarking.processes import Side
from modernllm.benchmarking.timing import OURS
from modernllm.core.config import InputError, RunFailed
from modernllm.data.tokenizers import train_bpe
from modernllm.hf.speed import PEER, compare_scoring, compare_training, score_ours, score_peer
from modernllm.models.sources import save_model


@pytest.fixture
def model(tmp_path, monkeypatch):
    "A folder with a tiny model, and a mirror with a few rows of SST-2."
    rows, files = [{"sentence": f"film {k} is good", "label": k % 2, "idx": k} for k in range(40)], []
    (tmp_path / "sst2").mkdir()
    for split in ("train", "validation"):
        path = tmp_path / "sst2" / f"{split}.jsonl.gz"
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
        files.append({"path": f"sst2/{path.name}", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    (tmp_path / "manifest.json").write_text(json.dumps({"datasets": [{"files": files}]}))
    monkeypatch.setenv("MODERNLLM_DATA", str(tmp_path))
    torch.manual_seed(0)
    tokenizer = train_bpe([row["sentence"] for row in rows] * 9, 270)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    save_model(tmp_path / "model", LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)), tokenizer)
    return str(tmp_path / "model")


def test_training_in_turns_gives_the_same_loss_on_both_sides(model):
    found = compare_training(model, "sst2", batch_size=4, threads=1, rounds=1, steps=2)
    assert list(found.seconds) == [OURS, PEER] and len(found.ratios()) == len(found.tokens) == 1
    assert found.values[OURS] == pytest.approx(found.values[PEER], rel=0.02) and found.memory_ratio > 0
    assert "1 rounds in turns" in str(found)


@pytest.mark.parametrize("side", [score_ours, score_peer])
def test_each_side_scores_the_rows_of_its_turns(model, side):
    turns = []

    def turn():
        turns.append(1)
        if len(turns) == 4:
            raise StopIteration

    with pytest.raises(StopIteration):
        side(turn, folder=model, task="sst2", rows=[[{"sentence": "a film", "label": 0}], [{"sentence": "good", "label": 1}] * 3])


def test_scoring_needs_labels(model):
    with pytest.raises(InputError, match="task is 'gsm8k', which has no labels"):
        compare_scoring(model, "gsm8k")


def test_a_side_that_fails_says_why():
    with pytest.raises(RunFailed, match="math:cos failed in a process of its own: TypeError"):
        Side("math:cos", 1)
