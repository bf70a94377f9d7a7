"""plan.yaml: what it refuses, and what it makes of a matrix."""

import json
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.workflow.expand import estimate, expand
from modernllm.workflow.gpu_minutes import LEASE, minutes_of
from modernllm.core.parameters import GIVEN, notebook_parameters
from modernllm.workflow.plan import load_plan, studies
from modernllm.workflow.schema import Plan, cell_name, cells


@pytest.fixture
def study(project, root):
    "A copy of the tiny study: a function that loads its plan after replacing a text in it."
    folder = project / "nbs/studies/tiny"
    shutil.copytree(root / "tests/studies/tiny", folder)
    text = (folder / "plan.yaml").read_text()

    def load(right="", wrong="", profile=None):
        assert right in text
        (folder / "plan.yaml").write_text(text.replace(right, wrong) if right else text)
        plan = load_plan("tiny")
        return expand(plan, profile) if profile else plan

    return load


def refused(load, *arguments) -> str:
    with pytest.raises(InputError) as error:
        load(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_tiny_study_expands_in_every_profile(study):
    names = {profile: [run.name for run in study(profile=profile)] for profile in ("smoke", "cpu", "gpu")}
    assert names["smoke"] == [
        "tiny/base/s0", "tiny/pick1/s0", "tiny/learning_rate=0.1,start_at=0.0/s0",
        "tiny/learning_rate=0.3,start_at=0.0/s0", "tiny/learning_rate=0.3,start_at=-1000000.0/s0",
    ]  # fmt: skip
    assert len(names["cpu"]) == 16 and len(names["gpu"]) == 8
    runs = {run.name: run for run in study(profile="cpu")}
    base, cell = runs["tiny/base/s1"], runs["tiny/learning_rate=0.2,start_at=0.0/s1"]
    assert (base.threads, base.params["steps"], cell.threads, cell.params["steps"]) == (2, 30, 1, 10)
    assert cell.kill["baseline"] == {"study": "tiny", "variant": "base", "seed": 1} and base.kill is None
    assert runs["tiny/pick1/s1"].inputs["start"] == {"study": "tiny", "variant": "base", "seed": 1, "artifact": "point"}
    assert runs["tiny/pick1/s0"].pick == {"rank": 1, "keeps": ["steps"]}
    assert cell.data == {"toy_data": {"stand_in": None}, "more_data": {"stand_in": None}}
    assert study(profile="smoke")[0].data == {"toy_data": {"stand_in": "toy_generated"}}
    assert {run.gpus for run in study(profile="gpu")} == {1} and {run.gpus for run in runs.values()} == {0}


@pytest.mark.parametrize("right, wrong, words", [
    ("params: {steps: 8}", "params: {stepps: 8}", ["profiles.smoke", "stepps", "did you mean 'steps'"]),
    ("params: {steps: 8}", "params: {steps: many}", ["steps", "'many'", "int"]),
    ("params: {steps: 8}", "params: {steps: 8.5}", ["steps", "8.5", "int"]),
    ("params: {steps: 16}", "params: {fail: 1}", ["pick1", "fail", "bool"]),
    ("  smoke: {seeds", "  smoek: {seeds", ["smoek", "did you mean 'smoke'"]),
    ("  smoke: {seeds: [0]", "  smoke: {seeds: [-1]", ["seeds.0", "-1"]),
    ("threads: 1, hours: 0.001, params", "threads: 0, hours: 0.001, params", ["threads", "is 0"]),
    ("title:", "titel:", ["titel", "did you mean 'title'"]),
    ("{learning_rate: 0.1, start_at: -1.0e+6}", "{learning_rate: 0.7}", ["exclude.0", "no cell"]),
    ("{learning_rate: 0.1, start_at: -1.0e+6}", "{rate: 0.1}", ["exclude.0", "rate", "learning_rate"]),
    ("matrix: {learning_rate: [0.1, 0.3]}", "matrix: {lerning_rate: [0.1]}", ["did you mean 'learning_rate'"]),
    ("start_at: [0.0, -1.0e+6]", "start_at: []", ["matrix.start_at", "list"]),
    ("  learning_rate: [0.1, 0.2, 0.3]", "  speed: [1]", ["speed"]),
    ("pick: 2", "pick: 3", ["pick2", "top_k = 2"]),
    ("pick: 2", "pick: kept", ["pick2", "'kept'", "select.baseline"]),
    ("pick: 2", "pick: all", ["pick", "'all'", "'kept'"]),
    ("from: matrix,", "from: matrix, baseline: base,", ["select.baseline", "'base'"]),
    ("from: matrix,", "from: matrix, alpha: 1,", ["select.alpha", "less than 1"]),
    ("split: validation", "split: test", ["select.split", "'test'", "validation"]),
    ("from: matrix", "from: [bas]", ["did you mean 'base'"]),
    ("from: matrix", "from: [pick1]", ["pick1"]),
    ("kill: {curve: distance, baseline: base", "kill: {curve: distance, baseline: bsae", ["did you mean 'base'"]),
    ("delta: 1000", "delta: -1", ["delta", "-1"]),
    ("more_data: {}", "more_data: {stand_in: toy}", ["profiles.cpu.data", "smoke only"]),
    ("  base:\n", "  ba se:\n", ["ba se", "letters"]),
    ("  base:\n", "  true:\n", ["True", "quotes"]),
    ("params: {steps: 8}", "params: {learning_rate: .inf}", ["profiles.smoke.params.learning_rate is inf", "finite"]),
    ("params: {steps: 8}", "params: {learning_rate: 1e400}", ["1e400 is too large"]),
    ("params: {steps: 8}", "params: {fail: yes}", ["fail", "'yes'", "bool"]),
    ("params: {steps: 8}", "params: {steps: 010}", ["steps", "'010'", "int"]),
    ("{learning_rate: 0.1, start_at: -1.0e+6}", "{learning_rate: .nan}", ["exclude.0.learning_rate is nan"]),
    ("start_at: [0.0, -1.0e+6]", "start_at: [0.0, -.inf]", ["matrix.start_at.1 is -inf"]),
    ("delta: 1000", "delta: .inf", ["kill.delta is inf"]),
    ("cpu_hours: 0.1", "cpu_hours: .inf", ["budget.cpu_hours is inf"]),
    ("seed: same, artifact", "seed: sane, artifact", ["seed", "'sane'", "same"]),
    ("cpu_hours: 0.1", "cpu_hours: -1", ["budget.cpu_hours", "-1"]),
])  # fmt: skip
def test_a_wrong_plan_is_refused_in_one_line(study, right, wrong, words):
    message = refused(study, right, wrong)
    assert "plan.yaml" in message
    for word in words:
        assert word in message, message


def test_yaml_that_does_not_parse_gives_file_and_line(study):
    message = refused(study, "select: {from", "select: {from: [")
    assert "plan.yaml:" in message and message.split("plan.yaml:")[1].split(":")[0].isdigit()


def test_unknown_study_and_profile(study, project):
    assert "did you mean 'tiny'" in refused(lambda: (study(), load_plan("tinny")))
    plan = study("  gpu: {seeds: [0], threads: 2, gpus: 1, hours: 0.001}\n", "")
    assert "'gpu'" in refused(expand, plan, "gpu") and "smoke, cpu" in refused(expand, plan, "gpu")
    assert "did you mean 'cpu'" in refused(expand, plan, "cpuu")
    shutil.rmtree(project / "nbs/studies/tiny")
    assert studies() == [] and "none exist" in refused(load_plan, "tiny")


@pytest.mark.parametrize("name", ["a b", "a{x}", "a#b", ".a"])
def test_a_study_with_a_name_that_cannot_be_a_folder_of_runs(study, project, name):
    study()
    (project / "nbs/studies/tiny").rename(project / f"nbs/studies/{name}")
    assert f"study name '{name}': allowed are letters" in refused(load_plan, name)


def test_a_plan_above_its_budget_is_refused(study):
    message = refused(study, "cpu_hours: 0.1", "cpu_hours: 0.001", "cpu")
    assert "budget.cpu_hours" in message and "16 runs" in message and "0.018" in message
    assert "gpu_hours" in refused(study, "gpu_hours: 1}", "gpu_hours: 0.004}", "gpu")
    assert len(study("gpu_hours: 1}", "gpu_hours: 0.004}", "cpu")) == 16


@pytest.mark.parametrize("source, words", [
    (None, "0 cells"),
    ("a, b = 1, 2", "steps = 10"),
    ("steps = 2 * 5", "steps = 10"),
    ("if True: pass", "steps = 10"),
    ("steps += 10", "steps = 10"),
    ("steps = more = 10", "steps = 10"),
    ("%time steps = 10", "steps = 10"),
    ("steps = (", "steps = 10"),
    ("steps = 10", "lacks study, variant, seed, profile, run_dir, inputs"),
])
def test_parameters_cells_that_cannot_be_read(tmp_path, source, words):
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}
    (tmp_path / "run.ipynb").write_text(json.dumps({"cells": [cell] if source else []}))
    assert words in refused(notebook_parameters, tmp_path / "run.ipynb")
    (tmp_path / "run.ipynb").write_text("{")
    assert "not a notebook" in refused(notebook_parameters, tmp_path / "run.ipynb")
    assert "cannot be read" in refused(notebook_parameters, tmp_path / "no.ipynb")


@pytest.mark.parametrize("value", [
    "{1, 2}", "b'a'", "1j", "...", "(1, 2)", "1e400", "-1e400", "[1, {2}]", "{1: 2}", "'\\ud800'", "{[1]: 2}",
])
def test_defaults_that_no_plan_could_say(tmp_path, value):
    source = "\n".join([*(f"{name} = ''" for name in GIVEN), f"steps = {value}"])
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}
    (tmp_path / "run.ipynb").write_text(json.dumps({"cells": [cell]}))
    message = refused(notebook_parameters, tmp_path / "run.ipynb")
    assert "run.ipynb: parameter steps" in message or "only lines such as" in message
    assert message.encode()


axes = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.lists(st.integers(0, 9) | st.booleans(), min_size=1, max_size=4, unique_by=str),
    min_size=1,
)  # fmt: skip


@given(axes, st.data())
def test_a_matrix_makes_each_cell_once_except_the_excluded(matrix, data):
    rule = {name: data.draw(st.sampled_from(values)) for name, values in matrix.items() if data.draw(st.booleans())}
    told = {"study": "s", "title": "t", "question": "q", "profiles": {"smoke": {}}}
    plan = Plan.make({**told, "matrix": matrix, "exclude": [rule]})
    kept = [variant.params for variant in cells(plan).values()]
    size, excluded = 1, 1
    for name, values in matrix.items():
        size *= len(values)
        excluded *= sum(value == rule[name] for value in values) if name in rule else len(values)
    assert len(kept) == size - excluded and all(cell_name(params) == name for name, params in zip(cells(plan), kept))
    assert not any(all(params[name] == value for name, value in rule.items()) for params in kept)


def test_the_estimate_counts_threads_and_unknown_runs(study):
    runs = study(profile="cpu")
    expected = estimate(runs)
    assert expected["cpu_hours"] == pytest.approx(0.018) and expected["gpu_hours"] == 0 and expected["unknown"] == 0
    assert estimate(study("  cpu: {seeds: [0, 1], threads: 1, hours: 0.001,", "  cpu: {seeds: [0, 1],", "cpu"))["unknown"] == 16


def test_reading_plans_does_not_load_torch(root):
    code = "import sys, modernllm.workflow.batch; sys.exit(sorted({'torch', 'papermill', 'snakemake'} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_the_committed_plans_are_valid(root, monkeypatch):
    for folder in ("nbs/studies", "tests/studies"):
        monkeypatch.setenv("MODERNLLM_STUDIES", str(root / folder))
        for name in studies():
            plan = load_plan(name)
            assert {profile: expand(plan, profile) for profile in plan.profiles}


def test_gpu_profiles_of_the_committed_plans_fit_a_lease(root, monkeypatch):
    monkeypatch.setenv("MODERNLLM_STUDIES", str(root / "nbs/studies"))
    found = {name: minutes_of(name) for name in studies() if "gpu" in load_plan(name).profiles}
    assert len(found) > 20 and not {name: minutes for name, minutes in found.items() if minutes is None or minutes > LEASE}


def test_a_given_name_cannot_be_set_by_the_plan(study):
    for name in GIVEN:
        assert f"unknown parameter '{name}'" in refused(study, "params: {steps: 8}", f"params: {{{name}: 1}}")
