"""`kill -9` at any moment, run again: the same weights and the same batches, bit for bit."""

import json
import signal
import socket
import time
from pathlib import Path

import pytest
import workers

from modernllm.core.telemetry import Ledger


def run(processes, *args, **kwargs):
    process = processes.Process(target=workers.train, args=args, kwargs=kwargs)
    process.start()
    return process


def batches_seen(log):
    "The batches that the final weights come from: going back to a checkpoint takes back what came after it."
    seen = []
    for line in Path(log).read_text().splitlines():
        index, digest = line.split()
        assert int(index) <= len(seen), "a batch was left out"
        seen[int(index):] = [digest]
    return seen


def test_kill_anywhere(processes, kill_everywhere, tmp_path):
    plain = run(processes, None, tmp_path / "plain.log", tmp_path / "plain.json")  # no checkpoints at all
    plain.join()
    assert plain.exitcode == 0

    def start(place):
        return run(processes, folder, log, tmp_path / "killed.json", pause=0.004, die_at=place, telemetry=tmp_path)

    folder, log = tmp_path / "checkpoints", tmp_path / "killed.log"
    kill_everywhere(start, folder, log, ["evaluation"] * 4 + ["moment"] * 13, seconds=0.15)
    assert not (tmp_path / "killed.json").exists()
    last = run(processes, folder, log, tmp_path / "killed.json", telemetry=tmp_path)
    last.join()

    killed, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("killed", "plain"))
    assert killed == whole  # weights of model and objective, history, best evaluation, tokens
    assert batches_seen(log) == batches_seen(tmp_path / "plain.log")
    assert len(batches_seen(log)) == 600
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) <= 3 and all(name.startswith("step_") for name in kept)
    ledger = Ledger.read(tmp_path)
    assert ledger.useful_cpu_hours > 0 and ledger.lost_cpu_hours > 0


def test_terminated(processes, tmp_path):
    "SIGTERM, as a spot machine sends it: a checkpoint, then the end."
    process = run(processes, tmp_path / "c", tmp_path / "log", tmp_path / "r.json", pause=0.004, checkpoint_every_steps=0)
    while not (tmp_path / "log").exists() or len((tmp_path / "log").read_text().splitlines()) < 30:
        time.sleep(0.005)
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM
    newest = max((tmp_path / "c").glob("step_*"))
    assert 2 * int(newest.name[5:]) == len(batches_seen(tmp_path / "log"))


def test_two_processes_equal_accumulation(processes, tmp_path):
    "Two processes with one batch each are one process with two batches."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    same = dict(max_steps=6, log_every=1, precision="fp32")
    alone = run(processes, None, tmp_path / "one.log", tmp_path / "one", dropout=False, accumulation=2, **same)
    both = [processes.Process(target=workers.train_distributed, args=(rank, 2, port, tmp_path / "two"),
                              kwargs=dict(accumulation=1, **same)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in [alone, *both]:
        process.join(60)
    assert [process.exitcode for process in [alone, *both]] == [0, 0, 0]
    one, two, three = (json.loads((tmp_path / name).read_text()) for name in ("one", "two.0", "two.1"))
    assert two == three and one["tokens"] == two["tokens"]
    for ours, theirs in zip(one["history"]["train"], two["history"]["train"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    first = [line.split()[0] for line in (tmp_path / "two.1.log").read_text().splitlines()]
    assert first == ["1", "3", "5", "7", "9", "11"]
