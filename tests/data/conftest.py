"""A mirror and a hub cache made of the same few rows."""

import gzip
import hashlib
import json

import pytest

# As published: a blank line holds a space, and so does the end of every line.
LINES = {
    "train": [
        " \n", " = One = \n", " \n", " The first text has 2 lines . \n", " It is <unk> . \n", " \n", " = = Part = = \n",
        " \n", " so that \n", " = 1 / 2 = \n", " \n", " = Two = \n", " \n", " The second text . \n", " \n",
    ] * 4,
    "validation": [" \n", " = Three = \n", " \n", " A third text . \n", " \n"],
    "test": [" \n", " = Four = \n", " \n", " A fourth text , with more words . \n", " \n"],
}
FILES = {"train": "train", "validation": "valid", "test": "test"}


@pytest.fixture
def rows():
    "The rows of wikitext2 as the hub has them."
    return {split: [line if line.strip() else "" for line in lines] for split, lines in LINES.items()}


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    "A folder laid out as a data mirror, named by MODERNLLM_DATA."
    folder = tmp_path / "mirror"
    contents = {f"wikitext2/{FILES[split]}.txt.gz": "".join(lines).encode() for split, lines in LINES.items()}
    stories = [{"text": "Once there was a line\u2028separator in a story."}, {"text": "The end."}]
    lines = "".join(json.dumps(story, ensure_ascii=False) + "\n" for story in stories)
    contents["tinystories/v1_train_sample.jsonl.gz"] = lines.encode()
    contents["tinystories/v1_valid_sample.txt.gz"] = b"One day.\n\nAnother day.\n"
    files = []
    for path, content in contents.items():
        packed = gzip.compress(content, mtime=0)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(packed)
        files.append({"path": path, "sha256": hashlib.sha256(packed).hexdigest()})
    (folder / "manifest.json").write_text(json.dumps({"datasets": [{"name": "all", "files": files}]}))
    monkeypatch.setenv("MODERNLLM_DATA", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache of one's own."
    monkeypatch.setenv("MODERNLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
