"A machine is taken away at random moments and another one, in another folder, goes on from the bucket."

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import small_study
import yaml

from modernllm.cli.app import main
from modernllm.core.config import InputError, RunFailed
from modernllm.core.records import load_record
from modernllm.workflow import bucket as buckets
from modernllm.workflow.bucket import copy_in, copy_out, kept_in

KILLS = 2
RUN = "small_lm/base/s0"


def machine(processes, folder, bucket, pause=0.0):
    "Start a machine with an empty disk."
    import machines

    small_study.write_study(folder)
    process = processes.Process(target=machines.work, args=(folder, bucket, pause))
    process.start()
    return process


def copied(bucket, name):
    "The lines of a file in the newest copy that has it."
    for path in sorted(bucket.glob("copies/*.json"), reverse=True):
        try:
            return (bucket / "contents" / json.loads(path.read_text())[name]).read_text().splitlines()
        except (OSError, ValueError, KeyError):  # being written, being removed, or older than the file
            continue
    return []


def copied_events(bucket):
    return [json.loads(line) for line in copied(bucket, f"{RUN}/events.jsonl")]


def test_machines_are_taken_away(processes, tmp_path):
    plain = machine(processes, tmp_path / "plain", tmp_path / "plain-bucket")
    chance, bucket = random.Random(1), tmp_path / "bucket"
    for number in range(KILLS):
        folder = tmp_path / f"machine-{number}"
        process = machine(processes, folder, bucket, pause=0.04)
        saved = ("checkpoint", number + 1)
        while process.is_alive() and saved not in [(e["kind"], e["session"]) for e in copied_events(bucket)]:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL and not (folder / "runs/smoke" / RUN / "metrics.json").exists()
    last = machine(processes, tmp_path / "last", bucket)
    for process in (plain, last):
        process.join(60)
        assert process.exitcode == 0

    whole, killed = (load_record(tmp_path / f"{name}/runs/smoke" / RUN / "metrics.json") for name in ("plain", "last"))
    assert killed.artifacts == whole.artifacts and killed.artifacts["model"].bytes > 1000  # weights, bit for bit
    assert killed.curves == whole.curves and killed.content_sha256() == whole.content_sha256()
    assert killed.cost.lost_cpu_hours > 0 and whole.cost.lost_cpu_hours == 0
    events = copied_events(bucket)
    assert max(event["session"] for event in events) == KILLS + 1
    assert sum(event["kind"] == "resume" for event in events) == KILLS
    assert copy_in(bucket, tmp_path / "home") and load_record(tmp_path / "home" / RUN / "metrics.json") == killed


ONE_DESCENT = """
title: Two descents
question: Do they run?
profiles: {smoke: {}}
variants: {base: {}, other: {params: {learning_rate: 0.3}}}
"""


def spot_machine(root, folder, bucket):
    "Start the lines of infra/spot.yaml in a checkout of its own."
    spot = yaml.safe_load((root / "infra/spot.yaml").read_text())
    folder.mkdir()
    for name in ("modernllm", "Snakefile", "settings.ini"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, folder / name)
    (folder / ".venv").symlink_to((root / ".venv").resolve())
    shutil.copytree(root / "tests/studies/tiny", folder / "nbs/studies/tiny")
    (folder / "nbs/studies/tiny/plan.yaml").write_text(ONE_DESCENT)
    given = {"STUDY": "tiny", "PROFILE": "smoke", "JOBS": "1", "BUCKET": str(bucket), "COPY_EVERY": "0.2"}
    assert given.keys() < spot["envs"].keys() and spot["file_mounts"][spot["envs"]["BUCKET"]]["mode"] == "MOUNT"
    drop = ("MODERNLLM_", "PYTEST_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return subprocess.Popen(["sh", "-c", spot["run"]], cwd=folder, env=env | given | {"PYTHONPATH": str(folder)}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def take_away(process):
    "Kill a process and all that it has started."
    group = [process, *psutil.Process(process.pid).children(recursive=True)]
    for one in group:
        one.kill()
    process.communicate()


def test_the_lines_of_spot_yaml(root, tmp_path):
    bucket = tmp_path / "bucket"
    first = spot_machine(root, tmp_path / "first", bucket)
    runs = ("tiny/base/s0", "tiny/other/s0")
    while not any("record_sha256" in line for run in runs for line in copied(bucket / "smoke", f"{run}/status.json")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    time.sleep(random.Random(2).uniform(0, 0.5))
    take_away(first)
    second = spot_machine(root, tmp_path / "second", bucket)
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 0 and "files of earlier work from" in out, out
    left, done = map(int, re.search(r"(\d) runs and 1 summaries to do; (\d) runs are up to date", out).groups())
    assert done >= 1 and left + done == len(runs)
    assert len(list((tmp_path / "second/data/records/smoke/tiny").glob("*/s0.json"))) == 2
    assert (tmp_path / "second/data/results/smoke/tiny.csv").exists()


@pytest.fixture
def two_copies(tmp_path):
    "A bucket with two copies of one run's log."
    for text in ("one\n", "one\ntwo\n"):
        (tmp_path / "runs/study/a/s0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs/study/a/s0/events.jsonl").write_text(text)
        copy_out(tmp_path / "runs", tmp_path / "bucket")
    return tmp_path / "bucket"


def text_in(bucket, folder):
    copy_in(bucket, folder)
    return (folder / "study/a/s0/events.jsonl").read_text()


@pytest.mark.parametrize("spoil", [
    lambda copy, content: copy.write_text(copy.read_text()[:-9]), lambda copy, content: content.unlink(),
    lambda copy, content: content.write_text("one\ntw"), lambda copy, content: copy.write_text("[]"),
])
def test_a_machine_that_dies_while_it_copies(two_copies, tmp_path, spoil):
    newest = sorted(two_copies.glob("copies/*.json"))[-1]
    (sha256,) = json.loads(newest.read_text()).values()
    spoil(newest, two_copies / "contents" / sha256)
    assert text_in(two_copies, tmp_path / "next") == "one\n"
    for path in two_copies.glob("contents/*"):
        path.unlink()
    with pytest.raises(RunFailed, match="none of its 2 copies is complete"):
        copy_in(two_copies, tmp_path / "other")


def test_old_copies_are_removed(two_copies, tmp_path):
    log = tmp_path / "runs/study/a/s0/events.jsonl"
    for number in range(3):
        log.write_text(log.read_text() + f"{number}\n")
        assert copy_out(tmp_path / "runs", two_copies) and copy_out(tmp_path / "runs", two_copies) is None
    assert len(list(two_copies.glob("copies/*"))) == len(list(two_copies.glob("contents/*"))) == buckets.KEEP


def test_nothing_on_this_machine_is_lost(two_copies, tmp_path):
    for mine, after in (("one\ntwo\nthree\n", "one\ntwo\nthree\n"), ("one\n", "one\ntwo\n")):
        log = tmp_path / f"{len(mine)}/study/a/s0/events.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text(mine)
        assert text_in(two_copies, log.parents[3]) == after
    log.write_text("other\n")
    with pytest.raises(InputError, match="are of different runs; move one away, or choose another bucket"):
        copy_in(two_copies, log.parents[3])
    assert log.read_text() == "other\n"


def test_a_full_bucket_does_not_stop_the_work(tmp_path, monkeypatch):
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/file").write_text("1")
    said = []
    with kept_in(tmp_path / "bucket", tmp_path / "runs", say=said.append):
        monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert said == [f"{tmp_path / 'bucket'}: cannot be written: No space left on device"]


@pytest.mark.parametrize("words, told", [
    (["--bucket", "file"], "is a file"), (["--bucket", "b", "--copy-every", "0"], "every is 0.0; allowed: more than 0"),
    (["--bucket", "b", "--copy-every", "soon"], "'soon' is not a valid float"),
])
def test_bad_input(project, root, capsys, words, told):
    shutil.copytree(root / "tests/studies/tiny", project / "nbs/studies/tiny")
    (project / "file").touch()
    assert main(["study", "run", "tiny", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and told in err
