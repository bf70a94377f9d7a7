"""The shared course of a study: what is read is recorded, test is read last, a killed training goes on where it was."""

import json
from types import SimpleNamespace

import pytest
import torch

from modernllm.core.config import InputError
from modernllm.core.project import atomic_write, settings
from modernllm.core.records import Record, write_record
from modernllm.core.runs import Run
from modernllm.experiments import pretraining
from modernllm.experiments.pretraining import evaluate_perplexity, new_decoder, pretrain
from modernllm.experiments.run_io import keep_model, read_corpus
from modernllm.training.callbacks import Callback
from modernllm.training.config import TrainConfig

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LENGTHS = {"context": 16, "batch_size": 4, "eval_tokens": 100}


def start(profile="smoke", **spec):
    folder = settings().runs / profile / "s" / "v" / "s0"
    asked = {"study": "s", "variant": "v", "seed": 0, "profile": profile, **spec}
    atomic_write(folder / "spec.json", json.dumps(asked))
    return Run.start(study="s", variant="v", seed=0, profile=profile, run_dir=folder)


@pytest.fixture
def run(project, shared_cache):
    return start(data={"wikitext2": {"stand_in": "embedded_docs"}})


@pytest.fixture
def corpus(run):
    return read_corpus(run, "wikitext2", 300, limit_documents=3)


def test_a_stand_in_is_read_only_where_the_plan_allows_it(run, corpus):
    assert corpus.name == "embedded_docs" and corpus.limit_documents == 3
    run.finish()
    other = start("cpu", data={"wikitext2": {"stand_in": None}})
    with pytest.raises(InputError, match="wikitext2"):
        read_corpus(other, "wikitext2", 300, limit_documents=3)
    other.finish()


def test_the_test_split_counts_as_read_only_when_it_is_read(run, corpus):
    model = new_decoder(corpus, context=16, seed=0, **SMALL)
    cards = evaluate_perplexity(run, model, corpus, context=16, test=False)
    assert list(cards) == ["validation"]
    record = run.finish()
    assert record.splits_read == ["train", "validation"]
    assert record.provenance.tokenizer_hash and record.metrics["validation_loss"].split == "validation"


def test_all_readings_of_test(run, corpus, monkeypatch):
    raw = SimpleNamespace(split="test", provenance=lambda: {**corpus.test.provenance(), "name": "wikitext2_raw"})
    monkeypatch.setattr(pretraining, "token_split", lambda loaded, tokenizer, limit: limit == 3 and raw)
    monkeypatch.setattr(pretraining, "load", lambda name, split: (name, split))
    seen = []

    def card(model, split, *, context, stride):
        seen.append((split.split, split is raw, stride))
        return SimpleNamespace(record_into=lambda run, split, name: seen.append((split, name)))

    monkeypatch.setattr(pretraining, "perplexity_card", card)
    closed = SimpleNamespace(name="wikitext2", tokenizer=corpus.tokenizer, limit_documents=3,
                             validation=corpus.validation, test=corpus.test)  # fmt: skip
    cards = evaluate_perplexity(run, None, closed, context=16, stride=8)
    assert list(cards) == ["validation", "test", "test_sliding", "test_raw"]
    assert seen == [("validation", False, None), ("validation", "validation"), ("test", False, None), ("test", "test"),
                    ("test", False, 8), ("test", "test_sliding"), ("test", True, None), ("test", "test_raw")]  # fmt: skip
    assert {data["name"] for data in run._values["data"]} == {"embedded_docs", "wikitext2_raw"}
    run.finish()


def test_a_killed_training_goes_on_and_leaves_what_one_without_a_kill_leaves(run, corpus):
    config = TrainConfig(max_steps=8, learning_rate=1e-2, eval_every=2, checkpoint_every_steps=2, log_every=1)

    class Killer(Callback):
        def step_end(self, trainer, row):
            if row["step"] == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(run, new_decoder(corpus, context=16, seed=0, **SMALL), corpus, config, callbacks=[Killer()], **LENGTHS)
    model = new_decoder(corpus, context=16, seed=0, **SMALL)
    pretrain(run, model, corpus, config, callbacks=[Callback()], **LENGTHS)
    keep_model(run, model, corpus.tokenizer)
    curves = run.finish().curves
    straight = Run.start(study="s", variant="v", seed=0, profile="smoke")
    same = new_decoder(corpus, context=16, seed=0, **SMALL)
    pretrain(straight, same, corpus, config, **LENGTHS)
    assert straight.finish().curves == curves and curves["validation_loss"].x[:2] == [0, 128]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters()))


def test_the_kill_rule_of_the_plan_stops_a_run_and_marks_its_record(run, corpus):
    baseline = {"study": "s", "variant": "base", "seed": 0}
    config = TrainConfig(max_steps=6, learning_rate=1e-2, eval_every=1, log_every=1)

    def train(**kill):
        rule = {"curve": "validation_loss", "baseline": baseline, "after": 128, "patience": 2, "record": "baseline.json", **kill}
        again = start(kill=rule)
        result = pretrain(again, new_decoder(corpus, context=16, seed=0, **SMALL), corpus, config, **LENGTHS)
        return result.stopped, again.finish()

    pretrain(run, new_decoder(corpus, context=16, seed=0, **SMALL), corpus, config, **LENGTHS)
    write_record(run.finish(), run.dir / "baseline.json")
    assert run.callbacks() == []
    stopped, record = train(delta=0.5)  # the same as its baseline
    assert (stopped, record.status) == ("finished", "finished")
    better = record.to_dict()
    better["curves"]["validation_loss"]["y"] = [y - 1 for y in record.curves["validation_loss"].y]
    write_record(Record.make(better), run.dir / "baseline.json")
    stopped, record = train(delta=0.5)
    assert (stopped, record.status) == ("killed", "killed") and record.curves["validation_loss"].x == [0, 64, 128, 192]
    better["curves"]["validation_loss"]["x_unit"] = "steps"
    write_record(Record.make(better), run.dir / "baseline.json")
    with pytest.raises(InputError, match="'validation_loss' is over steps; a trainer compares over tokens only"):
        train(delta=0.5)


def test_the_record_says_how_fast_it_was_and_how_much_memory_it_took(run, corpus):
    pretrain(run, new_decoder(corpus, context=16, seed=0, **SMALL), corpus, TrainConfig(max_steps=3, log_every=1), **LENGTHS)
    cost = run.finish().cost
    assert cost.throughput.value > 0 and cost.peak_memory_mb > 100 and 0 < cost.mfu < 1
    assert "tokens" in cost.throughput.unit


def test_early_stopping_leaves_the_best_weights(run, corpus):
    config = TrainConfig(max_steps=40, learning_rate=0.5, warmup_steps=0, eval_every=1, log_every=1, early_stop_patience=3)
    model = new_decoder(corpus, context=16, seed=0, **SMALL)
    result = pretrain(run, model, corpus, config, **LENGTHS)
    loss = pretraining.prefix_loss(corpus.validation, context=16, max_tokens=100)(model)["loss"]
    assert result.stopped == "early_stop" and loss == pytest.approx(result.best["loss"], abs=1e-6)
    run.finish()


def test_a_wrong_field_of_the_model_is_named(corpus):
    with pytest.raises(InputError, match="no field 'hiden_size'; did you mean 'hidden_size'"):
        new_decoder(corpus, context=16, seed=0, hiden_size=16)
