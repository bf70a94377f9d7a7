"""Packed tokens and batches: counts, bounds, epochs that cover everything, batches that depend on (seed, i) alone."""

import ast
import errno
import json
import os
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import modernllm
from modernllm.core.config import InputError, RunFailed
from modernllm.data import corpus as module
from modernllm.data.corpus import LMBatches, TokenSplit, documents, load_corpus
from modernllm.data.encoding import EncodedRows, RowBatches
from modernllm.data.sources import Loaded
from modernllm.data.spans import SpanBatches
from modernllm.data.tokenizers import train_bpe


def split_from(lengths, vocab_size=1000, dtype=np.uint16):
    "A split whose documents are 1, then numbers that tell document and place apart."
    starts = np.cumsum([0, *lengths[:-1]])
    tokens = np.arange(2, 2 + sum(lengths)) % vocab_size
    tokens[starts] = 1
    return TokenSplit("made", "train", tokens.astype(dtype), starts, vocab_size, n_bytes=1, n_words=1, n_line_ends=0)


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=12).filter(lambda found: sum(found) > 8)
shapes = st.fixed_dictionaries({"block_size": st.integers(1, 8), "batch_size": st.integers(1, 5), "seed": st.integers(0, 2**40)})


def epoch_blocks(batches, epoch):
    "Inputs and targets of all blocks of an epoch, read through the batches."
    n, size = batches.blocks_per_epoch, batches.batch_size
    rows = [divmod(k, size) for k in range(epoch * n, (epoch + 1) * n)]
    return [(batches[i]["input_ids"][row], batches[i]["targets"][row]) for i, row in rows]


@given(lengths=lengths, shape=shapes, epoch=st.integers(0, 3))
def test_every_epoch_is_a_permutation_of_the_same_tokens(lengths, shape, epoch):
    split = split_from(lengths)
    batches = LMBatches(split, **shape)
    everything = Counter(split.tokens.tolist())
    targets = torch.cat([targets for _, targets in epoch_blocks(batches, epoch)])
    # all but the first token of the row, which is a boundary
    assert Counter(targets[targets >= 0].tolist()) == everything - Counter([1])


@given(lengths=lengths, shape=shapes, epoch=st.integers(0, 3))
def test_documents_stay_whole(lengths, shape, epoch):
    split = split_from(lengths)
    batches = LMBatches(split, **shape)
    order = batches._epoch(epoch).order
    blocks = epoch_blocks(batches, epoch)
    row = torch.cat([blocks[number][0] for number in np.argsort(order)])[: split.n_tokens - 1].tolist()
    last = [targets for _, targets in blocks][int(np.argmax(order))]
    row.append(int(last[last >= 0][-1]))
    found = [tuple(map(int, part)) for part in np.split(np.array(row), np.flatnonzero(np.array(row) == 1)) if len(part)]
    wanted = [tuple(map(int, part)) for part in np.split(split.tokens, split.document_starts[1:])]
    assert sorted(found) == sorted(wanted)


@given(lengths=lengths, shape=shapes, indices=st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_batch_is_a_pure_function_of_seed_and_index(lengths, shape, indices):
    split = split_from(lengths)
    used = LMBatches(split, **shape)
    seen = {i: used[i] for i in indices}
    for i in reversed(indices):
        fresh = LMBatches(split, **shape)[i]
        assert all(torch.equal(fresh[key], seen[i][key]) and torch.equal(used[i][key], seen[i][key]) for key in fresh)


@given(lengths=lengths, shape=shapes)
def test_targets_are_the_next_tokens(lengths, shape):
    batches = LMBatches(split_from(lengths), **shape)
    for i in range(len(batches)):
        inputs, targets = batches[i]["input_ids"], batches[i]["targets"]
        assert inputs.shape == targets.shape == (shape["batch_size"], shape["block_size"]) and inputs.dtype == torch.int64
        known = targets[:, :-1] >= 0
        assert torch.equal(inputs[:, 1:][known & (targets[:, 1:] >= 0)], targets[:, :-1][known & (targets[:, 1:] >= 0)])


@settings(max_examples=30, deadline=None)
@given(lengths=lengths, shape=shapes, shuffle=st.booleans())
def test_positions_start_again_with_each_document_and_change_nothing_else(lengths, shape, shuffle):
    split = split_from(lengths)
    plain, apart = (LMBatches(split, **shape, shuffle=shuffle, separate_documents=flag) for flag in (False, True))
    for i in range(2 * plain.batches_per_epoch):
        batch, same = apart[i], plain[i]
        assert all(torch.equal(batch[name], same[name]) for name in same) and set(batch) - set(same) == {"position_ids"}
        for ids, targets, positions in zip(*(batch[name].tolist() for name in ("input_ids", "targets", "position_ids"))):
            place = 0
            for token, target, position in zip(ids, targets, positions):
                place = 0 if token == 1 else place  # of <|endoftext|>
                assert target == -100 or position == place
                place += 1


@given(lengths=lengths, shape=shapes)
def test_one_pass_in_order(lengths, shape):
    split = split_from(lengths)
    batches = LMBatches(split, **shape, shuffle=False)
    targets = torch.cat([batches[i]["targets"].flatten() for i in range(len(batches))])
    assert targets[targets >= 0].tolist() == split.tokens[1:].tolist()
    assert torch.equal(batches[0]["targets"], batches[len(batches)]["targets"])
    inputs, blocks = split.blocks(shape["block_size"])
    assert blocks[blocks >= 0].tolist() == split.tokens[1:].tolist()
    assert inputs.flatten()[: split.n_tokens - 1].tolist() == split.tokens[:-1].tolist()


def test_epochs_and_seeds_differ():
    split = split_from([7] * 40)
    batches = LMBatches(split, block_size=8, batch_size=5, seed=0)
    assert not torch.equal(batches[0]["targets"], batches[batches.batches_per_epoch]["targets"])
    assert not torch.equal(batches[0]["targets"], LMBatches(split, block_size=8, batch_size=5, seed=1)[0]["targets"])
    with pytest.raises(IndexError):
        batches[-1]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"block_size": 80}, "has 80 tokens, shorter than one block: block_size is 80, allowed: 79 or less"),
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": 4.0}, "block_size is 4.0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_batches(settings, message):
    with pytest.raises(InputError, match=message):
        LMBatches(split_from([40, 40]), **{"block_size": 8, "batch_size": 2, **settings})
    if settings.get("block_size") == 80:
        with pytest.raises(InputError, match=message):
            split_from([40, 40]).blocks(80)


def test_token_id_out_of_range():
    with pytest.raises(InputError, match="token id 999 is out of range; allowed: 0 to 499"):
        TokenSplit("made", "train", np.array([1, 999], np.uint16), np.array([0]), 500, n_bytes=1, n_words=1, n_line_ends=0)
    with pytest.raises(InputError, match="token id -1 is out of range"):
        TokenSplit("made", "train", np.array([1, -1]), np.array([0]), 500, n_bytes=1, n_words=1, n_line_ends=0)


def test_empty_split():
    with pytest.raises(InputError, match="corpus 'made', split 'test': is empty"):
        TokenSplit("made", "test", np.array([], np.uint16), np.array([], np.int64), 500, n_bytes=0, n_words=0, n_line_ends=0)


def test_empty_corpus(mirror, cache, monkeypatch):
    empty = Loaded("tinystories", "train", datasets.Dataset.from_dict({"text": ["", ""]}), source="mirror", fingerprint="0")
    monkeypatch.setattr(module, "load", lambda name, split, **_: empty)
    with pytest.raises(InputError, match="the corpus is empty"):
        load_corpus("tinystories", 300)
    tokenizer = module.train_bpe(["some text that is long enough for a few merges " * 3], 265)
    with pytest.raises(InputError, match="corpus 'tinystories', split 'train': is empty"):
        load_corpus("tinystories", tokenizer=tokenizer)


def test_articles_behind_one_another_are_the_published_file(mirror, cache):
    import gzip

    corpus = load_corpus("wikitext2", 280)
    published = gzip.decompress((mirror / "wikitext2/train.txt.gz").read_bytes()).decode()
    train = corpus.train
    texts = documents(module.load("wikitext2", "train"))
    assert "".join(texts) == published and len(texts) == train.n_documents == 8
    assert [text.split("\n")[1] for text in texts[:2]] == [" = One = ", " = Two = "]
    assert (train.n_bytes, train.n_line_ends) == (len(published.encode()), published.count("\n"))
    assert train.n_closed_words == len(published.replace("\n", " <eos> ").split())
    # each document is its boundary token and then exactly its text
    for text, ids in zip(texts, np.split(train.tokens, train.document_starts[1:])):
        assert ids[0] == train.end_id == 1 and corpus.tokenizer.decode(ids[1:]) == text
    assert isinstance(train.tokens, np.memmap) and train.tokens.dtype == np.uint16
    assert train.provenance()["source"] == "mirror" and not train.generated


def test_rows_before_the_first_heading_are_kept():
    rows = [" loose line \n", "", " = One = \n", "", " text \n"]
    loaded = Loaded("wikitext2", "test", datasets.Dataset.from_dict({"text": rows}), articles=True)
    assert documents(loaded) == [" loose line \n", " \n = One = \n \n text \n"]


def test_loading_twice_costs_no_disk(mirror, cache):
    def state():
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in cache.rglob("*") if path.is_file()}

    first = load_corpus("wikitext2", 280)
    before = state()
    again = load_corpus("wikitext2", 280)
    assert state() == before and again.fingerprint == first.fingerprint
    assert np.array_equal(first.train.tokens, again.train.tokens)
    assert load_corpus("wikitext2", 281).fingerprint != first.fingerprint


def test_limit_is_part_of_the_identity(mirror, cache):
    whole, part = load_corpus("wikitext2", 270), load_corpus("wikitext2", 270, limit_documents=2)
    assert part.train.n_documents == 2 and part.train.note == "the first 2 documents"
    assert part.train.fingerprint != whole.train.fingerprint and part.fingerprint != whole.fingerprint
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="limit_documents is"):
            load_corpus("wikitext2", 270, limit_documents=wrong)


def test_a_part_of_the_training_split_is_spread_over_it_and_leaves_the_others_whole(mirror, shared_cache):
    whole = load_corpus("wikitext2", 270)
    part = load_corpus("wikitext2", every_nth=3, tokenizer=whole.tokenizer)
    texts = [np.split(corpus.train.tokens, corpus.train.document_starts[1:]) for corpus in (whole, part)]
    assert len(texts[1]) == -(-len(texts[0]) // 3) and all(np.array_equal(a, b) for a, b in zip(texts[0][::3], texts[1]))
    assert part.validation.fingerprint == whole.validation.fingerprint
    assert part.train.fingerprint != whole.train.fingerprint and part.train.note.endswith("one document in 3")
    for wrong in (0, 1.5, None):
        with pytest.raises(InputError, match="every_nth is"):
            load_corpus("wikitext2", 270, every_nth=wrong)


def test_disk_full_leaves_no_half_corpus(mirror, cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(RunFailed, match="No space left on device"):
            load_corpus("wikitext2", 280)
    assert list((cache / "corpus").iterdir()) == []
    assert load_corpus("wikitext2", 280).train.n_documents == 8


def test_splits_that_do_not_exist_and_unknown_sets(mirror, cache):
    corpus = load_corpus("tinystories", 265)
    with pytest.raises(InputError, match="unknown split of tinystories 'test'"):
        _ = corpus.test
    with pytest.raises(InputError, match="did you mean 'wikitext2'"):
        load_corpus("wikitext")


def test_stand_in_for_a_corpus(cache):
    corpus = load_corpus("wikitext2", 300, stand_in="embedded_docs", limit_documents=3)
    assert corpus.name == corpus.test.name == "embedded_docs"
    assert corpus.train.note == "stand-in for wikitext2; the first 3 documents" and corpus.train.source == "embedded"


def test_large_vocabularies_take_four_bytes(tmp_path, monkeypatch):
    class Wide:
        def __len__(self):
            return 2**16 + 1

        def get_vocab(self):
            return {"<|endoftext|>": 1}

    monkeypatch.setattr(module, "encode_documents", lambda tokenizer, texts: [[2**16] for _ in texts])
    module._pack(tmp_path / "wide", ["a", "b"], Wide())
    assert np.load(tmp_path / "wide/tokens.npy").tolist() == [1, 2**16, 1, 2**16]
    assert json.loads((tmp_path / "wide/counts.json").read_text()) == {"n_bytes": 2, "n_words": 2, "n_line_ends": 0}


def test_iteration_ends_after_one_epoch_and_what_has_no_end_says_so(cache):
    "`__getitem__` alone makes a class iterable, and one that answers every index never ends."
    split = split_from([30, 20])
    for shuffle in (False, True):
        batches = LMBatches(split, block_size=8, batch_size=2, shuffle=shuffle)
        epoch = list(batches)
        assert len(epoch) == len(batches) == 4
        assert all(torch.equal(batch["targets"], batches[i]["targets"]) for i, batch in enumerate(epoch))
    pairs = RowBatches(EncodedRows("x", "train", [[5, 1]] * 5, [[6, 1]] * 5), batch_size=2)
    assert len(list(pairs)) == len(pairs) == 3
    spans = SpanBatches(split, train_bpe(["a b"], 264), block_size=8, batch_size=2, sentinels=("<|user|>", "<|end|>"))
    with pytest.raises(TypeError, match="not iterable"):
        iter(spans)


def test_every_class_with_items_says_how_it_is_iterated():
    names, bases = {}, {}
    for path in Path(modernllm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                own = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
                own |= {t.id for n in node.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
                names[node.name] = own
                bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id != node.name]

    def iterated(name):
        return "__iter__" in names.get(name, ()) or any(map(iterated, bases.get(name, ())))

    assert {name for name, own in names.items() if "__getitem__" in own and not iterated(name)} == set()
