"""`modernllm data list` says where `load` would look, also when it could not read there."""

import json
from functools import partial

import pytest
from transformers import AutoTokenizer

from modernllm.cli.app import main
from modernllm.data.catalogue import CATALOGUE, KINDS
from modernllm.data.corpus import load_corpus
from modernllm.data.tokenizers import tokenizer_hash
from modernllm.evaluation import smallbench


def listed(capsys) -> dict[str, str]:  # name: place
    assert main(["data", "list"]) == 0
    return {line.split()[0]: line.split()[2] for line in capsys.readouterr().out.splitlines()}


def test_a_mirror_is_believed_as_far_as_its_manifest_goes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MODERNLLM_DATA", str(tmp_path))
    files = [{"path": f"wikitext2/{name}.txt.gz", "sha256": ""} for name in ("train", "valid", "test", "raw_test")]
    (tmp_path / "manifest.json").write_text(json.dumps({"datasets": [{"files": files}]}))
    places = {"wikitext2": "mirror", "wikitext2_raw": "mirror+hub", "tinystories": "hub", "embedded_docs": "embedded",
              "geoquery": "nowhere", "generated_pairs": "generated"}
    found = listed(capsys)
    assert found.keys() == CATALOGUE.keys() and places.items() <= found.items()
    monkeypatch.setenv("MODERNLLM_DATA", "")
    assert set(listed(capsys).values()) == {"hub", "embedded", "generated", "nowhere"}


def test_prompts_are_counted_in_a_text(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smallbench, "read_set", partial(smallbench.read_set, stand_in=True))
    asked = smallbench.texts_of(smallbench.read_set("copa", None))
    (tmp_path / "my.txt").write_text("\n\n\n".join([*asked[:7], "and other text " * 100]))
    assert main(["data", "leakage", str(tmp_path / "my.txt")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[1:]] == list(smallbench.SETS) and all(line[1] == "80" for line in lines[1:])
    assert all(7 <= int(line[4]) < 80 for line in lines[1:])


def test_kinds_are_listed(monkeypatch, capsys):
    monkeypatch.setenv("MODERNLLM_DATA", "")
    assert main(["data", "list"]) == 0
    kinds = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert kinds == {name: source.kind for name, source in CATALOGUE.items()} and set(kinds.values()) == set(KINDS)


@pytest.mark.parametrize("manifest", [None, "{"])
def test_a_mirror_that_is_none_is_told(tmp_path, monkeypatch, capsys, manifest):
    monkeypatch.setenv("MODERNLLM_DATA", str(tmp_path))
    if manifest:
        (tmp_path / "manifest.json").write_text(manifest)
    assert main(["data", "list"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(tmp_path / "manifest.json") in err


def test_a_tokenizer_is_trained_for_later_trainings(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MODERNLLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.txt").write_text("The cat sat on the mat, and the dog sat on the cat.\n" * 200)
    line = ["data", "tokenizer", str(tmp_path / "own.txt"), "--vocab-size"]
    assert main([*line, "280", "--out", str(tmp_path / "saved")]) == 0
    cached = list((tmp_path / "cache/tokenizers").iterdir())
    corpus = load_corpus(str(tmp_path / "own.txt"), 280)
    assert f"280 tokens, SHA-256 {tokenizer_hash(corpus.tokenizer)}" in capsys.readouterr().out
    assert list((tmp_path / "cache/tokenizers").iterdir()) == cached
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path / "saved")) == tokenizer_hash(corpus.tokenizer)
    for size, told in (("512", "this text supports"), ("many", "16k"), ("10", "264 or more")):
        assert main([*line, size]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "vocab_size" in err and told in err
