"""Which runs are stale and why. Steps are run in this process, with a stand-in for papermill; tests/e2e has the real one."""

import json
import os
import shutil
from pathlib import Path

import pytest

from modernllm.workflow import batch, execute, graph
from modernllm.workflow.batch import run_studies as run_batch
from modernllm.core.config import InputError, RunFailed
from modernllm.core.project import settings
from modernllm.core.records import Record, load_record, publish
from modernllm.workflow.staleness import code_of
from modernllm.workflow.step_status import read_status


@pytest.fixture
def done(lab, tmp_path_factory):
    "Everything has run, once for all tests of this file: a project can be copied, and is up to date in its new place."
    kept = tmp_path_factory.getbasetemp() / "done"
    if kept.exists():
        shutil.copytree(kept, lab.folder, dirs_exist_ok=True)
    else:
        lab.run()
        shutil.copytree(lab.folder, kept)
    return lab


BASE, LOW, HIGH = "tiny/base/s0", "tiny/learning_rate=0.1,start_at=0.0/s0", "tiny/learning_rate=0.3,start_at=0.0/s0"
FAR, PICK, NEXT = "tiny/learning_rate=0.3,start_at=-1000000.0/s0", "tiny/pick1/s0", "tiny_next/after/s0"


def test_everything_runs_once(lab):
    assert set(lab.states()) == {BASE, LOW, HIGH, FAR, PICK, NEXT}
    assert set(state for state, _ in lab.states().values()) == {"new"}
    assert list(lab.folder.glob("runs/*")) == []  # looking leaves nothing behind
    said = lab.run()
    assert said == {
        BASE: "finished", LOW: "finished", HIGH: "finished", FAR: "killed", "tiny/selection": "finished",
        PICK: "finished", NEXT: "finished", "tiny": "finished", "tiny_next": "finished",
    }  # fmt: skip
    assert lab.stale() == [] and lab.run() == {}
    selection = json.loads((lab.folder / "runs/smoke/tiny/selection.json").read_text())
    assert [row["variant"] for row in selection["ranked"]] == [HIGH.split("/")[1], LOW.split("/")[1]]  # none was killed
    assert load_record(lab.record(PICK)).params == {"learning_rate": 0.3, "start_at": 0.0, "steps": 16, "fail": False}
    assert load_record(lab.record(NEXT)).inputs["start"].variant == "pick1"
    assert len((lab.folder / "data/results/smoke/tiny.csv").read_text().splitlines()) == 6


def test_a_study_brings_only_the_runs_it_needs(lab):
    assert set(lab.states("tiny_next")) == {BASE, LOW, HIGH, FAR, PICK, NEXT}
    assert NEXT not in lab.states("tiny")
    assert "tiny" not in lab.run("tiny_next")  # its summary was not asked for


def test_a_changed_parameter_reruns_just_what_hangs_on_it(done):
    done.edit("tiny_next/plan.yaml", "after: {}", "after: {params: {learning_rate: 0.2}}")
    assert done.states()[NEXT] == ("changed parameter", "learning_rate: 0.1 → 0.2") and done.stale() == [NEXT]
    assert done.run() == {NEXT: "finished", "tiny_next": "finished"}
    done.edit("tiny/plan.yaml", "params: {steps: 16}", "params: {steps: 17}")
    states = done.states()
    assert states[PICK] == ("changed parameter", "steps: 16 → 17")
    assert states[NEXT] == ("changed input", f"waits for {PICK}") and done.stale() == [PICK, NEXT]
    assert set(done.run()) == {PICK, NEXT, "tiny", "tiny_next"}
    done.edit("tiny/plan.yaml", "params: {steps: 17}", "params: {steps: 16}")
    done.edit("tiny/plan.yaml", "threads: 1, hours: 0.001, params", "threads: 1, hours: 0.002, params")
    assert done.stale() == [PICK, NEXT]  # an estimate is no parameter


def test_what_hangs_on_an_equal_result_is_kept(done):
    before = done.record(PICK).read_bytes()
    done.edit("tiny/plan.yaml", "params: {learning_rate: 0.2}", "params: {learning_rate: 0.2, start_at: 0}")
    done.edit("tiny/plan.yaml", "profiles: {cpu: {seeds: [0, 1], threads: 2", "profiles: {smoke: {gpus: 1}, cpu: {threads: 2")
    assert done.states()[BASE] == ("changed parameter", "gpus: 0 → 1")
    assert done.stale() == sorted([BASE, LOW, HIGH, FAR, PICK, NEXT])
    said = done.run()
    assert {name: said[name] for name in (BASE, LOW, FAR, PICK, NEXT)} == {
        BASE: "finished", LOW: "kept", FAR: "kept", PICK: "kept", NEXT: "kept",
    }  # fmt: skip
    assert done.record(PICK).read_bytes() == before and done.stale() == []


def test_a_changed_input_reruns_what_follows(done):
    done.edit("tiny/plan.yaml", "params: {learning_rate: 0.2}", "params: {learning_rate: 0.21}")
    execute_only(done, BASE)
    states = done.states()
    assert states[BASE][0] == "up to date" and states[NEXT][0] == "changed input"
    assert states[LOW] == ("changed input", f"baseline of the kill rule, {BASE}")
    said = done.run()
    assert said[LOW] == said[PICK] == said[NEXT] == "finished"


def execute_only(lab, name: str):
    graph.prepare(None, "smoke")
    assert execute.step("run", str(lab.record(name).parent)) == 0


def test_a_changed_selection_reaches_the_pick(done):
    done.edit("tiny/plan.yaml", "matrix: {learning_rate: [0.1, 0.3]}", "matrix: {learning_rate: [0.1]}")
    states = done.states()
    assert states[PICK][0] == "changed parameter" and "selection: learning_rate=0.3" in states[PICK][1]
    assert HIGH not in states and done.stale() == [PICK, NEXT]
    assert [HIGH in line for line in graph.budget(None, "smoke") if "without a run" in line] == [True]
    assert done.run()[PICK] == "finished"
    assert load_record(done.record(PICK)).params["learning_rate"] == 0.1


def test_what_is_significantly_better_reaches_the_variant_that_takes_all_of_it(lab):
    rule = "select: {from: matrix, baseline: 'learning_rate=0.1,start_at=0.0', alpha: 0.1,"
    lab.edit("tiny/plan.yaml", "select: {from: matrix,", rule)
    lab.edit("tiny/plan.yaml", "smoke: {seeds: [0],", "smoke: {seeds: [0, 1, 2],")
    every = "  all: {pick: kept, params: {steps: 9}, profiles: {smoke: {seeds: [0]}}}\n"
    lab.edit("tiny/plan.yaml", "  pick1:\n", f"{every}  pick1:\n")
    graph.prepare(["tiny"], "smoke")
    for folder in sorted(lab.folder.glob("runs/smoke/tiny/*/s?")):
        if folder.parent.name not in ("all", "pick1"):
            execute.step("run", str(folder))
    assert execute.step("select", "tiny", "smoke") == 0
    selection = json.loads((lab.folder / "runs/smoke/tiny/selection.json").read_text())
    high = HIGH.split("/")[1]
    assert selection["kept"] == {"variant": high, "params": {"learning_rate": 0.3, "start_at": 0.0}}
    judged, = selection["judged"]  # the variant that was killed is out
    assert judged["variant"] == high and judged["kept"] and 0.05 < judged["p_holm"] < 0.1
    graph.prepare(["tiny"], "smoke")
    assert execute.step("run", str(lab.record("tiny/all/s0").parent)) == 0
    assert load_record(lab.record("tiny/all/s0")).params == {"learning_rate": 0.3, "start_at": 0.0, "steps": 9, "fail": False}
    assert lab.states("tiny")["tiny/all/s0"] == ("up to date", "by hash")
    lab.edit("tiny/plan.yaml", "alpha: 0.1", "alpha: 0.05")
    state, why = lab.states("tiny")["tiny/all/s0"]
    assert state == "changed parameter" and f"selection: {high} → nothing" in why


def test_only_changed_code_counts(done):
    done.edit("tiny_next/run.ipynb", "# One more step", "# One step more")
    done.edit("tiny_next/run.ipynb", "import json\\n", "import json  # a remark\\n")
    assert done.stale() == []
    done.edit("tiny_next/run.ipynb", "learning_rate * 2", "learning_rate * 2.5")
    assert done.states()[NEXT] == ("changed code", "run.ipynb") and done.stale() == [NEXT]
    done.edit("tiny_next/run.ipynb", "learning_rate = 0.1", "learning_rate = 0.15")
    assert done.states()[NEXT] == ("changed parameter", "learning_rate: 0.1 → 0.15; changed code: run.ipynb")
    assert set(done.run()) == {NEXT, "tiny_next"}
    done.edit("tiny/summary.ipynb", "tiny.csv", "./tiny.csv")
    assert done.stale() == [] and done.run() == {"tiny": "finished"}


def test_changed_data_is_seen_without_reading_it(done, monkeypatch):
    mirror = done.folder / "mirror"
    mirror.mkdir()
    told = lambda **entry: (mirror / "manifest.json").write_text(json.dumps({"datasets": [{"name": "toy_data", **entry}]}))
    told(bytes=1)
    monkeypatch.setenv("MODERNLLM_DATA", str(mirror))
    assert done.stale() == []  # nothing was known before: not a change
    shutil.rmtree(done.record(BASE).parent)
    (done.folder / f"data/records/smoke/{BASE}.json").unlink()
    done.run()
    told(bytes=2)
    assert done.states()[BASE] == ("changed data", "toy_data")
    monkeypatch.delenv("MODERNLLM_DATA")
    done.edit("tiny/plan.yaml", "stand_in: toy_generated", "stand_in: other")
    assert done.states()[LOW][0] in ("changed data", "changed input") and done.states()[BASE] == ("changed data", "toy_data")


def test_lost_and_altered_records(done):
    done.record(HIGH).write_text(done.record(HIGH).read_text().replace('"value"', ' "value"', 1))
    assert done.states()[HIGH] == ("up to date", "by hash")  # as published
    shutil.rmtree(done.folder / "data/records/smoke")
    assert done.states()[HIGH] == ("new", "")
    said = done.run()
    assert said[HIGH] == "finished" and BASE not in said
    assert len(list((done.folder / "data/records/smoke").glob("*/*/s0.json"))) == 6  # published again


def test_without_its_status_a_run_counts_as_its_published_record_says(done):
    status = done.record(BASE).with_name("status.json")
    for content in ("", '{"run": {"asked"', "{}"):  # as after a kill at a bad moment
        status.write_text(content)
        assert done.states()[BASE] == ("up to date", "by hash")
    assert sorted(path.name for path in status.parent.iterdir() if path.name.endswith(("json", "done")) and path.is_file()) == [
        ".run.done", "metrics.json", "point.json", "spec.json", "status.json",
    ]


def test_a_fresh_clone_with_records(done):
    shutil.rmtree(done.folder / "runs")
    assert set(done.states().values()) == {("up to date", "by hash")}
    assert done.run() == {} and not list(done.folder.glob("runs/smoke/*/*/*/metrics.json"))
    base, nodes = done.folder / "runs/smoke", json.loads((done.folder / "runs/smoke/graph.json").read_text())["runs"]
    made = lambda path: (base / path).stat().st_mtime_ns
    for name, node in nodes.items():  # by its rule of times, Snakemake has nothing to do for a summary either
        assert all(made(path) <= made(f"{name}/.run.done") for path in node["inputs"])
    shutil.rmtree(done.folder / "runs")
    (done.folder / "data/results/smoke/tiny.csv").unlink()
    assert graph.prepare_summaries(None, "smoke") == ["tiny"]  # the other table lies beside what it was made from
    assert execute.step("summary", "tiny", "smoke") == 0
    assert graph.prepare_summaries(None, "smoke") == []
    assert not (done.folder / "runs/smoke/tiny/base").exists()


def test_in_a_fresh_clone_only_runs_with_a_needed_artifact_run(done):
    shutil.rmtree(done.folder / "runs")
    done.edit("tiny_next/plan.yaml", "after: {}", "after: {params: {learning_rate: 0.2}}")
    done.edit("tiny_next/run.ipynb", "learning_rate * 2", "learning_rate * 2.5")
    states = done.states()
    assert states[NEXT] == ("changed parameter", "learning_rate: 0.1 → 0.2; changed code: run.ipynb")
    assert states[PICK] == ("artifact needed", f"'point' for {NEXT}")
    assert states[BASE] == ("artifact needed", f"'point' for {PICK}")  # which starts from a point itself
    assert done.stale() == [BASE, PICK, NEXT]
    said = done.run()
    assert {name: said[name] for name in said if "/s0" in name} == dict.fromkeys([BASE, PICK, NEXT], "finished")
    assert load_record(done.record(PICK)).params["learning_rate"] == 0.3  # picked from published records
    assert done.stale() == [] and done.run() == {}
    assert execute.step("run", str(done.record(BASE).parent)) == 0
    assert read_status(done.record(BASE).parent, "run")["state"] == "kept"
    (done.record(BASE).parent / "point.json").unlink()
    assert done.stale() == []  # until it is needed
    done.edit("tiny/plan.yaml", "params: {steps: 16}", "params: {steps: 17}")
    assert done.states()[BASE] == ("artifact needed", f"'point' for {PICK}")
    assert done.run()[BASE] == "finished"


def test_in_a_fresh_clone_the_kill_rule_reads_the_published_baseline(done):
    shutil.rmtree(done.folder / "runs")
    (done.folder / f"data/records/smoke/{FAR}.json").unlink()
    assert done.states()[FAR] == ("new", "")
    execute_only(done, FAR)
    assert load_record(done.record(FAR)).status == "killed" and not done.record(BASE).exists() and done.stale() == []
    baseline, published = done.record(FAR).with_name("baseline.json"), done.folder / f"data/records/smoke/{BASE}.json"
    assert baseline.read_bytes() == published.read_bytes()


def test_what_a_record_was_made_with_is_compared_too(done):
    shutil.rmtree(done.folder / "runs")
    done.edit("tiny/plan.yaml", "params: {learning_rate: 0.2}", "params: {learning_rate: 0.21}")
    done.edit("tiny_next/plan.yaml", "smoke: {threads: 1}", "smoke: {threads: 2}")
    states = done.states()
    assert states[BASE] == ("changed parameter", "learning_rate: 0.2 → 0.21") and states[LOW][1] == f"waits for {BASE}"
    done.edit("tiny/plan.yaml", "params: {learning_rate: 0.21}", "params: {learning_rate: 0.2}")
    assert done.states()[NEXT] == ("changed parameter", "threads: 1 → 2")
    done.edit("tiny_next/plan.yaml", "smoke: {threads: 2}", "smoke: {threads: 1}")
    done.edit("tiny_next/plan.yaml", "variant: pick1", "variant: base")
    assert done.states()[NEXT] == ("changed input", "start")


def test_a_later_record_from_elsewhere_counts(done):
    done.edit("tiny_next/run.ipynb", "learning_rate * 2", "learning_rate * 2.5")
    there = load_record(done.record(NEXT))
    code = code_of(done.studies / "tiny_next/run.ipynb")
    made = {**there.provenance.to_dict(), "notebook_hash": code["run.ipynb"]}
    for finished, stale in (("2000-01-01T00:00:00+00:00", [NEXT]), ("2100-01-01T00:00:00+00:00", [])):
        publish(Record.make(there.to_dict(), provenance=made, finished=finished))
        assert done.stale() == stale


def test_the_summary_of_an_unfinished_study_is_drawn_when_asked_for(done):
    next((done.folder / "data/records/smoke/tiny").glob("*/s0.json")).unlink()
    (done.folder / "data/results/smoke/tiny.csv").unlink()
    assert graph.prepare_summaries(None, "smoke") == [] and graph.prepare_summaries(["tiny"], "smoke") == ["tiny"]


def test_spec_files_are_the_same_everywhere_and_written_once(lab, tmp_path_factory, monkeypatch):
    graph.prepare(None, "smoke")
    first = {path.relative_to(lab.folder): path.read_bytes() for path in lab.folder.glob("runs/**/spec.json")}
    times = [path.stat().st_mtime_ns for path in sorted(lab.folder.glob("runs/**/spec.json"))]
    graph.prepare(None, "smoke")
    assert times == [path.stat().st_mtime_ns for path in sorted(lab.folder.glob("runs/**/spec.json"))]
    other = tmp_path_factory.mktemp("elsewhere") / "project"
    shutil.copytree(lab.folder / "nbs", other / "nbs")
    monkeypatch.setenv("MODERNLLM_ROOT", str(other))
    monkeypatch.setenv("MODERNLLM_RUNS", str(other / "moved"))
    graph.prepare(None, "smoke")
    assert {Path("runs") / path.relative_to(other / "moved"): path.read_bytes() for path in other.rglob("spec.json")} == first


def test_gpu_runs_ask_for_a_gpu(lab):
    graph.prepare(["tiny"], "gpu")
    nodes = json.loads((lab.folder / "runs/gpu/graph.json").read_text())["runs"]
    assert {node["gpus"] for node in nodes.values()} == {1} and {node["threads"] for node in nodes.values()} == {2}


def test_a_failed_run_says_so_and_is_tried_again(lab, capsys):
    lab.edit("tiny/plan.yaml", "params: {learning_rate: 0.2}", "params: {learning_rate: 0.2, fail: true}")
    graph.prepare(["tiny"], "smoke")
    assert execute.step("run", str(lab.record(BASE).parent)) == 1
    assert "told to fail" in capsys.readouterr().err
    state, why = lab.states()[BASE]
    assert state == "new" and "last try failed: ValueError: this run was told to fail" in why
    lab.edit("tiny/run.ipynb", "run.finish();", "pass")
    lab.edit("tiny/plan.yaml", ", fail: true", "")
    graph.prepare(["tiny"], "smoke")
    assert execute.step("run", str(lab.record(BASE).parent)) == 1
    assert "run.finish()" in capsys.readouterr().err


@pytest.mark.parametrize("right, wrong, words", [
    ("study: tiny,", "study: tny,", ["in front of run tiny_next/after/s0", "did you mean 'tiny'"]),
    ("variant: pick1", "variant: pick", ["did you mean 'pick"]),
    ("seed: same", "seed: 3", ["has no seed 3"]),
    ("study: tiny, variant: pick1", "study: tiny_next, variant: after", ["circle"]),
])  # fmt: skip
def test_edges_that_lead_nowhere(lab, right, wrong, words):
    lab.edit("tiny_next/plan.yaml", right, wrong)
    with pytest.raises(InputError) as error:
        graph.status(None, "smoke")
    assert all(word in str(error.value) for word in words), error.value


def test_an_artifact_that_the_run_in_front_does_not_make(lab, capsys):
    lab.edit("tiny_next/plan.yaml", "artifact: point", "artifact: model")
    assert lab.run()[NEXT] == "failed"
    assert "made no artifact 'model' (it made: point)" in capsys.readouterr().err


def test_a_selection_needs_survivors_and_the_right_split(lab, capsys):
    lab.edit("tiny/run.ipynb", 'split=\\"validation\\", n_items', 'split=\\"test\\", n_items')
    graph.prepare(["tiny"], "smoke")
    for name in (BASE, LOW, HIGH, FAR):
        execute.step("run", str(lab.record(name).parent))
    assert execute.step("select", "tiny", "smoke") == 2
    assert "was measured on 'test', not on 'validation'" in capsys.readouterr().err
    lab.edit("tiny/run.ipynb", 'split=\\"test\\", n_items', 'split=\\"validation\\", n_items')
    lab.edit("tiny/plan.yaml", "delta: 1000, after: 2", "delta: 0.1, after: 0")
    graph.prepare(["tiny"], "smoke")
    for name in (BASE, LOW, HIGH, FAR):
        execute.step("run", str(lab.record(name).parent))
    assert execute.step("select", "tiny", "smoke") == 1
    assert "top_k is 2, but 1 of 3 variants" in capsys.readouterr().err


def test_names_are_checked_before_anything_is_written(lab):
    for studies, profile in ((["tinny"], "smoke"), (None, "smokee"), (["tiny_next"], "gpu"), (["tiny_next"], "cpu")):
        with pytest.raises(InputError):
            run_batch(studies, profile)
    assert not list(lab.folder.glob("runs/*/graph.json"))


def test_the_second_batch_is_refused(lab):
    from modernllm.workflow.batch import _only_one

    with _only_one("smoke"), pytest.raises(InputError, match=f"process {os.getpid()} is running"):
        run_batch(None, "smoke")


def test_a_step_without_a_spec_and_a_batch_without_snakefile(lab, capsys):
    assert execute.step("run", str(settings().runs / "smoke/tiny/base/s7")) == 2
    with pytest.raises(RunFailed, match="Snakemake ended with status"):
        run_batch(["tiny"], "smoke", say=lambda line: None)


@pytest.mark.parametrize("share", [1, 16])
def test_as_many_runs_use_the_gpu_at_once_as_asked(lab, monkeypatch, share):
    class Started(Exception):
        pass

    def start(command, **given):
        assert f"gpu={share}" in command[command.index("--resources") :]
        raise Started

    monkeypatch.setattr(batch.subprocess, "Popen", start)
    with pytest.raises(Started):
        run_batch(["tiny"], "smoke", jobs=16, **({} if share == 1 else {"share_gpu": share}), say=lambda line: None)
