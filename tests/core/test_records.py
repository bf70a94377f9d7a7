"""Records: whole, valid, the same when read again, and without keys."""

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.core.config import InputError, RunFailed
from modernllm.core.records import CURVE_POINTS, Record, load_record, load_records, publish, record_path, schema_json, thin

ZERO = "0" * 64


def values(**changes):
    return {
        "study": "example", "variant": "small", "seed": 0, "profile": "smoke", "status": "finished",
        "command": "modernllm study run example", "params": {}, "metrics": {},
        "provenance": {"commit": None, "dirty": None, "source_hash": ZERO, "notebook_hash": None, "spec_hash": ZERO,
                       "packages": {}, "python": "3.11", "hardware": {}, "threads": 1, "sources_checked": True},
        "cost": {"wall_seconds": 1, "useful_cpu_hours": 0, "lost_cpu_hours": 0, "useful_gpu_hours": 0, "lost_gpu_hours": 0,
                 "usd": 0, "peak_memory_mb": 1},
        "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:00:01+00:00", **changes,
    }  # fmt: skip


finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | text
plain = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=5)
metrics = st.fixed_dictionaries({"value": finite, "unit": text, "split": st.none() | text, "n_items": st.none() | st.integers(0),
                                 "better": st.sampled_from(["lower", "higher", None])})  # fmt: skip
curves = st.lists(st.tuples(finite, finite), max_size=8).map(
    lambda points: {"x": [x for x, _ in points], "y": [y for _, y in points], "x_unit": "steps", "y_unit": "nats"})
artifacts = st.fixed_dictionaries({"path": text, "sha256": st.just("a1" * 32), "bytes": st.integers(0, 2**50)})
data = st.fixed_dictionaries({"name": text, "split": text, "source": st.sampled_from(["mirror", "hub", "embedded", "generated"]),
                              "generated": st.booleans(), "fingerprint": text, "note": text})  # fmt: skip
records = st.builds(
    lambda **changes: values(**changes), seed=st.integers(0, 2**31), profile=st.sampled_from(["smoke", "cpu", "gpu"]),
    params=st.dictionaries(text, plain, max_size=3), metrics=st.dictionaries(text, metrics, max_size=3),
    curves=st.dictionaries(text, curves, max_size=2), texts=st.dictionaries(text, st.lists(text, max_size=2), max_size=2),
    artifacts=st.dictionaries(text, artifacts, max_size=2), data=st.lists(data, max_size=2),
)  # fmt: skip


@given(records)
def test_json_round_trip(given_values):
    record = Record.make(given_values)
    again = Record.make(json.loads(record.to_json()))
    assert again == record and again.to_json() == record.to_json() and again.content_sha256() == record.content_sha256()
    assert again.params == given_values["params"]


@given(st.lists(st.integers(), max_size=1500), st.integers(2, CURVE_POINTS))
def test_thin_keeps_first_and_last(points, most):
    left = thin(points, most)
    assert len(left) == min(len(points), most)
    assert left[:1] == points[:1] and left[-1:] == points[-1:]
    iterator = iter(points)
    assert all(point in iterator for point in left)  # in the order in which they were


def test_the_committed_schema_is_the_schema(root):
    assert (root / "data/record.schema.json").read_text() == schema_json()


@pytest.mark.parametrize("changes, line", [
    ({"profile": "gup"}, "profile is 'gup'; allowed: 'smoke', 'cpu' or 'gpu'"),
    ({"study": "../up"}, "study is '../up'; allowed: String should match"),
    ({"seed": 1.5}, "seed is 1.5; allowed: a valid integer"),
    ({"metrics": {"loss": {"value": float("nan"), "unit": "", "split": None}}}, "metrics.loss.value is nan; allowed: a finite"),
    ({"metrics": {"loss": {"value": 1.0, "split": None}}}, "metrics.loss.unit is missing"),
    ({"cots": {}}, "cots is not known; did you mean 'cost'?"),
    ({"schema_version": 2}, "schema_version is 2; allowed: 1"),
])  # fmt: skip
def test_a_bad_record_is_one_line(tmp_path, changes, line):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(values(**changes)))
    with pytest.raises(InputError) as caught:
        load_record(path)
    assert str(caught.value).startswith(f"{path}: Record: {line}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_what_is_not_a_record(tmp_path, content):
    path = tmp_path / "metrics.json"
    with pytest.raises(InputError, match="cannot be read"):
        load_record(path)
    path.write_text(content)
    with pytest.raises(InputError, match="is not"):
        load_record(path)


def test_published_records_are_found_sorted(project):
    assert load_records("cpu") == []
    for study, variant, seed in [("b", "x", 0), ("a", "y", 10), ("a", "y", 9), ("a", "lr=0.1,w=2", 0)]:
        publish(Record.make(values(study=study, variant=variant, seed=seed, profile="cpu")))
    found = [(record.study, record.variant, record.seed) for record in load_records("cpu")]
    assert found == [("a", "lr=0.1,w=2", 0), ("a", "y", 9), ("a", "y", 10), ("b", "x", 0)]
    assert len(load_records("cpu", "a")) == 3 and load_records("smoke") == [] and load_records("cpu", "c") == []
    with pytest.raises(InputError, match="unknown profile 'cup'; did you mean 'cpu'"):
        load_records("cup")


def test_a_record_in_the_wrong_place_is_refused(project):
    path = publish(Record.make(values()))
    other = record_path("cpu", "example", "small", 0)
    other.parent.mkdir(parents=True)
    os.rename(path, other)
    with pytest.raises(InputError, match="holds the record of data/records/smoke/example/small/s0.json"):
        load_records("cpu")


@pytest.mark.parametrize("call", ["write", "replace"])
def test_a_full_disk_leaves_the_old_record(project, monkeypatch, call):
    old = Record.make(values(command="old"))
    path = publish(old)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(RunFailed, match=r"s0\.json: cannot be written: No space left on device$"):
        patch.setattr(os, call, full)
        publish(Record.make(values(command="new")))
    assert load_records("smoke") == [old] and os.listdir(path.parent) == ["s0.json"]


def test_keys_are_taken_out(project, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", 'hf_quo"ted')
    monkeypatch.setenv("WANDB_API_KEY", "1234567890abc")
    monkeypatch.setenv("MONKEY", "short")
    told = {"texts": {"log": ['got hf_quo"ted and 1234567890abc']}, "params": {"url": "https://x/1234567890abc", "n": "short"}}
    saved = load_record(publish(Record.make(values(**told))))
    assert saved.texts == {"log": ["got <HF_TOKEN> and <WANDB_API_KEY>"]}
    assert saved.params == {"url": "https://x/<WANDB_API_KEY>", "n": "short"}


def test_times_cost_and_machine_are_not_content():
    one, two = Record.make(values()), Record.make(values(started="2027-01-01T00:00:00+00:00"))
    assert one.content_sha256() == two.content_sha256() != Record.make(values(seed=1)).content_sha256()


@pytest.mark.parametrize("told, kept", [(1.18, None), (1.0, 1.0), (0.5, 0.5), (None, None)])
def test_a_utilisation_above_one_is_refused_in_new_and_old_records(tmp_path, told, kept):
    given = values()
    given["cost"] |= {"mfu": told, "matmul_limit": 1e11}
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(given))
    for record in (Record.make(given), load_record(path)):
        assert record.cost.mfu == kept and record.cost.matmul_limit == 1e11
