"""The committed manifest: complete, and true where the data is at hand."""

import json

import numpy as np
import pytest

from modernllm.core.config import InputError
from modernllm.data import manifest
from modernllm.data.corpus import load_corpus
from modernllm.data.sources import CATALOGUE


def test_committed_manifest_covers_the_catalogue(root):
    datasets = json.loads((root / "data/DATASET_MANIFEST.json").read_text())["datasets"]
    assert list(datasets) == list(CATALOGUE)
    for name, source in CATALOGUE.items():
        assert datasets[name]["licence"] == source.licence and datasets[name]["kind"] == source.kind
        assert tuple(datasets[name]["splits"]) == source.splits
        for split, entry in datasets[name]["splits"].items():
            if entry["obtained"] and entry["place"] == "mirror":
                assert entry["note"] == source.mirror[split].note and len(entry["file"]["sha256"]) == 64
    closed = {split: entry["words"] + entry["line_ends"] for split, entry in datasets["wikitext2"]["splits"].items()}
    assert closed == {"train": 2_088_628, "validation": 217_646, "test": 245_569}
    assert [entry["documents"] for entry in datasets["wikitext2"]["splits"].values()] == [600, 60, 60]


def test_described_from_a_mirror(mirror, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "VOCAB_SIZE", 270)
    monkeypatch.setattr(manifest, "CATALOGUE", {name: CATALOGUE[name] for name in ("wikitext2", "wikitext2_raw")})
    path = manifest.write_manifest(tmp_path / "manifest.json")
    first = path.read_text()
    entries = json.loads(first)["datasets"]
    assert entries["wikitext2"]["tokenizer"]["vocab_size"] == 270
    assert entries["wikitext2"]["splits"]["test"]["file"]["path"] == "wikitext2/test.txt.gz"
    assert entries["wikitext2_raw"]["splits"]["train"] == {"obtained": False} and "tokenizer" not in entries["wikitext2_raw"]
    assert manifest.write_manifest(path).read_text() == first


def test_an_altered_mirror_is_not_listed_as_absent(mirror, cache):
    (mirror / "wikitext2/test.txt.gz").write_bytes(b"")
    with pytest.raises(InputError, match="expected SHA-256"):
        manifest.manifest_entry("wikitext2")


def test_histogram_is_the_same_twice(mirror, cache, project, monkeypatch):
    monkeypatch.setattr(manifest, "VOCAB_SIZE", 270)
    files = [path.read_bytes() for path in manifest.write_histogram(("wikitext2",))]
    assert files == [path.read_bytes() for path in manifest.write_histogram(("wikitext2",))]
    corpus = load_corpus("wikitext2", 270)
    assert manifest.document_lengths(corpus.train).sum() == corpus.train.n_tokens - corpus.train.n_documents
    assert manifest.token_lengths(corpus)[np.asarray(corpus.train.tokens)].sum() == corpus.train.n_bytes
