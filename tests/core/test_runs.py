"""A run: one process to a folder, what was asked is what is run, and a record that comes whole and last."""

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys

import pytest

from modernllm.core.config import InputError, RunFailed
from modernllm.core.project import atomic_write, settings
from modernllm.core.locks import lock, unlock
from modernllm.core.records import load_record, load_records
from modernllm.core.runs import Run
from modernllm.core.telemetry import Telemetry

HOLD = """
import os, sys, time
from modernllm.core.runs import Run
run = Run.start(study="s", variant="v", seed=0, profile="smoke", run_dir=sys.argv[1])
if sys.argv[2:] == ["fork"] and os.fork() == 0:
    time.sleep(60)
print("held", os.getpid(), flush=True)
time.sleep(60)
"""


def folder_of(variant="v", seed=0, **spec):
    folder = settings().runs / "smoke" / "s" / variant / f"s{seed}"
    atomic_write(folder / "spec.json", json.dumps({"study": "s", "variant": variant, "seed": seed, "profile": "smoke", **spec}))
    return folder


def start(folder, variant="v", seed=0, **params):
    return Run.start(study="s", variant=variant, seed=seed, profile="smoke", run_dir=folder, params=params)


def hold(folder, *words):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *words], stdout=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    assert process.stdout.readline() == f"held {process.pid}\n"
    return process


@pytest.mark.parametrize("words", [[], ["fork"]])
def test_a_second_process_is_refused_until_the_first_is_gone(project, words):
    folder = folder_of()
    process = hold(folder, *words)
    try:
        with pytest.raises(InputError, match=f"process {process.pid} is running in this folder"):
            start(folder)
        second = subprocess.run([sys.executable, "-c", HOLD, str(folder)], capture_output=True, text=True)
        assert second.returncode and f"process {process.pid} is running in this folder" in second.stderr
        process.send_signal(signal.SIGKILL)  # a child that it forked lives on
        process.wait()
        start(folder).finish()
    finally:
        os.killpg(process.pid, signal.SIGKILL) if words else None
        process.stdout.close()


def test_the_lock_is_given_back_when_a_run_finishes_or_cannot_start(project):
    folder = folder_of(params={"width": 1})
    with pytest.raises(InputError, match="width is 1 in the plan but 2 in the notebook"):
        start(folder, width=2)
    start(folder, width=1).finish()
    unlock(lock(folder))


@pytest.mark.parametrize("spec, params, line", [
    ({"params": {"width": 1}}, {"widht": 1}, "parameter 'width' is not one of the notebook's (widht)"),
    ({"params": {"width": 1}}, {"width": 1.5}, "width is 1 in the plan but 1.5 in the notebook"),
    ({"seed": 4}, {}, "seed is 4 in the plan but 0 in the notebook"),
    ({"profile": "cpu"}, {}, "profile is 'cpu' in the plan but 'smoke' in the notebook"),
    ({"params": {"a": 1, "b": 2}, "pick": {"rank": 1, "keeps": ["b"]}}, {"a": 5, "b": 3}, "b is 2 in the plan but 3"),
])  # fmt: skip
def test_what_was_asked_is_what_is_run(project, spec, params, line):
    folder = settings().runs / "x"
    atomic_write(folder / "spec.json", json.dumps({"study": "s", "variant": "v", "seed": 0, "profile": "smoke", **spec}))
    with pytest.raises(InputError, match=f"spec.json: {re.escape(line)}"):
        start(folder, **params)


def test_a_selection_may_set_the_parameters_it_should(project):
    folder = folder_of(params={"a": 1, "b": 2}, pick={"rank": 1, "keeps": ["b"]})
    assert start(folder, a=5, b=2).finish().params == {"a": 5, "b": 2}


BAD_PARAMS = '{"study": "s", "variant": "v", "seed": 0, "profile": "smoke", "params": 3}'


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"study": 1}', BAD_PARAMS])
def test_a_broken_specification(project, content):
    folder = settings().runs / "x"
    atomic_write(folder / "spec.json", content)
    with pytest.raises(InputError, match=r"spec\.json: is not a run's specification"):
        start(folder)


def test_bad_arguments(project, tmp_path):
    with pytest.raises(InputError, match="unknown profile 'cup'; did you mean 'cpu'"):
        Run.start(study="s", variant="v", seed=0, profile="cup")
    with pytest.raises(InputError, match="finite"):
        Run.start(study="s", variant="v", seed=0, profile="smoke", params={"x": math.inf})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be a run folder"):
        start(tmp_path / "file")


def test_by_hand_nothing_is_published(project):
    run = Run.start(study="s", variant="v", seed=0, profile="smoke", params={"a": 1})
    run.metric("loss", 1, unit="nats", split="test")
    record = run.finish()
    assert record.metrics["loss"].value == 1.0 and load_record(run.dir / "metrics.json") == record
    assert load_records("smoke") == [] and not list((project / "runs").iterdir())
    folder = run.dir
    del run
    assert not folder.exists()


class Split:
    def __init__(self, **fields):
        self.fields = {"name": "words", "split": "train", "source": "embedded", "generated": False, "fingerprint": "f", **fields}

    def provenance(self):
        return {**self.fields, "n_tokens": 5}


class Corpus:
    def provenance(self):
        return [Split().provenance(), Split(split="test").provenance()]


def test_a_whole_record(project, monkeypatch):
    import numpy as np

    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    folder = folder_of(params={"width": 1}, threads=1)
    run = start(folder, width=1, extra=[1, 2])
    run.telemetry.event("step", step=1, tokens_per_second=50.0)
    run.metric("loss", np.float32(0.5), unit="nats/token", split="test", n_items=10, better="lower")
    run.curve("loss", np.arange(1000), np.linspace(5, 1, 1000), x_unit="steps", y_unit="nats/token")
    run.text("samples", ["the key is hf_0123456789"])
    run.read(Split(), Corpus())
    run.tokenizer("abc")
    atomic_write(run.dir / "model/weights", "123")
    run.artifact("model", run.dir / "model")
    (run.dir / "checkpoints/of_another_run").mkdir(parents=True)
    run.checkpoints.mkdir()
    kept = run.checkpoints.name
    run.finish()
    record = load_record(folder / "metrics.json")
    assert load_records("smoke", "s") == [record]
    assert record.params == {"width": 1, "extra": [1, 2]} and record.metrics["loss"].value == 0.5
    curve = record.curves["loss"]
    assert len(curve.x) == 200 and (curve.x[0], curve.x[-1], curve.y[0], curve.y[-1]) == (0, 999, 5, 1)
    assert record.texts == {"samples": ["the key is <HF_TOKEN>"]} and "hf_0123456789" not in (folder / "metrics.json").read_text()
    assert [source.split for source in record.data] == record.splits_read[::-1] == ["train", "test"]
    assert record.artifacts["model"].bytes == 3 and record.artifacts["model"].path == "model"
    assert record.provenance.tokenizer_hash == "abc" and record.provenance.threads == 1
    assert record.provenance.spec_hash == run.spec_hash
    assert record.cost.throughput.value == 50 and record.cost.wall_seconds > 0 and record.cost.lost_cpu_hours == 0
    assert record.started <= record.finished and record.started.endswith("+00:00")
    assert os.listdir(folder / "checkpoints") == [kept]


def test_repeated_on_equal_terms_the_content_is_equal(project):
    def once():
        run = start(folder_of())
        run.metric("loss", 1.0, unit="nats")
        return run.finish()

    one, other = once(), once()
    assert one.content_sha256() == other.content_sha256() and one.provenance == other.provenance


@pytest.mark.parametrize("value, kind, line", [
    (math.nan, RunFailed, "metric 'loss' is nan"), (-math.inf, RunFailed, "metric 'loss' is -inf"),
    ("low", InputError, "metric 'loss' is 'low'; allowed: a number"), (None, InputError, "allowed: a number"),
])  # fmt: skip
def test_a_number_that_is_none_fails_at_once(project, value, kind, line):
    run = start(folder_of())
    with pytest.raises(kind, match=line):
        run.metric("loss", value, unit="nats")


def test_bad_reports(project):
    run = start(folder_of())
    with pytest.raises(InputError, match="curve 'c' has 2 x and 1 y"):
        run.curve("c", [1, 2], [1], x_unit="", y_unit="")
    with pytest.raises(RunFailed, match="curve 'c' is nan"):
        run.curve("c", [1], [math.nan], x_unit="", y_unit="")
    with pytest.raises(InputError, match="DataRead: source is 'net'; allowed: 'mirror', 'hub'"):
        run.read(Split(source="net"))
    with pytest.raises(InputError, match="artifact 'm' is .*; allowed: a path inside"):
        run.artifact("m", "/etc/passwd")
    with pytest.raises(InputError, match="Record: status is 'done'; allowed: 'finished' or 'killed'"):
        run.status = "done"
        run.finish()
    assert not (run.dir / "metrics.json").exists()


@pytest.mark.parametrize("call", ["write", "replace"])
def test_a_full_disk_leaves_the_old_record(project, monkeypatch, call):
    folder = folder_of()
    old = start(folder).finish()
    run = start(folder)
    run.metric("loss", 1.0, unit="nats")
    real = getattr(os, call)

    def full(target, *rest):  # the event log is on the disk already
        if target == run.telemetry.file:
            return real(target, *rest)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    line = r"^\S+\.json: cannot be written: No space left on device$"
    with monkeypatch.context() as patch, pytest.raises(RunFailed, match=line):
        patch.setattr(os, call, full)
        run.finish()
    assert load_record(folder / "metrics.json") == old and load_records("smoke") == [old]
    run.telemetry.close()
    unlock(run._lock)
    assert start(folder).finish().metrics == {}


def test_killed_while_the_record_is_written(project):
    "The rename is where a record begins to exist: killed just before it, the old one is there, and a repetition cleans up."
    folder = folder_of()
    old = start(folder).finish()
    program = f"""
import os, signal
from modernllm.core.runs import Run
run = Run.start(study="s", variant="v", seed=0, profile="smoke", run_dir={str(folder)!r})
run.metric("loss", 1.0, unit="nats")
rename = os.replace
def replace(new, path):
    if path.name == "metrics.json":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(new, path)
os.replace = replace
run.finish()
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert load_record(folder / "metrics.json") == old and list(folder.glob(".metrics.json.*.tmp"))
    record = start(folder).finish()
    assert load_record(folder / "metrics.json") == record and not list(folder.glob(".*.tmp"))


def test_other_parameters_are_another_run(project):
    one = start(folder_of(params={"width": 1}), width=1)
    one.telemetry.event("step", step=1)
    one.finish()
    two = start(folder_of(params={"width": 2}), width=2)
    sum(range(10**6))  # some work
    assert two.checkpoints != one.checkpoints and len(Telemetry.read(two.dir)) == 1
    assert two.finish().cost.lost_cpu_hours == 0
    again = start(folder_of(params={"width": 2}), width=2)
    assert again.checkpoints == two.checkpoints and again.finish().cost.lost_cpu_hours > 0  # it was done twice


def test_checkpoints_belong_to_the_data(project):
    run = start(folder_of())
    bare = run.checkpoints
    run.read(Split())
    first = run.checkpoints
    run.tokenizer("abc")
    second = run.checkpoints
    for folder in (bare, first, second, run.dir / "checkpoints/old"):
        folder.mkdir(parents=True)
    run.finish()
    again = start(folder_of())
    again.read(Split())
    assert again.checkpoints == first and len({bare, first, second}) == 3
    assert {bare, first, second} == set((run.dir / "checkpoints").iterdir())
    again.read(Split(fingerprint="changed"))
    assert again.checkpoints not in {bare, first, second}


def made(variant="teacher"):
    run = start(folder_of(variant), variant)
    atomic_write(run.dir / "model.bin", variant)
    run.artifact("model", "model.bin")
    return run.finish()


EDGE = {"study": "s", "variant": "teacher", "seed": 0, "artifact": "model"}


def test_inputs_come_from_finished_runs_with_their_hash(project):
    with pytest.raises(InputError, match="input 'base': run s/teacher/s0 of profile 'smoke' has not finished on this machine"):
        start(folder_of(inputs={"base": EDGE}))
    teacher = made()
    run = start(folder_of(inputs={"base": EDGE}))
    assert run.input("base").read_text() == "teacher"
    with pytest.raises(InputError, match="unknown input 'bsae'; did you mean 'base'"):
        run.input("bsae")
    before, record = run.checkpoints, run.finish()
    upstream = record.inputs["base"]
    assert upstream.record_sha256 == teacher.content_sha256() and upstream.artifact_sha256 == teacher.artifacts["model"].sha256
    with pytest.raises(InputError, match="unknown artifact of input 'base' 'modle'; did you mean 'model'"):
        start(folder_of(inputs={"base": {**EDGE, "artifact": "modle"}}))
    made_again = start(folder_of("teacher"), "teacher")
    atomic_write(made_again.dir / "model.bin", "better")
    changed = r"model\.bin was changed after its run \(hash \w{12}, on record \w{12}\); undo that, or remove .*s0 and run again"
    with pytest.raises(InputError, match=changed):
        start(folder_of(inputs={"base": EDGE}))
    made_again.artifact("model", "model.bin")
    made_again.finish()
    assert start(folder_of(inputs={"base": EDGE})).checkpoints != before  # of another teacher none is taken up


def test_the_notebook_of_a_batch_run_is_hashed_and_the_closure_checked(project):
    cell = {"cell_type": "code", "metadata": {}, "source": "from modernllm.core.config import InputError"}
    atomic_write(project / "nbs/studies/s/run.ipynb", json.dumps({"cells": [cell]}))
    record = start(folder_of()).finish()
    assert record.provenance.notebook_hash and not record.provenance.sources_checked
    assert record.provenance.sources_problem.startswith("imported outside the closure: modernllm.")
    cell["source"] = "from modernllm.core.runs import Run"
    atomic_write(project / "nbs/studies/s/run.ipynb", json.dumps({"cells": [cell]}))
    run = f"Run.start(study='s', variant='v', seed=0, profile='smoke', run_dir={str(folder_of())!r})"
    subprocess.run([sys.executable, "-c", f"from modernllm.core.runs import Run; {run}.finish()"], check=True)
    record = load_records("smoke")[0]
    assert record.provenance.sources_checked and record.provenance.sources_problem == ""


def test_core_is_light():
    program = "import sys, modernllm.core.runs as r; assert not {'torch', 'numpy', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_public_names_exist_and_others_do_not():
    import modernllm.core as core

    for name in core._EXPORTS:
        assert getattr(core, name) is not None
    assert set(core._EXPORTS) <= set(dir(core))
    with pytest.raises(AttributeError):
        core.nothing  # noqa: B018


def test_a_notebook_gives_every_name_of_its_cell_of_parameters(project):
    names = {"study": "tiny", "variant": "v", "seed": 2, "profile": "smoke", "run_dir": "", "inputs": {}, "other": 1}
    cell = {**names, "steps": 3, "widths": [1, 2]}
    del cell["other"]
    source = "".join(f"{name} = {value!r}\n" for name, value in cell.items())
    notebook = {"cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}]}
    atomic_write(settings().studies / "tiny" / "run.ipynb", json.dumps(notebook))
    run = Run.of_notebook({**cell, "steps": 5, "other": 1})
    assert (run.name, run.params) == ("tiny/v/s2", {"steps": 5, "widths": [1, 2]})
    run.finish()
    with pytest.raises(InputError, match="unknown/run.ipynb: cannot be read"):
        Run.of_notebook({**cell, "study": "unknown"})
