"""Documentation as text: only prose, no paragraph twice, the same for the same packages."""

import importlib.metadata
import json

import pytest

from modernllm.core.config import InputError
from modernllm.data import embedded
from modernllm.data.embedded import docstrings, embedded_documents, extract, paragraphs, split_of

PROSE = "This paragraph explains in plain words what the function does and why anybody would call it. "


def test_docstrings_of_calls_and_raw_strings():
    source = f'import torch\nadd_docstr(\n    torch.abs,\n    r"""\nabs(input) \\d\n\n{PROSE}\n""",\n)\n'
    assert docstrings(source) == [f"abs(input) \\d\n\n{PROSE}"]


@pytest.mark.parametrize(
    "source",
    [
        f'x = """{PROSE}"""\n',  # a string in the code
        f'def f():\n    f"""{PROSE}"""\n',  # not a docstring for Python either
        'def f():\n    """Short."""\n',
        f'def f():\n    """{PROSE}',  # never closed
        f'def f():\n    """{PROSE} \\N{{no such name}}"""\n',  # does not parse
    ],
)
def test_what_is_not_documentation(source):
    assert docstrings(source) == []


def test_paragraphs_keep_prose_and_drop_the_rest():
    text = f"{PROSE}\n\n>>> f(1)  {PROSE}\n\nReturns\n-------\n{PROSE}\n\n"
    text += f"| a | b |\n|---|---|\n| {PROSE} |\n\n```python\n{PROSE}\n```\n"
    assert paragraphs(text) == [PROSE.strip(), PROSE.strip()]


def test_extract_removes_repetitions_and_is_deterministic(tmp_path):
    for name, extra in {"a": "first", "b": "second"}.items():
        (tmp_path / "package").mkdir(exist_ok=True)
        (tmp_path / "package" / f"{name}.py").write_text(f'"""{PROSE}\n\n{PROSE}{extra} {"more words " * 20}\n"""\n')
    (tmp_path / "package/tests").mkdir()
    (tmp_path / "package/tests/c.py").write_text(f'"""{PROSE * 5}"""')
    rows = extract([tmp_path / "package"])
    texts = {row["name"]: row["text"] for row in rows}
    assert set(texts) == {"package/a.py", "package/b.py"}
    assert texts["package/a.py"].count(PROSE.strip()) == 2 and texts["package/b.py"].count(PROSE.strip()) == 1
    assert rows == extract([tmp_path / "package"])
    assert all(row["split"] == split_of(row["name"]) for row in rows)


def test_no_paragraph_of_the_test_split_is_in_training():
    seen = {paragraph for text in embedded_documents("train") for paragraph in text.split("\n\n")}
    test = [paragraph for text in embedded_documents("test") for paragraph in text.strip().split("\n\n")]
    assert len(test) > 500 and not seen & set(test)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(embedded, "PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(InputError, match="no_such_package"):
        embedded_documents("train")


def test_same_lock_file_same_text(root):
    manifest = json.loads((root / "data/DATASET_MANIFEST.json").read_text())["datasets"]["embedded_docs"]
    if manifest["packages"] != embedded.versions():
        pytest.skip("other package versions than those of the manifest")
    from modernllm.data.sources import load

    for split, entry in manifest["splits"].items():
        assert load("embedded_docs", split).fingerprint == entry["fingerprint"]


def test_versions_leave_out_the_build(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.0+cpu")
    assert set(embedded.versions().values()) == {"2.0"}
