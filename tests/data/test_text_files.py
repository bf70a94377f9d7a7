"""Own text: where documents end, what is held out, what is refused, and one way to it for corpus, records and plans."""

import json
import socket
import urllib.request

import datasets
import pytest

from modernllm.core.config import InputError
from modernllm.core.runs import Run
from modernllm.data import sources
from modernllm.data.catalogue import CATALOGUE, resolve
from modernllm.data.corpus import documents, load_corpus
from modernllm.data.sources import load
from modernllm.data.text_files import TextFiles, hold_out, text_documents

SENTENCES = [f"Sentence number {i} tells of {i * i} trees and of the river behind them." for i in range(60)]


@pytest.fixture
def here(project):
    "A project with some text in it; the working folder."
    (project / "my.txt").write_text("\n\n\n".join(SENTENCES))
    return project


def refused(name, *parts):
    with pytest.raises(InputError) as error:
        load(name, "train")
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message


@pytest.mark.parametrize("content, found", [
    ("a\n\nb", ["a\n\nb\n"]),
    ("a\n\n\nb", ["a\n", "b\n"]),
    ("a\r\n \r\n\t\r\n\r\nb\r\n", ["a\n", "b\n"]),
    ("a\fb\n\f\n\nc", ["a\n", "b\n", "c\n"]),
    ("\ufeff\n\n\n  a\n", ["  a\n"]),
    ("a\n<|endoftext|>\nb\n\n\n\nc\fd\n <|endoftext|> \n", ["a\n", "b\n\n\n\nc\fd\n"]),
    ("a <|endoftext|> b", ["a <|endoftext|> b\n"]),
    ("\n\n \n", []),
])  # fmt: skip
def test_where_documents_end(tmp_path, content, found):
    path = tmp_path / "a.md"
    path.write_bytes(content.encode())
    assert list(text_documents(path)) == found


def test_held_out_is_a_twentieth_and_the_rest_is_training(here):
    train, validation = (load("my.txt", split) for split in ("train", "validation"))
    assert (len(train.dataset), len(validation.dataset)) == (57, 3)
    assert sorted([*documents(train), *documents(validation)]) == sorted(f"{text}\n" for text in SENTENCES)
    assert train.note == validation.note == "3 of 60 documents held out for validation"
    assert documents(load("my.txt", "all")) == [f"{text}\n" for text in SENTENCES]


@pytest.mark.parametrize("text", ["word " * 100, "line\n" * 100, "x" * 500, "é" * 7])
def test_few_documents_give_their_ends(text):
    parts = [hold_out(datasets.Dataset.from_dict({"text": [text] * 3}), split)[0]["text"][:] for split in ("train", "validation")]
    for start, end in zip(*parts):
        assert start + end == text and 0 < len(end) <= 0.1 * len(text) + 1


def test_the_order_of_files_on_the_disk_does_not_matter(here):
    for folder, order in (("one", range(40)), ("two", reversed(range(40)))):
        (here / folder / "part").mkdir(parents=True)
        for i in order:
            (here / folder / ("part" if i % 2 else "") / f"{i}.txt").write_text(SENTENCES[i])
    for split in ("train", "validation"):
        assert load("one", split).fingerprint == load("two/", split).fingerprint


def test_a_folder_reads_text_and_names_the_rest(here):
    (here / "mixed").mkdir()
    (here / "mixed/a.MD").write_text("\n".join(SENTENCES))
    (here / "mixed/b.jsonl").write_text(json.dumps({"text": SENTENCES[0]}))
    for name in ("c.png", "d.pdf", "e.csv", "f", ".hidden.txt"):
        (here / "mixed" / name).write_bytes(b"\x89")
    loaded = load("mixed", "train")
    assert len(loaded.dataset) == 2 and loaded.note.endswith("; not read: c.png, d.pdf, e.csv and 1 more")


def test_a_column_of_jsonl(here):
    texts = [text + "\u2028\n\n\n" for text in SENTENCES]
    rows = (json.dumps({"id": 1, "body": text}, ensure_ascii=False) for text in texts)
    (here / "rows.jsonl").write_text("\n".join(rows) + "\n\n")
    assert documents(load("rows.jsonl:body", "all")) == texts
    refused("rows.jsonl", "rows.jsonl:1", "no column 'text'", "id, body", "rows.jsonl:COLUMN")
    refused("rows.jsonl:id", "rows.jsonl:1", "column 'id' holds a int")


@pytest.mark.parametrize("name, content, parts", [
    ("none.txt", None, ["'none.txt'", "no such file or folder"]),
    ("none/", None, ["'none/'", "no such file or folder"]),
    ("my.txt:text", None, ["no such file"]),
    ("empty.txt", b"", ["holds no characters", "1,000"]),
    ("blank.txt", b"\n\n \f\n", ["holds no characters"]),
    ("short.txt", b"Too short.", ["holds 11 characters", "1,000"]),
    ("latin.txt", b"a\ncaf\xe9 au lait\n", ["latin.txt", "byte 5 (line 2) is 0xe9"]),
    ("late.txt", b"0123456789\n" * 5000 + b"\xff", ["byte 55000 (line 5001) is 0xff"]),
    ("cut.txt", "é".encode()[:1], ["byte 0 (line 1) is 0xc3"]),
    ("utf16.txt", "text".encode("utf-16"), ["UTF-16", "UTF-8"]),
    ("image.txt", b"GIF89a\0\1\2", ["image.txt", "binary"]),
    ("broken.jsonl", b'{"text": "a"}\n{"text": \n', ["broken.jsonl:2", "not JSON"]),
    ("list.jsonl", b"[1]\n", ["list.jsonl:1", "is a list"]),
    ("half.jsonl", b'{"text": "\\ud800"}\n', ["half.jsonl:1", "surrogate"]),
    ("hub:", None, ["hub:org/name"]),
    ("hub:a/b/c", None, ["hub:org/name"]),
    ("wikitex2", None, ["did you mean 'wikitext2'", "my.txt"]),
])
def test_what_is_refused(here, name, content, parts):
    if content is not None:
        (here / name).write_bytes(content)
    refused(name, *parts)
    assert not list(here.glob("data/cache/text_files/*"))


def test_a_folder_without_text(here):
    (here / "pictures").mkdir()
    (here / "pictures/a.png").write_bytes(b"\x89")
    refused("pictures", "pictures: holds no text", ".txt, .md, .jsonl")


def test_names_hold_no_absolute_path(here, tmp_path_factory, monkeypatch):
    away = tmp_path_factory.mktemp("away")
    (away / "letters.txt").write_text("x")
    assert resolve(str(here / "my.txt")).name == resolve("my.txt").name == resolve("./my.txt").name == "my.txt"
    assert resolve(str(away / "letters.txt")).name == "letters.txt"
    monkeypatch.chdir(away)  # as papermill does, which runs a notebook in its folder
    assert resolve("letters.txt").name == "letters.txt"
    assert resolve("my.txt").files.path == here / "my.txt"
    assert all(resolve(name) is source for name, source in CATALOGUE.items())


def test_corpus_is_cached_and_a_changed_text_is_another(here, monkeypatch):
    first = load_corpus("my.txt", 300)
    assert set(first.splits) == {"train", "validation"} and first.vocab_size == 300
    with monkeypatch.context() as patch:
        patch.setattr(TextFiles, "read", None)
        patch.setattr("modernllm.data.corpus._pack", None)
        assert load_corpus("my.txt", 300).fingerprint == first.fingerprint
    (here / "my.txt").write_text("\n\n\n".join([*SENTENCES[:-1], "Another end."]))
    assert load_corpus("my.txt", 300).fingerprint != first.fingerprint


def test_the_vocabulary_is_as_large_as_the_text_allows(here):
    largest = load_corpus("my.txt").vocab_size
    assert 264 < largest < 4096
    assert load_corpus("my.txt", largest).vocab_size == largest
    with pytest.raises(InputError, match=f"vocab_size is 4096; this text supports {largest} tokens at most"):
        load_corpus("my.txt", 4096)


def test_a_run_records_own_text(here):
    run = Run.start(study="tiny", variant="a", seed=0, profile="smoke")
    run.read(*load_corpus(str(here / "my.txt"), 300).splits.values())
    record = run.finish()
    assert [(data.name, data.split, data.source, data.generated) for data in record.data] == [
        ("my.txt", "train", "own", False), ("my.txt", "validation", "own", False)]
    assert str(here) not in record.to_json()


def test_a_changed_text_makes_a_study_stale(here):
    from modernllm.workflow.staleness import data_hints

    (here / "rows.jsonl").write_text("{}")
    data = dict.fromkeys(("my.txt", "rows.jsonl:body", "hub:org/name", "none.txt"), {"stand_in": None})
    before = data_hints(data)
    (here / "my.txt").write_text("another text")
    assert before.keys() == {"my.txt", "rows.jsonl:body"} and before["my.txt"] != data_hints(data)["my.txt"]


def on_the_hub(monkeypatch, **splits):
    found = datasets.DatasetDict({name: datasets.Dataset.from_dict(columns) for name, columns in splits.items()})
    monkeypatch.setattr(sources, "_from_hub", lambda source, split: (found, ""))


def test_the_hub_beyond_the_catalogue(here, monkeypatch):
    texts = {"text": SENTENCES, "id": list(range(60))}
    on_the_hub(monkeypatch, train=texts, test=texts)
    train, validation = (load("hub:org/name", split) for split in ("train", "validation"))
    assert (train.name, train.source, len(train.dataset), len(validation.dataset)) == ("hub:org/name", "hub", 57, 3)
    on_the_hub(monkeypatch, train=texts, validation={"text": ["held out by the hub"]})
    assert documents(load("hub:org/name:en", "validation")) == ["held out by the hub"]
    on_the_hub(monkeypatch, train={"body": SENTENCES, "id": list(range(60))})
    refused("hub:org/name", "no column of text 'text'", "(it has: body)")
    assert len(load("hub:org/name::body", "train").dataset) == 57
    on_the_hub(monkeypatch, test=texts)
    refused("hub:org/name", "no split 'train' (it has: test)")


def test_a_hub_that_cannot_be_asked_or_does_not_answer(here, monkeypatch):
    import huggingface_hub

    calls = []
    original = urllib.request.urlopen
    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *_: calls.append("connect"))
        refused("hub:org/name:en", "org/name (en) is not there", "HF_HUB_OFFLINE")
        assert not calls
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs))
    refused("hub:org/name", "127.0.0.1:9 does not answer")
    assert len(calls) == 1
