"""Records and code that has changed since, in a small repository. Steps are run in this process; tests/e2e has the real ones."""

import json
import shutil
import subprocess
from functools import lru_cache

import pytest
from test_graph import BASE

from modernllm.core import installation
from modernllm.workflow import code_versions
from modernllm.workflow.equivalence import Difference, Equivalence
from modernllm.workflow.code_versions import compare_code
from modernllm.core.config import InputError, RunFailed
from modernllm.workflow.equivalence import artifact_values, equivalence_path, is_measured, load_equivalences
from modernllm.core.records import Record, load_record, publish


@pytest.fixture
def repository(lab, monkeypatch, tmp_path_factory):  # noqa: F811
    "The two studies, committed, with committed records of profile cpu and without the runs: a fresh clone."
    lab.git = lambda *words: subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], cwd=lab.folder, check=True, capture_output=True, text=True
    ).stdout.strip()
    lab.commit = lambda: (lab.git("add", "-A"), lab.git("commit", "-qm", "step"), lab.git("rev-parse", "HEAD"))[-1]
    monkeypatch.setattr("modernllm.core.runs.git_state", installation.git_state)
    smoke = lru_cache(lambda study, commit: in_a_checkout(lab, monkeypatch, study, commit))
    monkeypatch.setattr(code_versions, "smoke_results", lambda study, commit, jobs, say: smoke(study, commit))
    kept = tmp_path_factory.getbasetemp() / "repository"
    if kept.exists():
        shutil.rmtree(lab.folder / "nbs")
        shutil.copytree(kept, lab.folder, dirs_exist_ok=True)
    else:
        lab.edit("tiny/plan.yaml", "seeds: [0, 1], threads: 2, params", "seeds: [0, 1], threads: 1, params")
        (lab.folder / ".gitignore").write_text("runs/\ndata/records/smoke/\n")
        lab.git("init", "-q")
        lab.commit()
        lab.run("tiny", profile="cpu")
        shutil.rmtree(lab.folder / "runs")
        lab.commit()
        shutil.copytree(lab.folder, kept)
    lab.first, lab.said = lab.git("rev-parse", "HEAD^"), []
    lab.compare = lambda **options: compare_code(say=lab.said.append, **options)
    return lab


def in_a_checkout(lab, monkeypatch, study, commit):  # noqa: F811
    "What `smoke_results` does, with the library of this process."
    with code_versions._checkout(commit) as tree, monkeypatch.context() as patch:
        patch.setenv("MODERNLLM_ROOT", str(tree))
        elsewhere = type(lab)(tree)
        assert "failed" not in elsewhere.run(study).values()
        paths = sorted((tree / "runs/smoke" / study).glob("*/s*/metrics.json"))
        return [(load_record(path), artifact_values(load_record(path), path.parent)) for path in paths]


RENAMED = ("distances", "how_far")


def test_a_renamed_variable_changes_the_hash_and_no_result(repository):
    assert set(repository.states("tiny", profile="cpu").values()) == {("up to date", "by hash")}
    repository.compare()
    assert repository.said == ["nothing to compare: all records are of today's code"]
    repository.edit("tiny/run.ipynb", "import json\\n", "import json  # a remark\\n")
    assert repository.stale("tiny", profile="cpu") == []
    repository.edit("tiny/run.ipynb", *RENAMED)
    assert repository.states("tiny", profile="cpu")[BASE] == ("changed code", "run.ipynb")
    with pytest.raises(InputError, match="commit them first"):
        repository.compare()
    head = repository.commit()
    committed = {path: path.read_bytes() for path in repository.folder.glob("data/records/cpu/**/*.json")}
    repository.compare()
    (entry,) = load_equivalences()
    assert entry.differences == [] and entry.runs == 5 and entry.metrics == 10 and entry.artifacts == 5
    assert (entry.then.commit, entry.now.commit) == (repository.first, head) and entry.curve_points > 20
    assert set(repository.states("tiny", profile="cpu").values()) == {("up to date", "by equivalence")}
    assert repository.run("tiny", profile="cpu") == {}
    assert committed == {path: path.read_bytes() for path in committed} and not list(repository.folder.glob("data/records/smoke"))
    assert len(repository.git("worktree", "list").splitlines()) == 1
    said, repository.said[:] = repository.said[:], []
    repository.compare()  # known: nothing is run again
    assert repository.said == [entry.says(), "1 comparisons: all equal or explained"] and entry.says() in said
    repository.edit("tiny/plan.yaml", "params: {learning_rate: 0.2}", "params: {learning_rate: 0.21}")
    assert repository.states("tiny", profile="cpu")[BASE] == ("changed parameter", "learning_rate: 0.2 → 0.21")


def test_a_difference_is_listed_and_stays_until_a_person_gives_a_reason(repository):
    repository.edit("tiny/run.ipynb", "learning_rate * 2", "learning_rate * 2.1")
    repository.commit()
    with pytest.raises(RunFailed, match="1 of 1 comparisons"):
        repository.compare()
    assert any("base/s0 metric distance: " in line and " → " in line for line in repository.said)
    assert any("base/s0 artifact point x: " in line for line in repository.said)
    assert repository.states("tiny", profile="cpu")[BASE] == ("changed code", "run.ipynb")
    with pytest.raises(RunFailed):
        repository.compare()
    repository.compare(reason="the gradient lacked a tenth")
    (entry,) = load_equivalences()
    assert entry.differences and entry.reason == "the gradient lacked a tenth"
    assert repository.states("tiny", profile="cpu")[BASE] == ("differs", "the gradient lacked a tenth")
    # The same values differ after the next refactoring: the reason stays. With other values it is asked for again.
    repository.edit("tiny/run.ipynb", *RENAMED)
    repository.commit()
    repository.compare()
    assert load_equivalences()[0].reason == "the gradient lacked a tenth" and len(load_equivalences()) == 1
    repository.edit("tiny/run.ipynb", "learning_rate * 2.1", "learning_rate * 2.2")
    repository.commit()
    with pytest.raises(RunFailed):
        repository.compare()
    assert load_equivalences()[0].reason == ""


def test_what_cannot_be_compared_is_one_line_each(repository):
    repository.edit("tiny/run.ipynb", *RENAMED)
    repository.commit()
    for path in repository.folder.glob("data/records/cpu/tiny/*/s1.json"):
        record = load_record(path)
        publish(Record.make(record.to_dict(), provenance=record.provenance.to_dict() | {"dirty": True, "source_hash": "1" * 64}))
    for path in repository.folder.glob("data/records/cpu/tiny/*/s0.json"):
        record = load_record(path)
        publish(Record.make(record.to_dict(), provenance=record.provenance.to_dict() | {"commit": "1" * 40}))
    with pytest.raises(RunFailed, match="2 of 2 comparisons"):
        repository.compare()
    n = len(list(repository.folder.glob("data/records/cpu/tiny/*/s0.json")))
    assert set(repository.said) == {
        f"tiny: {n} records were made from files that no commit holds",
        f"tiny: commit 1111111 of {n} records is not in this repository",
    }


def test_a_run_that_fails_at_the_commit_is_one_line(repository, monkeypatch):
    repository.edit("tiny/run.ipynb", *RENAMED)
    repository.commit()
    run = code_versions.smoke_results

    def broken(study, commit, jobs, say):
        if commit == repository.first:
            raise RunFailed("tiny: the smoke profile cannot run at commit abc: no such module")
        return run(study, commit, jobs, say)

    monkeypatch.setattr(code_versions, "smoke_results", broken)
    with pytest.raises(RunFailed, match="1 of 1 comparisons"):
        repository.compare()
    assert "tiny: the smoke profile cannot run at commit abc: no such module" in repository.said
    assert not equivalence_path().exists()


@pytest.mark.parametrize("text", ["{", "{}", "[1]", json.dumps([{"study": "tiny"}])])
def test_a_broken_file_is_one_line(project, text):
    equivalence_path().parent.mkdir(parents=True)
    equivalence_path().write_text(text)
    with pytest.raises(InputError, match=r"equivalence\.json: "):
        load_equivalences()


def test_a_share_of_a_measured_rate_is_a_measurement_and_other_shares_are_not():
    units = {"train_limit_own_products": "FLOP/s", "train_x_share_of_own_products": "share", "kept_share_of_tokens": "share",
             "tokens": "tokens"}  # fmt: skip
    assert [name for name, unit in units.items() if is_measured(name, unit, units)] == list(units)[:2]
    assert not is_measured("train_x_share_of_own_products", "share", {})
    assert is_measured("mfu", "share", {}) and is_measured("train_speed", "ratio", {})
    assert is_measured("x", "ms/token", {}) and not is_measured("x", "nats/token", {})


@pytest.mark.parametrize("name, same", [
    ("model/chat_template.jinja", True), ("model/tokenizer.json added_tokens", True), ("model/config.json use_cache", True),
    ("model/model.safetensors", False), ("answers.jsonl", False), ("model/config.json.bak", False),
])
def test_files_beside_equal_weights_are_no_other_result(name, same):
    code = {"commit": "1" * 40, "source_hash": "0" * 64, "notebook_hash": None}
    counts = {"runs": 1, "metrics": 1, "curve_points": 0, "artifacts": 1}
    facts = {"study": "tiny", "then": code, "now": code, "set_aside": [], "packages": {}, "python": "3.11", "date": "2026-01-01"}
    entry = Equivalence.make({**facts, **counts, "differences": [{"name": f"a/s0 artifact {name}", "then": 1, "now": 2}]})
    metric = Difference(name="a/s0 metric loss", then=1, now=2)
    assert entry.same_results is same
    assert not entry.model_copy(update={"differences": [*entry.differences, metric]}).same_results
