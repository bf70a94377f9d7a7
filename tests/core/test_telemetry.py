"""The event log survives `kill -9`, and useful and lost work are counted apart."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernllm.core.config import InputError, RunFailed
from modernllm.core.telemetry import Ledger, Telemetry, peak_mb, restart_peak

# A stand-in for a training: 40 steps, a checkpoint (a file) every 5, an evaluation every 10. It resumes from the file.
TRAINING = """
import os, sys, time
from pathlib import Path
from modernllm.core.telemetry import Telemetry
folder = Path(sys.argv[1])
log = Telemetry(folder)
saved = folder / "checkpoint"
step = int(saved.read_text()) if saved.exists() else 0
if step:
    log.event("resume", step=step)
while step < 40:
    step += 1
    time.sleep(0.003)
    log.event("step", step=step, loss=1 / step, tokens_per_second=1000.0)
    if step % 5 == 0:
        (folder / "new").write_text(str(step))
        os.replace(folder / "new", saved)
        log.event("checkpoint", step=step)
    if step % 10 == 0:
        log.event("eval", step=step, loss=1 / step)
log.event("stop", reason="finished")
"""


def lines(folder):
    path = folder / "events.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_at_any_moment_the_accounts_hold(tmp_path):
    chance, sessions = random.Random(0), 0
    for number in range(9):
        before, sessions = lines(tmp_path), sessions + 1
        process = subprocess.Popen([sys.executable, "-c", TRAINING, str(tmp_path)])
        if number < 8:
            few = chance.randint(1, 12)  # so many lines of this session, then the kill
            while process.poll() is None and lines(tmp_path) < before + few:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.wait()
            if chance.random() < 0.5:  # the kill tore a line
                with (tmp_path / "events.jsonl").open("a") as file:
                    file.write('{"kind": "step", "st')
    assert process.wait() == 0
    events = Telemetry.read(tmp_path)
    ledger = Ledger.of(events)
    useful = [event["step"] for event in _path(events) if event["kind"] == "step"]
    assert useful == list(range(1, 41)) and len(_sessions(events)) == sessions == 9
    assert ledger.useful_cpu_hours > 0 and ledger.lost_cpu_hours > 0 and ledger.throughput == 1000.0
    assert ledger.wall_seconds == pytest.approx(sum(session[-1]["elapsed"] for session in _sessions(events)))


def _sessions(events):
    return [[event for event in events if event["session"] == n] for n in sorted({event["session"] for event in events})]


def _path(events):
    from modernllm.core.telemetry import _useful

    return [events[index] for index in sorted(_useful(events))]


# The same training in play money: every step costs 1 s, loading 10 s. An oracle keeps the books beside it.
@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.booleans()), max_size=5), st.sampled_from([1, 3, 4, 50]))
def test_ledger_agrees_with_bookkeeping(kills, every):
    events, saved, useful, session = [], 0, 0, 0

    def line(kind, at, **fields):
        events.append({"kind": kind, "session": session, "elapsed": at, "cpu": at, "gpus": 1, "memory_mb": session, **fields})

    for survives, event_missing, corrupted in [*kills, (None, False, False)]:
        session += 1
        if corrupted and saved:  # the newest checkpoint is damaged: the one before it is used
            saved = max(saved - every, 0)
        line("start", 0)
        clock, step = 10, saved
        if survives is not None and survives < 1:
            continue  # killed while loading: no one knows of that time
        if saved:
            line("resume", clock, step=saved)
        while step < 12:
            step, clock = step + 1, clock + 1
            line("step", clock, step=step)
            if step % every == 0:
                saved = step
                if not (event_missing and survives == step):
                    line("checkpoint", clock, step=step)
            if survives is not None and step >= survives:
                break
        else:
            line("stop", clock)
            break
    ledger = Ledger.of(events)
    began = [group for group in _sessions(events) if len(group) > 1 and group[1]["kind"] != "resume"]
    last_begin = 10 if began else 0  # the loading of the session from which all comes
    useful = 12 + last_begin
    total = sum(group[-1]["elapsed"] for group in _sessions(events))
    assert ledger.useful_cpu_hours * 3600 == pytest.approx(useful)
    assert ledger.lost_cpu_hours * 3600 == pytest.approx(total - useful)
    assert ledger.useful_gpu_hours == pytest.approx(ledger.useful_cpu_hours)
    assert ledger.wall_seconds == pytest.approx(total) and ledger.peak_memory_mb == session


def test_two_trainers_in_one_run_are_told_apart():
    def line(kind, session, at, **fields):
        return {"kind": kind, "session": session, "elapsed": at, "cpu": at, "gpus": 0, "memory_mb": 1.0, **fields}

    events = [
        line("start", 1, 0), line("step", 1, 1, step=5, part="a"), line("checkpoint", 1, 2, step=5, part="a"),
        line("step", 1, 4, step=5, part="b"), line("checkpoint", 1, 5, step=5, part="b"), line("step", 1, 6, step=6, part="b"),
        line("start", 2, 0), line("resume", 2, 1, step=5, part="a"), line("eval", 2, 3, step=5, part="a"),
        line("resume", 2, 4, step=5, part="b"), line("step", 2, 5, step=6, part="b"), line("stop", 2, 5),
    ]  # fmt: skip
    ledger = Ledger.of(events)
    assert ledger.useful_cpu_hours * 3600 == pytest.approx(6) and ledger.lost_cpu_hours * 3600 == pytest.approx(1 + 4)


def test_price(monkeypatch):
    monkeypatch.setenv("MODERNLLM_CPU_HOUR_PRICE", "2")
    monkeypatch.setenv("MODERNLLM_GPU_HOUR_PRICE", "10")
    ledger = Ledger(1.0, 1.0, 0.5, 0.25, 0.25, 1.0, None, None, None, None)
    assert ledger.usd == 8.0


def test_damage_in_the_middle_is_named(tmp_path):
    log = Telemetry(tmp_path)
    log.event("step", step=1)
    log.close()
    path = tmp_path / "events.jsonl"
    first, second = path.read_text().splitlines()
    for bad in ("{", "3", "{}", '"x"'):
        path.write_text(f"{first}\n{bad}\n{second}\n")
        with pytest.raises(InputError, match=r"events\.jsonl:2: is not an event"):
            Telemetry.read(tmp_path)
    path.write_text(f"{first}\n{second[:9]}")
    assert [event["kind"] for event in Telemetry.read(tmp_path)] == ["start"]
    Telemetry(tmp_path).close()
    assert [event["session"] for event in Telemetry.read(tmp_path)] == [1, 2]


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    log, write = Telemetry(tmp_path), os.write

    def nearly_full(descriptor, data):
        if len(data) > 10:
            return write(descriptor, data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", lambda d, data: nearly_full(d, data) if d == log.file else write(d, data))
    # 10 bytes at a time until at most 10 are left, which do not fit
    with pytest.raises(RunFailed, match=r"events\.jsonl: cannot be written: No space left on device$"):
        log.event("step", step=1)
    monkeypatch.undo()
    log.event("step", step=2)
    assert [event.get("step") for event in log.read(tmp_path)] == [None, 2]


def test_an_unknown_kind_and_odd_values(tmp_path):
    import numpy as np

    log = Telemetry(tmp_path)
    with pytest.raises(InputError, match="unknown event 'stepp'; did you mean 'step'"):
        log.event("stepp")
    log.event("eval", loss=np.float32(0.5), worst=float("inf"), shape=(1, np.int64(2)), path=tmp_path, none=None)
    event = log.read(tmp_path)[-1]
    assert event["loss"] == 0.5 and event["worst"] == "inf" and event["shape"] == [1, 2] and event["none"] is None
    json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1], parse_constant=lambda name: pytest.fail(name))


def test_time_and_processor_are_counted(tmp_path):
    log = Telemetry(tmp_path)
    start = time.process_time()
    while time.process_time() - start < 0.05:
        pass
    log.event("stop")
    ledger = Ledger.read(tmp_path)
    assert ledger.useful_cpu_hours * 3600 >= 0.05 and ledger.wall_seconds >= 0.05 and ledger.peak_memory_mb > 1


def test_a_gpu_is_counted(tmp_path, monkeypatch):
    "With torch played by a stand-in: this machine may have no GPU."
    from types import SimpleNamespace as Fake

    monkeypatch.setattr("modernllm.core.telemetry._cuda", lambda: Fake(max_memory_allocated=lambda: 2**30))
    log = Telemetry(tmp_path)
    log.event("stop")
    ledger = Ledger.read(tmp_path)
    assert ledger.peak_gpu_memory_mb == 1024.0
    assert ledger.useful_gpu_hours == pytest.approx(ledger.wall_seconds / 3600)


def test_each_part_is_measured_by_its_own_operations():
    def line(kind, session, part, **fields):
        return {"kind": kind, "session": session, "elapsed": 1, "cpu": 1, "gpus": 0, "memory_mb": 1.0, "part": part, **fields}

    def step(session, part, number):
        return line("step", session, part, step=number, tokens_per_second=100)

    small, large = ({"flops_per_token": flops, "matmul_limit": 1000} for flops in (1, 5))
    events = [line("limit", 1, "a", **small), step(1, "a", 1), line("limit", 1, "b", **large), step(1, "b", 1), step(1, "b", 2)]
    assert Ledger.of(events).mfu == 0.5 and Ledger.of(events[:2]).mfu == 0.1 and Ledger.of(events).throughput == 100
    other = [step(2, "b", 3)]  # a session that has not measured says nothing
    assert Ledger.of(other).mfu is None and Ledger.of(other).matmul_limit is None


def test_a_peak_that_is_counted_anew_stays_in_the_log(tmp_path):
    log, held = Telemetry(tmp_path), b"x" * 2**27  # 128 MiB
    before = peak_mb()
    assert len(held) and before > 128
    del held
    restart_peak()
    if sys.platform == "linux":
        assert peak_mb() < before - 100
    log.event("step", step=1)
    assert Ledger.read(tmp_path).peak_memory_mb >= before - 1
