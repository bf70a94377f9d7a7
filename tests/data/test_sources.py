"""The three places a data set is looked for, and what is said when it is in none."""

import gzip
import json
import socket
import urllib.request

import pytest

from modernllm.alignment.conversations import read_conversations
from modernllm.cli.app import main
from modernllm.core.config import InputError
from modernllm.data import sources
from modernllm.data.catalogue import CATALOGUE, stand_in_of
from modernllm.data.sources import load


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    "Hub caches with nothing in them."
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf/datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    return tmp_path / "hf"


def prepare_datasets_cache(folder, rows):
    "What `load_dataset('Salesforce/wikitext', 'wikitext-2-v1')` leaves in its cache."
    import datasets
    from datasets.arrow_writer import ArrowWriter

    folder = folder / "datasets/Salesforce___wikitext/wikitext-2-v1/0.0.0/0123456789abcdef"
    folder.mkdir(parents=True)
    features = datasets.Features({"text": datasets.Value("string")})
    splits = datasets.SplitDict(dataset_name="wikitext")
    for split, texts in rows.items():
        with ArrowWriter(path=str(folder / f"wikitext-{split}.arrow"), features=features) as writer:
            writer.write_batch({"text": texts})
            writer.finalize()
        splits.add(datasets.SplitInfo(split, num_examples=len(texts)))
    info = datasets.DatasetInfo(features=features, splits=splits, dataset_name="wikitext", version="0.0.0")
    info.config_name = "wikitext-2-v1"
    info.write_to_directory(folder)


def prepare_hub_snapshot(folder, rows):
    "What `hf download Salesforce/wikitext` leaves in the hub's cache."
    import datasets

    repo = folder / "hub/datasets--Salesforce--wikitext"
    snapshot = repo / "snapshots" / ("0" * 40)
    (snapshot / "wikitext-2-v1").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("0" * 40)
    lines = ["---", "configs:", "- config_name: wikitext-2-v1", "  data_files:"]
    for split, texts in rows.items():
        datasets.Dataset.from_dict({"text": texts}).to_parquet(snapshot / f"wikitext-2-v1/{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: wikitext-2-v1/{split}-*"]
    (snapshot / "README.md").write_text("\n".join([*lines, "---", ""]))


@pytest.mark.parametrize("prepare", [prepare_datasets_cache, prepare_hub_snapshot])
def test_mirror_and_hub_cache_give_equal_fingerprints(prepare, mirror, empty_hub, rows, monkeypatch):
    prepare(empty_hub, rows)
    from_mirror = {split: load("wikitext2", split) for split in rows}
    monkeypatch.delenv("MODERNLLM_DATA")
    for split in rows:
        from_hub = load("wikitext2", split)
        assert (from_mirror[split].source, from_hub.source) == ("mirror", "hub")
        assert from_hub.dataset["text"][:] == from_mirror[split].dataset["text"][:] == rows[split]
        assert from_hub.fingerprint == from_mirror[split].fingerprint
    assert len({loaded.fingerprint for loaded in from_mirror.values()}) == 3


def test_fingerprint_sees_every_row_and_border(rows):
    import datasets

    def of(texts):
        return sources.fingerprint(datasets.Dataset.from_dict({"text": texts}), ("text",))

    assert of(["ab", "c"]) == of(["ab", "c"])
    assert len({of(["ab", "c"]), of(["a", "bc"]), of(["abc"]), of(["c", "ab"]), of(["ab", "c", ""]), of(['ab"', "c"])}) == 6


def test_altered_mirror_file_is_named_with_both_hashes(mirror, cache):
    path = mirror / "wikitext2/test.txt.gz"
    expected = json.loads((mirror / "manifest.json").read_text())["datasets"][0]["files"][2]["sha256"]
    path.write_bytes(gzip.compress(b"other text\n", mtime=0))
    found = sources.file_sha256(path)
    with pytest.raises(InputError) as error:
        load("wikitext2", "test")
    assert str(path) in str(error.value) and expected in str(error.value) and found in str(error.value)
    assert "\n" not in str(error.value)
    assert not cache.exists()


def test_missing_mirror_file_is_named_with_expected_hash(mirror, cache):
    from modernllm.data.corpus import load_corpus

    path = mirror / "wikitext2/train.txt.gz"
    path.unlink()
    with pytest.raises(InputError, match="expected SHA-256 [0-9a-f]{64}, found no such file") as error:
        load_corpus("wikitext2", 300)
    assert str(path) in str(error.value)
    assert not cache.exists()


def test_altered_file_of_a_later_split_leaves_nothing_cached(mirror, cache):
    from modernllm.data.corpus import load_corpus

    (mirror / "wikitext2/test.txt.gz").write_bytes(b"")
    with pytest.raises(InputError, match="test.txt.gz"):
        load_corpus("wikitext2", 300)
    assert not cache.exists()


@pytest.mark.parametrize(
    "manifest, message",
    [(None, "is missing"), ("{", "not a mirror's manifest"), ('{"datasets": [{}]}', "not a mirror's manifest"),
     ('{"datasets": []}', "does not hold this split.*hub cache")],
)
def test_bad_manifest(mirror, empty_hub, manifest, message):
    (mirror / "manifest.json").unlink()
    if manifest is not None:
        (mirror / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match=message):
        load("wikitext2", "test")


def test_partial_sets_carry_a_note(mirror):
    train, validation = load("tinystories", "train"), load("tinystories", "validation")
    assert train.note.startswith("partial") and train.provenance()["note"] == train.note
    assert len(train.dataset) == 2 and "\u2028" in train.dataset[0]["text"]
    assert validation.note.startswith("partial") and validation.dataset["text"][:] == ["One day.\n\nAnother day.\n"]
    assert load("wikitext2", "test").note == ""


def test_offline_asks_nobody_and_says_what_was_tried(empty_hub, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(sources, "hub_answers", refuse)
    with pytest.raises(InputError) as error:
        load("wikitext2", "test")
    message = str(error.value)
    for part in ("wikitext2", "'test'", "mirror: MODERNLLM_DATA is not set", "hub cache", "Salesforce/wikitext", "wikitext-2-v1",
                 "HF_HUB_OFFLINE", "https://huggingface.co/datasets/Salesforce/wikitext"):
        assert part in message
    assert "\n" not in message


def test_unreachable_hub_is_asked_once(empty_hub, monkeypatch):
    calls = []
    original = urllib.request.urlopen

    def count(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    import huggingface_hub

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "urlopen", count)
    with pytest.raises(InputError, match="127.0.0.1:9 does not answer"):
        load("wikitext2", "test")
    assert len(calls) == 1


def test_a_split_the_mirror_lacks_is_looked_for_on_the_hub(mirror, empty_hub):
    with pytest.raises(InputError, match="does not hold this split.*hub cache"):
        load("wikitext2_raw", "train")


def test_stand_in_only_when_named_and_only_when_needed(mirror, empty_hub, monkeypatch):
    assert load("wikitext2", "test", stand_in="embedded_docs").source == "mirror"
    monkeypatch.delenv("MODERNLLM_DATA")
    loaded = load("wikitext2", "test", stand_in="embedded_docs")
    assert (loaded.name, loaded.source, loaded.note) == ("embedded_docs", "embedded", "stand-in for wikitext2")
    assert loaded.fingerprint == load("embedded_docs", "test").fingerprint


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("wikitex2", "test"), "unknown data set 'wikitex2'; did you mean 'wikitext2'"),
        (("wikitext2", "tests"), "did you mean 'test'"),
        (("tinystories", "test"), "allowed: train, validation"),
        (("wikitext2", "test", "embeded_docs"), "stand-in 'embeded_docs'; did you mean 'embedded_docs'"),
        (("wikitext2", "test", "tinystories"), "unknown stand-in 'tinystories'"),
    ],
)
def test_unknown_names(arguments, message):
    name, split, *stand_in = arguments
    with pytest.raises(InputError, match=message):
        load(name, split, stand_in=stand_in[0] if stand_in else None)


HELD_OUT = [name for name, source in CATALOGUE.items() if source.held_out]


@pytest.mark.parametrize("name", HELD_OUT)
def test_what_is_measured_on_is_not_trained_on(name, monkeypatch):
    monkeypatch.setattr(sources, "_from_mirror", lambda *_: pytest.fail("was read"))
    for stand_in in (None, stand_in_of(CATALOGUE[name].kind)):
        with pytest.raises(InputError, match=f"'{name}' is held out: .* training on it is refused; allowed: ") as error:
            load(name, "train", stand_in=stand_in)
        assert "\n" not in str(error.value)


def test_the_benchmarks_are_held_out_and_training_sets_are_not():
    assert {"arc_easy", "openbookqa", "copa", "commonsense_qa", "piqa", "lambada", "blimp", "bbh"} <= set(HELD_OUT)
    assert not any(CATALOGUE[name].held_out for name in ("wikitext2", "gsm8k", "sst2", "generated_choices"))


@pytest.mark.parametrize("name", ["piqa", "lambada", "smallbench"])
def test_train_refuses_them(name, tmp_path, capsys):
    assert main(["train", f"data={name}", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "is held out" in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_conversations_to_train_on_refuse_them():
    with pytest.raises(InputError, match="is held out"):
        read_conversations("user_oriented_instructions", "train")


def test_empty_data_set(mirror, monkeypatch):
    monkeypatch.setattr(sources, "_from_mirror", lambda *_: [])
    with pytest.raises(InputError, match="has no rows"):
        load("wikitext2", "test")


def test_a_stand_in_is_of_the_same_kind():
    for name, other, said in (("sst2", "generated_pairs", "pairs, one labels"), ("samsum", "embedded_docs", "text, one pairs")):
        with pytest.raises(InputError, match=said):
            load(name, "train", stand_in=other)


# How many of the first columns of each kind hold something to read.
KINDS = {"text": 1, "pairs": 2, "rewrites": 2, "labels": 1, "preferences": 2, "conversations": 3, "choices": 1}


@pytest.mark.parametrize("name", [name for name, source in CATALOGUE.items() if source.mirror])
def test_every_set_is_in_the_mirror_with_its_columns(real_mirror, name):
    source = CATALOGUE[name]
    split = [split for split in source.splits if split in source.mirror][-1]
    loaded = load(name, split)
    row = loaded.dataset[0]
    assert loaded.source == "mirror" and loaded.kind == source.kind and tuple(row) == source.columns
    for column in source.columns[: KINDS[source.kind]]:
        assert isinstance(row[column], (str, list, dict)), column
    if source.labels:
        assert {*loaded.dataset["label"][:]} == {*range(len(source.labels))}
