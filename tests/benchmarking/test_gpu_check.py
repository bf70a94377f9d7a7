"""`modernllm gpu-check`: its sections end, raise, run out of time and are told apart; a rehearsal without a GPU; the record."""

import importlib
import inspect
import json
import os
import signal
import subprocess
import time
import warnings

import psutil
import pytest
import torch

from modernllm.benchmarking import gpu_costs, gpu_results
from modernllm.benchmarking.sections import Findings, Section, read_findings, record_into, run_sections
from modernllm.cli import gpu_check
from modernllm.cli.app import main
from modernllm.core.installation import command_line
from modernllm.core.records import load_record
from modernllm.core.runs import Run
from modernllm.training import compiling

PARTS = """
import os, subprocess, sys, time

def good(findings, value=1.5):
    findings.metric("size", value, unit="things", better="higher")
    findings.curve("line", range(2), [3, 4], x_unit="step", y_unit="nats")
    findings.check("small", value < 2, f"size is {value}")

def bad(findings):
    findings.metric("before", 1, unit="things")
    raise ValueError("no such\\nthing")

def gone(findings):
    os._exit(7)

def slow(findings, seconds=600.0):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    findings.metric("child", child.pid, unit="1")
    time.sleep(seconds)
    child.kill()

def when(findings):
    findings.metric("at", time.monotonic(), unit="s")
"""


@pytest.fixture
def sections(tmp_path, monkeypatch):
    "Runs sections of the module above: [(name, function, arguments, fields of `Section`)]."
    (tmp_path / "parts.py").write_text(PARTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def run(*rows, seconds=30.0):
        made = [Section(name, f"parts:{function}", **{"share": 1, "given": given, **fields})
                for name, function, given, fields in rows]
        return {outcome.section: outcome for outcome in run_sections(made, seconds, tmp_path / "findings.jsonl")}

    return run


def test_a_section_that_raises_or_dies_leaves_what_it_found_and_later_ones_run(sections, tmp_path, monkeypatch):
    found = sections(("a", "good", {}, {}), ("b", "bad", {}, {}), ("c", "gone", {}, {}), ("d", "good", {"value": 2.5}, {}))
    assert found["a"].status == found["d"].status == "done"
    assert found["b"].status == "failed: ValueError: no such thing"
    assert found["c"].status.startswith("failed: exit status 7")
    assert found["a"].failed == [] and found["d"].failed == ["size is 2.5"]
    monkeypatch.setenv("MODERNLLM_RUNS", str(tmp_path))
    run = Run.start(study="gpu_check", variant="x", seed=0, profile="smoke")
    for outcome in found.values():
        record_into(outcome, run)
    record = run.finish()
    assert record.metrics["a_size"].value == 1.5 and record.metrics["a_size"].better == "higher"
    assert record.metrics["b_before"].value == 1 and "raise ValueError" in "\n".join(record.texts["b_error"])
    assert record.curves["a_line"].y == [3, 4] and record.texts["d_checks"] == ["FAILED: size is 2.5"]
    assert record.metrics["d_checks_failed"].value == 1 and record.metrics["a_checks_failed"].value == 0


def test_a_section_out_of_time_is_killed_with_its_children_and_the_rest_has_the_time_left(sections):
    start = time.monotonic()
    found = sections(("a", "slow", {}, {"share": 1}), ("b", "good", {}, {"share": 4}), seconds=15.0)
    assert found["a"].status == "out of time" and found["b"].status == "done" and time.monotonic() - start < 12
    child = int(found["a"].lines[0]["value"])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_sections_beside_others_are_waited_for_by_those_that_are_alone(sections):
    rows = [("a", "slow", {"seconds": 3.0}, {"beside": True}), ("b", "when", {}, {}), ("c", "when", {}, {"alone": True})]
    found = sections(*rows)
    assert list(found) == ["b", "a", "c"] and {outcome.status for outcome in found.values()} == {"done"}
    ended = next(line["time"] for line in found["a"].lines if line["kind"] == "end")
    at = {name: found[name].lines[0]["value"] for name in "bc"}
    assert at["b"] < ended < at["c"] and found["a"].seconds < found["c"].seconds + 6


def test_numbers_that_are_none_are_failed_checks_and_cut_lines_are_left_out(tmp_path):
    findings = Findings(tmp_path / "found.jsonl", "a", prefix="x_")
    findings.metric("loss", float("nan"), unit="nats")
    Findings(tmp_path / "found.jsonl", "b").text("table", ["one", 2])
    with open(findings.path, "a") as file:
        file.write('{"section": "a", "kind": "met')
    assert [(line["kind"], line["words"]) for line in read_findings(findings.path, "a")] == [("check", "loss is nan")]
    assert [line["lines"] for line in read_findings(findings.path, "b")] == [["one", "2"]]


def test_a_model_that_computes_something_else_fails_its_checks(tmp_path, monkeypatch):
    real, calls = gpu_results.step_results, []

    def wrong(*given):
        logits, loss, gradients = real(*given)
        calls.append(given)
        return (logits, loss, gradients) if len(calls) == 1 else (logits * 1.01, loss, gradients)

    monkeypatch.setattr(gpu_results, "step_results", wrong)
    monkeypatch.setattr(gpu_results, "generated", lambda model, device: torch.zeros(1, 4) if not calls[1:] else torch.rand(1, 4))
    findings = Findings(tmp_path / "found.jsonl", "correctness")
    gpu_results.compare_kind(findings, "dense", torch.device("cpu"))
    passed = {line["name"]: line["passed"] for line in read_findings(findings.path, "correctness") if line["kind"] == "check"}
    assert passed == {"dense_float32": False, "dense_bfloat16": True, "dense_generated": False}


@pytest.mark.parametrize("rehearsal", [False, True])
def test_the_cache_is_warmed_for_our_side_too(tmp_path, monkeypatch, capsys, rehearsal):
    monkeypatch.setattr(compiling, "BACKEND", {"backend": "eager"})
    monkeypatch.setattr(compiling, "missing_compiler", lambda device: "")
    monkeypatch.setattr(gpu_costs, "train_peers", lambda compiled: {})
    findings = Findings(tmp_path / "found.jsonl", "compile_10m")
    gpu_costs.warm_training_cache(findings, "tiny", [(2, 16)], rehearsal)
    assert [line["name"] for line in read_findings(findings.path, "compile_10m")] == ["modernllm_2_first_step"]
    assert capsys.readouterr().err.startswith("2 layers compiled in ") != rehearsal


@pytest.mark.parametrize("kind", ["checkpointed", "documents"])
def test_other_kinds_of_compiled_training_are_rehearsed(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(compiling, "missing_compiler", lambda device: "")
    monkeypatch.setattr(compiling, "BACKEND", dict(compiling.BACKEND))
    findings = Findings(tmp_path / "found.jsonl", "compiled")
    gpu_results.compiled_training(findings, "tiny", 4, 32, 24, kind, rehearsal=True)
    checks = {line["name"]: line["passed"] for line in read_findings(findings.path, "compiled") if line["kind"] == "check"}
    del checks["eager_learnt"], checks["compiled_learnt"]  # in so few steps
    assert checks == {"guard": True, "curve_difference": True, "late_difference": True}


@pytest.mark.parametrize("dtype, checks", [("float32", [True, False]), ("bfloat16", [])])
def test_texts_must_be_equal_where_rounding_cannot_make_them_differ(tmp_path, monkeypatch, dtype, checks):
    class Texts:
        checks = {"modernllm": 1.0, "peer": 0.99}

        def record_into(self, run):
            pass

    monkeypatch.setattr(gpu_costs, "bench_generate", lambda shape, **given: Texts())
    findings = Findings(tmp_path / "found.jsonl", "generation")
    gpu_costs.generation_speed(findings, ["tiny"], 4, 1, 2, dtype)
    assert [line["passed"] for line in read_findings(findings.path, "generation")] == checks


@pytest.mark.parametrize("ratio, passed", [(1.09, True), (1.11, False), (0.89, False)])
def test_measured_memory_is_compared_with_the_prediction_compiled_too(tmp_path, monkeypatch, ratio, passed):
    monkeypatch.setattr(gpu_costs, "step_memory", lambda *given: {"peak": 1000})
    monkeypatch.setattr(gpu_costs, "measured_peak", lambda *given: 1000 * ratio)
    findings = Findings(tmp_path / "found.jsonl", "memory")
    gpu_costs.memory(findings)
    checks = {line["name"]: line["passed"] for line in read_findings(findings.path, "memory") if line["kind"] == "check"}
    assert checks == dict.fromkeys(gpu_costs.TRAININGS, passed)


def test_synchronisations_are_counted_by_the_line_that_causes_them(monkeypatch):
    seen = gpu_costs.CountSyncs(2, 3)
    trainer = type("Trainer", (), {"step": 0})()
    with warnings.catch_warnings(record=True):
        shown = warnings.showwarning
        for trainer.step in range(1, 8):
            seen.updated(trainer)
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("anything else", stacklevel=1)
        assert warnings.showwarning is shown
    assert seen.lines.total() == 3 and len(seen.lines) == 1 and "test_gpu_check.py" in next(iter(seen.lines))


def test_without_a_gpu_one_line_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MODERNLLM_RUNS", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu-check"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "needs a GPU" in error and "--device cpu" in error
    assert main(["gpu-check", "--minutes", "0"]) == 2 and main(["gpu-check", "--device", "tpu"]) == 2
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("rehearsal", [False, True])
def test_every_section_takes_what_it_is_given(rehearsal):
    for section in gpu_check.plan(rehearsal):
        module, name = section.where.split(":")
        inspect.signature(getattr(importlib.import_module(module), name)).bind(None, **section.given)
    names = [section.name for section in gpu_check.plan(rehearsal)]
    assert ("compiled_documents" in names, "generation_bfloat16" in names) == (not rehearsal, not rehearsal)


def test_a_rehearsal_gives_results_of_all_sections_in_one_record(tmp_path, root):
    "As on a machine where the package only lies in a folder."
    given = {**os.environ, "MODERNLLM_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(root)}
    done = subprocess.run(command_line("gpu-check", "--device", "cpu", "--minutes", "20"), cwd=tmp_path, env=given,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    path = tmp_path / "runs/gpu_check/cpu/s0.json"
    assert done.stdout.splitlines()[-1] == f"record: {path}"
    record = load_record(path)
    names = [section.name for section in gpu_check.plan(True)]
    assert sorted(record.texts["status"]) == sorted(f"{name}: done" for name in names)
    assert record.metrics["sections_done"].value == len(names) and record.metrics["checks_failed"].value == 0
    assert (record.study, record.variant, record.profile) == ("gpu_check", "cpu", "smoke")
    assert record.path.parts[-3:] == ("gpu_check", "cpu", "s0.json") and record.cost.wall_seconds > 10
    assert record.command == "modernllm gpu-check --minutes 20.0 --device cpu"
    narrow, wide = (record.metrics[f"correctness_dense_{precision}_logits"].value for precision in ("bfloat16", "float32"))
    assert wide < 1e-6 < narrow
    assert record.metrics["resume_eager_equal"].value == 1 and len(record.curves["compiled_training_eager"].y) == 40
    assert record.metrics["training_10m_train_ratio_fastest_peer"].value > 0
    assert record.metrics["generation_tiny_generate_modernllm_check"].value == 1
    assert json.loads((tmp_path / "runs/gpu_check/findings.jsonl").read_text().splitlines()[0])["section"] == "machine"


def test_ended_from_outside_it_keeps_what_was_found(tmp_path, root):
    given = {**os.environ, "MODERNLLM_RUNS": str(tmp_path), "PYTHONPATH": str(root)}
    process = subprocess.Popen(command_line("gpu-check", "--device", "cpu"), env=given, stdout=subprocess.PIPE, text=True)
    assert any(line.startswith("machine: done") for line in iter(process.stdout.readline, ""))
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    record = load_record(tmp_path / "gpu_check/cpu/s0.json")
    assert process.returncode == 1 and record.texts["status"][0] == "machine: done"
    assert record.metrics["sections_done"].value == 1 and not psutil.wait_procs(family, timeout=20)[1]
