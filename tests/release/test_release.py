"A bundle: what it holds, that it comes out again, what is refused, and that no changed byte goes unnoticed."

import json
import shutil
import subprocess

import pytest

import modernllm
from modernllm.cli.app import main
from modernllm.core.config import InputError, RunFailed
from modernllm.core.records import Record, load_record
from modernllm.reporting import release
from modernllm.reporting.model_card import how_to_run, metrics_table
from modernllm.reporting.release import finished_run, with_upstream
from modernllm.workflow.bundle import SUMS, pack, read_folder, unpack
from modernllm.workflow.first_steps import repeat_here

VERSION = modernllm.__version__
BASE = "runs/smoke/small_lm/base/s0"


def refused(capsys, *line, status=2):
    capsys.readouterr()
    assert main(["release", *map(str, line)]) == status
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


def test_what_a_bundle_holds(bundle, released):
    files, problem = unpack(bundle)
    assert not problem and {"MODEL_CARD.md", "HOW_TO_RUN.md", "constraints.txt", "LICENSE", "release.json", SUMS} < files.keys()
    for name in ("metrics.json", "first_steps.json", "model/model.safetensors", "model/config.json", "model/tokenizer.json"):
        assert f"{BASE}/{name}" in files
    assert "studies/small_lm/plan.yaml" in files and "records/smoke/small_lm/base/s0.json" in files
    record = load_record(released / BASE / "metrics.json")
    told = json.loads(files["release.json"])
    assert told["version"] == VERSION and told["commit"] == record.provenance.commit
    assert [run["tokenizer_hash"] for run in told["runs"]] == [record.provenance.tokenizer_hash]
    assert len(json.loads(files[f"{BASE}/first_steps.json"])["steps"]) == release.STEPS
    card, guide = files["MODEL_CARD.md"].decode(), files["HOW_TO_RUN.md"].decode()
    for words in ("text.txt", "smoke profile", "compare it only between models with the same tokenizer", "context 16, stride 16",
                  "core-hours", record.provenance.commit, record.artifacts["model"].sha256):
        assert words.replace("text.txt", r"text\.txt") in card, words
    assert f"git checkout {record.provenance.commit}" in guide and f"modernllm-{VERSION}/{BASE}/model" in guide
    assert bundle.read_bytes() == pack({n: data for n, data in files.items() if n != SUMS}, f"modernllm-{VERSION}")


def test_the_guide_names_the_commit_of_each_run(released):
    record = load_record(released / BASE / "metrics.json")
    other = Record.make({**record.to_dict(), "variant": "more", "command": "modernllm study run other",
                         "provenance": record.provenance.to_dict() | {"commit": "2" * 40}})
    commit = record.provenance.commit
    guide = how_to_run("1.0", commit, [record, other], {"small_lm/base/s0": "a", "small_lm/more/s0": "b"})
    again = guide.split("## Make it again")[1]
    assert again.index(record.command) < again.index(f"git checkout {'2' * 40}") < again.index(other.command)
    assert f"git checkout {commit}" not in again


def test_the_card_has_interval_and_chance_of_an_accuracy(released):
    record = load_record(released / BASE / "metrics.json")
    share = {"unit": "share", "split": None, "n_items": 8, "better": None}
    found = {f"set_acc_{side}": {**share, "value": value} for side, value in (("low", 0.137), ("high", 0.694), ("chance", 0.25))}
    known = {name: {**share, "value": value, "better": "higher"} for name, value in (("set_acc", 0.375), ("other_acc", 0.5))}
    record = Record.make({**record.to_dict(), "metrics": {**known, **found}})
    card = metrics_table(record, [record])
    assert r"| set\_acc | 0.3750 (95 %: 0.137 to 0.694; chance 0.250) |" in card and r"| other\_acc | 0.5000 |" in card


def test_sha256sum_agrees(bundle, tmp_path):
    subprocess.run(["tar", "-xzf", bundle, "-C", tmp_path], check=True)
    subprocess.run(["sha256sum", "--quiet", "-c", SUMS], cwd=tmp_path / f"modernllm-{VERSION}", check=True)


def test_a_bundle_is_verified(bundle, capsys):
    assert main(["release", "verify", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "made again" in out and "steps 1 to 3 equal: losses and weights bit for bit" in out and out.endswith("verified\n")
    assert "steps is 11; allowed: 1 to 10" in refused(capsys, "verify", bundle, "--steps", 11)


def test_one_changed_byte(bundle, tmp_path, capsys):
    "Of the content of a file: its name is told. Of the archive: something is."
    files, _ = unpack(bundle)
    copy, raw = tmp_path / "copy.tar.gz", bytearray(bundle.read_bytes())
    for place in [*range(20), *range(100, len(raw) - 20, len(raw) // 40), *range(len(raw) - 20, len(raw))]:
        raw[place] ^= 16
        copy.write_bytes(raw)
        raw[place] ^= 16
        with pytest.raises((RunFailed, InputError)):
            release.checked_files(copy)
    copy.write_bytes(raw + b"\0")
    assert "its compressed bytes were changed" in refused(capsys, "verify", copy, status=1)
    copy.write_bytes(raw[: len(raw) // 2])
    assert "is missing or cut off" in refused(capsys, "verify", copy, status=1)
    copy.write_bytes(raw[:1000])
    assert "the archive: it is cut off" in refused(capsys, "verify", copy, status=1)

    name = f"{BASE}/model/model.safetensors"
    changed = files[name][:-1] + bytes([files[name][-1] ^ 1])
    copy.write_bytes(pack({**files, name: changed}, "modernllm"))  # the old SHA256SUMS comes behind the new one and counts
    assert f"{name} was changed: its SHA-256 is" in refused(capsys, "verify", copy, status=1)
    del files[SUMS]
    copy.write_bytes(pack({**files, name: changed}, "modernllm"))  # and with new checksums
    with pytest.MonkeyPatch.context() as patch:
        answer = json.loads(files[f"{BASE}/first_steps.json"])
        patch.setattr(release, "repeat", lambda record, steps, runs: answer)
        assert "artifact 'model' is not the one of its record" in refused(capsys, "verify", copy, status=1)


@pytest.mark.parametrize("change, told", [
    (lambda a: a["steps"][1].update(loss=9.0), "step 2: loss 9.000000"),
    (lambda a: a["steps"][0].update(weights_sha256="0"), "and other weights"),
    (lambda a: a.update(tokenizer_hash="f" * 64), "the tokenizer's hash is ffffffffffff, the record says"),
    (lambda a: a["data"][0].update(fingerprint="0"), "text.txt train has another fingerprint"),
    (lambda a: [row.update(loss=9.0) for row in a["steps"]], "the mean loss of the first 5 steps is 9.0000, the record says"),
    (lambda a: a["environment"].update(threads=64), "losses within 1e-4, since threads 1 then, 64 here"),
])
def test_what_does_not_come_out_again(bundle, monkeypatch, capsys, change, told):
    answer = json.loads(unpack(bundle)[0][f"{BASE}/first_steps.json"])
    change(answer)
    monkeypatch.setattr(release, "repeat", lambda record, steps, runs: answer)
    status = main(["release", "verify", str(bundle), "--steps", "5"])
    shown = capsys.readouterr()
    assert told in shown.out + shown.err and status == (0 if "threads" in told else 1)


def test_a_run_that_starts_from_another(released):
    assert [run.place for run in with_upstream(["small_lm/more/0"], "smoke")] == [BASE, BASE.replace("base", "more")]
    record = finished_run("small_lm/more/s0", "smoke").record
    source = record.inputs["start"]
    inputs = {"start": {name: getattr(source, name) for name in ("study", "variant", "seed", "artifact")}}
    given = {"variant": "more", "run_dir": "", "inputs": inputs, **record.params}
    first = repeat_here(released / "nbs/studies/small_lm/run.ipynb", given, 6)
    assert [row["step"] for row in first["steps"]] == [1, 2, 3, 4] and not release.against_record(record, first)


@pytest.fixture
def copied(released, tmp_path, monkeypatch):
    "A copy of the project, to be spoilt."
    folder = tmp_path / "project"
    shutil.copytree(released, folder, ignore=shutil.ignore_patterns("dist", ".lock"))
    monkeypatch.setenv("MODERNLLM_ROOT", str(folder))
    monkeypatch.chdir(folder)
    return folder


def change_record(folder, **changes):
    path = folder / BASE / "metrics.json"
    values = json.loads(path.read_text())
    made = values["provenance"] | changes.get("provenance", {})
    path.write_text(Record.make({**values, **changes, "provenance": made}).to_json())


LINE = [VERSION, "--profile", "smoke", "--run", "small_lm/base/0"]


def test_what_may_not_be_released(copied, capsys):
    assert f"version is 'v9.9.9'; allowed: {VERSION}" in refused(capsys, "v9.9.9", *LINE[1:])
    assert "--run is not given" in refused(capsys, *LINE[:3])
    assert "run 'small_lm'; allowed: study/variant/seed" in refused(capsys, *LINE[:4], "small_lm")
    assert "did you mean 'small_lm'" in refused(capsys, *LINE[:4], "small_ml/base/0")
    assert "has not finished on this machine" in refused(capsys, *LINE[:4], "small_lm/base/7")
    (copied / "runs/smoke/small_lm/none/s0").mkdir(parents=True)
    kept = json.loads((copied / BASE / "metrics.json").read_text())
    (copied / "runs/smoke/small_lm/none/s0/metrics.json").write_text(Record.make({**kept, "artifacts": {}}).to_json())
    assert "run small_lm/none/0 keeps no model" in refused(capsys, *LINE[:4], "small_lm/none/0")
    assert "unknown profile 'smoky'" in refused(capsys, VERSION, "--profile", "smoky", *LINE[3:])
    change_record(copied, provenance={"dirty": True})
    assert "made from files with changes that no commit holds" in refused(capsys, *LINE)
    change_record(copied, provenance={"dirty": False}, status="killed")
    assert "was killed; allowed: runs that finished" in refused(capsys, *LINE)
    change_record(copied, status="finished")
    (copied / BASE / "model/config.json").write_text("{}")
    assert "artifact 'model' is gone or was changed after the run" in refused(capsys, *LINE)
    (copied / "text.txt").write_text("other")
    assert "files differ from the last commit" in refused(capsys, *LINE)
    shutil.rmtree(copied / ".git")
    assert "is no git checkout" in refused(capsys, *LINE)
    assert not (copied / "dist").exists()


def test_a_run_that_does_not_come_out_again_is_not_released(copied, capsys, monkeypatch):
    answer = {"steps": [], "tokenizer_hash": "0" * 64, "data": [], "environment": {}}
    monkeypatch.setattr(release, "repeat", lambda record, steps, runs: answer)
    err = refused(capsys, *LINE, status=1)
    assert "does not come out again: the tokenizer's hash is 000000000000" in err and "not the code of the run" not in err
    change_record(copied, provenance={"source_hash": "0" * 64})
    assert "(this is not the code of the run: commit " in refused(capsys, *LINE, status=1)


def test_files_that_are_no_bundle(tmp_path, capsys):
    assert "cannot be read: No such file" in refused(capsys, "verify", tmp_path / "none.tar.gz")
    place = tmp_path / "it.tar.gz"
    place.write_bytes(b"PK\3\4")
    assert "is not a bundle" in refused(capsys, "verify", place)
    place.write_bytes(pack({"a": b"1"}, "x"))
    assert "holds no release.json" in refused(capsys, "verify", place)
    place.write_bytes(pack({"../../etc/a": b"1"}, "x"))
    assert "leads out of its folder" in refused(capsys, "verify", place)


def test_a_study_that_trains_nothing(project, root):
    shutil.copytree(root / "tests/studies/tiny", project / "nbs/studies/tiny")
    with pytest.raises(InputError, match="study 'tiny' trains nothing whose steps could be repeated"):
        repeat_here(project / "nbs/studies/tiny/run.ipynb", {"study": "tiny"}, 3)


def test_a_file_is_read_as_a_folder_is(tmp_path):
    (tmp_path / "a").write_text("1")
    assert read_folder(tmp_path / "a") == {"": b"1"} and read_folder(tmp_path) == {"a": b"1"}
