"""What a run reads and keeps: which stand-in is allowed, and that all of it is in the record."""

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from modernllm.core.runs import Run
from modernllm.data.tasks import TaskDatasetConfig
from modernllm.data.tokenizers import tokenizer_hash
from modernllm.experiments.run_io import keep_model, read_tasks, read_vocabulary, stand_in
from modernllm.models.sources import load_pretrained


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MODERNLLM_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MODERNLLM_DATA", raising=False)
    return lambda profile="smoke": Run.start(study="demo", variant="x", seed=0, profile=profile)


def test_a_stand_in_is_of_the_same_kind_or_the_plans(run):
    by_hand = run()
    found = {name: stand_in(by_hand, name) for name in ("wikitext2", "samsum", "sst2", "hub:org/name")}
    assert found == {"wikitext2": "embedded_docs", "samsum": "generated_pairs", "sst2": "generated_reviews",
                     "hub:org/name": "embedded_docs"}
    by_hand.spec["data"] = {"samsum": {"stand_in": None}}
    assert stand_in(by_hand, "samsum") is None and stand_in(run("cpu"), "wikitext2") is None


def test_what_is_read_and_kept_is_in_the_record(run):
    run = run()
    tokenizer = read_vocabulary(run, "embedded_docs", ["generated_pairs"], 300, extra=["<|task|>"])
    tasks = read_tasks(run, TaskDatasetConfig(name="geoquery", limit=20, prefix="<|task|>"), tokenizer)
    assert tasks.train.inputs[0][0] == 300
    model = T5ForConditionalGeneration(T5Config(vocab_size=301, d_model=8, d_kv=4, num_heads=2, d_ff=8, num_layers=1))
    keep_model(run, model, tokenizer)
    record = run.finish()
    assert record.provenance.tokenizer_hash == tokenizer_hash(tokenizer)  # with the added token: that of the saved model
    assert {(read.name, read.split) for read in record.data} >= {("embedded_docs", "train"), ("generated_pairs", "validation")}
    _, again = load_pretrained(run.dir / "model", "seq2seq")
    assert tokenizer_hash(again) == record.provenance.tokenizer_hash and again("<|task|>").input_ids == [300]
