"""Sets of pairs: which pairs are used, how they are batched, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.data.catalogue import CATALOGUE, names
from modernllm.data.corpus import TokenSplit, load_corpus
from modernllm.data.sources import load
from modernllm.data.spans import SpanBatches, corrupt
from modernllm.data.tasks import TaskDatasetConfig, load_task_set, read_texts, shared_tokenizer
from modernllm.data.tokenizers import with_tokens


@pytest.fixture
def tokenizer(cache):
    return shared_tokenizer(read_texts("generated_pairs", "train")[1:], 300)


def test_every_set_of_pairs_has_a_source_and_a_target():
    assert {"geoquery", "overnight", "uspto50k", "java_cs", "samsum", "gsm8k", "multi30k"} <= set(names("pairs"))
    assert all(len(CATALOGUE[name].columns) >= 2 for name in names("pairs"))


def test_generated_pairs_are_named_as_generated(tokenizer):
    tasks = load_task_set(TaskDatasetConfig(name="generated_pairs"), tokenizer)
    assert all(p.generated and p.source == "generated" for p in (tasks.train, tasks.validation, tasks.test))
    rows = [tuple(source) for pairs in (tasks.train, tasks.validation, tasks.test) for source in pairs.inputs]
    assert len(set(rows)) == len(rows)


def test_a_stand_in_is_read_as_the_set_it_stands_for(tokenizer, monkeypatch):
    monkeypatch.delenv("MODERNLLM_DATA", raising=False)
    loaded, sources, targets = read_texts("geoquery", "train", "generated_pairs")
    assert loaded.name == "generated_pairs" and loaded.generated and loaded.note == "stand-in for geoquery"
    assert sources and len(sources) == len(targets)
    with pytest.raises(InputError, match="https://github.com"):
        read_texts("geoquery", "train")
    with pytest.raises(InputError, match="not of one kind"):
        load("geoquery", "train", stand_in="embedded_docs")


def test_validation_is_carved_out_where_there_is_none(tokenizer, monkeypatch):
    monkeypatch.delenv("MODERNLLM_DATA", raising=False)
    parts = [read_texts("overnight", split, "generated_pairs")[1] for split in ("train", "validation")]
    assert not set(parts[0]) & set(parts[1]) and len(parts[0]) + len(parts[1]) == 600
    assert 30 < len(parts[1]) < 90


@pytest.mark.parametrize(("values", "said"), [
    ({"name": "samsun"}, "did you mean 'samsum'"),
    ({"name": "samsum", "limit": 0}, "limit"),
    ({"name": "samsum", "max_source": 8}, "did you mean 'max_source_length'"),
    ({"name": "samsum", "max_target_length": 1}, "max_target_length"),
])  # fmt: skip
def test_a_wrong_config_is_refused_in_one_line(values, said):
    with pytest.raises(InputError, match=said) as caught:
        TaskDatasetConfig.make(values)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_left_out_and_said(tokenizer):
    tokenizer = with_tokens(tokenizer, ["<|task|>"])
    config = TaskDatasetConfig(name="generated_pairs", max_source_length=30, max_target_length=40, limit=50, prefix="<|task|>")
    train, end = load_task_set(config, tokenizer).train, tokenizer.eos_token_id
    assert len(train) == 50 and "left out" in train.note and "50 of" in train.note
    assert all(s[0] == 300 and s[-1] == end and len(s) <= 30 for s in train.inputs)
    assert all(t[-1] == end and len(t) <= 40 for t in train.labels)
    with pytest.raises(InputError, match="none of 600 examples has at most"):
        load_task_set(TaskDatasetConfig(name="generated_pairs", max_source_length=3), tokenizer)


def test_running_text_and_pairs_are_not_mixed_up(cache):
    with pytest.raises(InputError, match="holds pairs, not running text"):
        load_corpus("generated_pairs", 300)
    with pytest.raises(InputError, match="did you mean 'generated_pairs'"):
        read_texts("generated_pair", "train")


@settings(max_examples=50, deadline=None)
@given(n=st.integers(8, 80), seed=st.integers(0, 5), share=st.floats(0.05, 0.6))
def test_source_and_target_hold_the_text(n, seed, share):
    marks = tuple(range(1000, 1016))
    source, target = corrupt(np.arange(10, 10 + n), marks, 1, np.random.default_rng(seed), share=share)
    spans, current = {}, None
    for token in target[:-1]:
        if token in marks:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    text = [token for part in source[:-1] for token in spans.get(part, [part])]
    assert text == list(range(10, 10 + n)) and source[-1] == target[-1] == 1 and all(spans.values())


def test_spans_are_a_function_of_seed_and_index(tokenizer):
    marks, tokens = ("<extra_id_0>", "<extra_id_1>"), np.arange(3, 203, dtype=np.uint16)
    tokenizer = with_tokens(tokenizer, marks)
    text = TokenSplit("text", "train", tokens, np.array([0]), 302, n_bytes=1, n_words=1, n_line_ends=0)
    make = lambda seed: SpanBatches(text, tokenizer, block_size=32, batch_size=4, sentinels=marks, seed=seed)
    assert json.dumps(make(1).rows(5)) == json.dumps(make(1).rows(5)) != json.dumps(make(2).rows(5))
    assert make(1).pairs(2).inputs == make(1).rows(0)[0] + make(1).rows(1)[0]
    with pytest.raises(IndexError):
        make(1)[-1]
    with pytest.raises(InputError, match="allowed: 8 to 199"):
        SpanBatches(text, tokenizer, block_size=200, batch_size=4, sentinels=marks)
    with pytest.raises(InputError, match="no token '<gap>'"):
        SpanBatches(text, tokenizer, block_size=20, batch_size=4, sentinels=("<gap>",))
