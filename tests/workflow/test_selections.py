"""Plans with several selections, one behind the other; thin margins; a kill rule in standard deviations."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from modernllm.allocation.decision import note
from modernllm.core.config import InputError
from modernllm.core.records import load_record
from modernllm.reporting.current import stale as stale_results
from modernllm.workflow import execute, graph, selection
from modernllm.workflow.expand import expand
from modernllm.workflow.plan import load_plan
from modernllm.workflow.schema import SelectionRule
from modernllm.workflow.selection import asked_runs, margin, not_promoted, rank, read_selection, unmet
from modernllm.workflow.step_status import read_status

# Two seeds of r2 end 0.0504 and 0.0336 away: σ is 0.0119. The means of r3 and r25 are 0.0016 and 0.0098 away: a margin of 0.68 σ.
STAGED = """
title: Staged
question: Which rate, and then which start?
budget: {cpu_hours: 1}
profiles:
  smoke: {seeds: [0, 1], threads: 1, hours: 0.001, params: {steps: 8}}
  cpu: {seeds: [0]}
select:
  rate: {from: [r2, r25, r3], metric: distance, top_k: 2, baseline: r2, thin: 0.5}
  start: {from: [near, far], metric: distance}
variants:
  r2: {params: {learning_rate: 0.2}, profiles: {cpu: {seeds: [0, 1]}}}
  r25: {params: {learning_rate: 0.25}}
  r3: {params: {learning_rate: 0.3}}
  near: {pick: {rate: 1}, params: {start_at: 2.0}}
  far: {pick: {rate: 1}, params: {start_at: 10.0}}
  final: {pick: {start: 1}, params: {steps: 9}, profiles: {smoke: {seeds: [0]}}}
  second: {pick: {rate: 2}, params: {steps: 9}, when: {rate: thin}, profiles: {smoke: {seeds: [0]}}}
"""
RATES = [f"tiny/{variant}/s{seed}" for variant in ("r2", "r25", "r3") for seed in (0, 1)]
SECOND = "tiny/second/s0"


@pytest.fixture
def staged(lab):
    "The notebooks of the tiny study with another plan."
    shutil.rmtree(lab.studies / "tiny_next")
    (lab.studies / "tiny/plan.yaml").write_text(STAGED)
    return lab


@pytest.fixture
def done(staged, tmp_path_factory):
    "Everything has run, once for all tests of this file."
    kept = tmp_path_factory.getbasetemp() / "staged"
    if kept.exists():
        shutil.copytree(kept, staged.folder, dirs_exist_ok=True)
    else:
        staged.said = staged.run()
        shutil.copytree(staged.folder, kept)
    return staged


def test_selections_follow_each_other_and_a_clear_one_promotes_no_second(staged):
    said = staged.run()
    assert said.pop(SECOND) == "not promoted" and set(said.values()) == {"finished"}
    assert [name for name in said if "selections" in name] == ["tiny/selections/rate", "tiny/selections/start"]
    rate, start = (read_selection("smoke", "tiny", name) for name in ("rate", "start"))
    assert [row["variant"] for row in rate["ranked"]] == ["r3", "r25", "r2"] and rate["rule"]["thin"] == 0.5
    assert (rate["margin"], rate["sigma"]) == pytest.approx((0.684, 0.01188), rel=1e-3) and rate["thin"] is False
    assert start["ranked"][0]["params"] == {"learning_rate": 0.3, "start_at": 2.0} and "thin" not in start["rule"]
    params = load_record(staged.record("tiny/final/s0")).params
    assert params == {"learning_rate": 0.3, "start_at": 2.0, "steps": 9, "fail": False}
    # It is not run and not stale, and nothing waits for it.
    assert staged.states()[SECOND] == ("not promoted", "margin 0.7 σ") and staged.stale() == [SECOND] and staged.run() == {}
    assert not any(row.stale for row in graph.status(None, "smoke")) and not staged.record(SECOND).exists()
    plan = load_plan("tiny")
    assert not_promoted(plan, "smoke") == {"second": "margin 0.7 σ"} and graph.all_recorded(plan, "smoke")
    assert {run.name for run in expand(plan, "smoke")} - {run.name for run in asked_runs(plan, "smoke")} == {SECOND}
    assert "about 0 to come" in graph.budget(None, "smoke")[0]


def test_a_thin_selection_promotes_the_second_and_no_longer_when_it_is_clear_again(done):
    done.edit("tiny/plan.yaml", "thin: 0.5", "thin: 2.0")
    assert done.states()[SECOND] == ("new", "") and done.stale() == [SECOND]
    assert done.run() == {"tiny/selections/rate": "finished", SECOND: "finished", "tiny": "finished"}
    assert load_record(done.record(SECOND)).params == {"learning_rate": 0.25, "start_at": 0.0, "steps": 9, "fail": False}
    assert done.stale() == [] == stale_results("smoke") and not_promoted(load_plan("tiny"), "smoke") == {}
    done.edit("tiny/plan.yaml", "thin: 2.0", "thin: 0.5")
    assert done.states()[SECOND] == ("not promoted", "margin 0.7 σ")
    assert stale_results("smoke") == [f"{SECOND}: not promoted (margin 0.7 σ)"]  # a result that no plan asks for any more
    assert done.run() == {"tiny/selections/rate": "finished"} and done.run() == {}


def test_a_fresh_clone_selects_from_the_records(done):
    shutil.rmtree(done.folder / "runs")
    states = done.states()
    assert states.pop(SECOND) == ("not promoted", "margin 0.7 σ") and set(states.values()) == {("up to date", "by hash")}
    assert done.run() == {}
    done.edit("tiny/plan.yaml", "final: {pick: {start: 1}, params: {steps: 9}", "final: {pick: {start: 1}, params: {steps: 7}")
    assert done.run() == {"tiny/selections/start": "finished", "tiny/final/s0": "finished", "tiny": "finished"}
    assert load_record(done.record("tiny/final/s0")).params["learning_rate"] == 0.3


def test_a_changed_selection_reaches_what_picks_from_the_next_one(done):
    done.edit("tiny/plan.yaml", "r3: {params: {learning_rate: 0.3}}", "r3: {params: {learning_rate: 0.1}}")
    states = [done.states()[f"tiny/{name}/s0"][0] for name in ("r3", "near", "final")]
    assert states == ["changed parameter", "changed input", "changed input"]
    graph.prepare(None, "smoke")
    for seed in (0, 1):
        execute.step("run", str(done.record(f"tiny/r3/s{seed}").parent))
    why = "learning_rate: 0.3 → 0.25; changed input: selection rate: r3 → r25"
    assert done.states()["tiny/near/s0"] == ("changed parameter", why)
    assert done.run()["tiny/final/s0"] == "finished"
    assert load_record(done.record("tiny/final/s0")).params["learning_rate"] == 0.25


def test_one_selection_without_a_name_can_be_thin_too(staged):
    rates = STAGED.split("  near:")[0].replace("  start: {from: [near, far], metric: distance}\n", "")
    rates = rates.replace("select:\n  rate:", "select:")
    more = "  best: {pick: 1, params: {steps: 9}}\n  second: {pick: 2, params: {steps: 9}, when: {selection: thin}}\n"
    (staged.studies / "tiny/plan.yaml").write_text(rates + more)
    assert staged.run()[SECOND] == "not promoted"
    assert json.loads((staged.folder / "runs/smoke/tiny/selection.json").read_text())["thin"] is False
    staged.edit("tiny/plan.yaml", "thin: 0.5", "thin: 1")
    assert staged.run()[SECOND] == "finished" and load_record(staged.record(SECOND)).params["learning_rate"] == 0.25


def test_a_failed_seed_of_a_candidate_stops_the_selection(staged, capsys):
    staged.edit("tiny/plan.yaml", "params: {start_at: 2.0}", "params: {fail: true}")
    said = staged.run()
    assert said["tiny/near/s1"] == "failed" and said["tiny/far/s1"] == "finished"
    assert said["tiny/selections/start"] == said["tiny/final/s0"] == "failed"
    failed = "run tiny/near/s0 has no record; its last try failed: ValueError: this run was told to fail"
    assert f"select.start: {failed}" in capsys.readouterr().err
    assert staged.states()["tiny/final/s0"][0] == "new"
    assert not_promoted(load_plan("tiny"), "smoke") == {"second": "margin 0.7 σ"}


def test_token_perplexities_of_two_vocabularies_are_not_ranked(done, monkeypatch):
    done.edit("tiny/plan.yaml", "r3], metric: distance", "r3], metric: validation_token_ppl")
    stored, vocabularies = selection._record, {"r2": "16k", "r25": "16k", "r3": "16k"}

    def record(run, title):
        found = stored(run, title)
        vocabulary = found.provenance.model_copy(update={"tokenizer_hash": vocabularies[run.variant]})
        return found.model_copy(update={"metrics": {"validation_token_ppl": found.metrics["distance"]}, "provenance": vocabulary})

    monkeypatch.setattr(selection, "_record", record)
    plan = load_plan("tiny")
    assert [row["variant"] for row in selection.select_variants(plan, "smoke", "rate")["ranked"]] == ["r3", "r25", "r2"]
    vocabularies["r25"] = "8k"
    with pytest.raises(InputError, match="validation_token_ppl: the models have 2 vocabularies, .*metrics per byte or word"):
        selection.select_variants(plan, "smoke", "rate")


def test_a_tie_is_not_broken_by_the_test_split(done, monkeypatch):
    done.edit("tiny/plan.yaml", "r3], metric: distance", "r3], tie_break: distance, metric: distance")
    stored = selection._record

    def read_on_test(run, title):
        found = stored(run, title)
        held_out = {"test_distance": found.metrics["distance"].model_copy(update={"split": "test"})}
        return found.model_copy(update={"metrics": {**found.metrics, **held_out}})

    monkeypatch.setattr(selection, "_record", read_on_test)
    assert selection.select_variants(load_plan("tiny"), "smoke", "rate")["ranked"][0]["variant"] == "r3"
    done.edit("tiny/plan.yaml", "tie_break: distance", "tie_break: test_distance")
    with pytest.raises(InputError, match="select.tie_break 'test_distance' of tiny was measured on 'test'; allowed: "):
        selection.select_variants(load_plan("tiny"), "smoke", "rate")


def test_a_model_is_no_rival_of_itself(done, monkeypatch):
    done.edit("tiny/plan.yaml", "far], metric: distance", "far, again], metric: distance, baseline: near, thin: 1.0")
    done.edit("tiny/plan.yaml", "  far: {", "  again: {pick: {rate: 1}, params: {start_at: 2.0}}\n  far: {")
    stored = selection._record
    same = lambda run: replace(run, variant="near") if run.variant == "again" else run
    monkeypatch.setattr(selection, "_record", lambda run, title: stored(same(run), title))
    start = selection.select_variants(load_plan("tiny"), "smoke", "start")
    assert [row["variant"] for row in start["ranked"]] == ["near", "far"] and start["thin"] is False
    done.edit("tiny/plan.yaml", "{start_at: 2.0}}\n  far", "{start_at: 1.9}}\n  far")
    start = selection.select_variants(load_plan("tiny"), "smoke", "start")
    assert [row["variant"] for row in start["ranked"]] == ["near", "again", "far"] and start["thin"] is True


def test_a_killed_baseline_stops_the_selection(staged, capsys):
    staged.edit("tiny/plan.yaml", "variants:\n", "kill: {curve: distance, baseline: r3, delta: 0.01}\nvariants:\n")
    graph.prepare(None, "smoke")
    for name in ("tiny/r3/s0", "tiny/r3/s1", "tiny/r2/s0", "tiny/r2/s1", "tiny/r25/s0", "tiny/r25/s1"):
        execute.step("run", str(staged.record(name).parent))
    assert read_status(staged.record("tiny/r2/s0").parent, "run")["state"] == "killed"
    assert execute.step("select", "tiny/selections/rate", "smoke") == 1
    words = "select.rate.baseline 'r2' was stopped by the kill rule at seed 0, 1; nothing can be compared with it"
    assert words in capsys.readouterr().err
    assert staged.states()["tiny/near/s0"] == staged.states()[SECOND] == ("new", words)


def result(loss, speed=1.0, status="finished", seed=0, better="lower"):
    loss = SimpleNamespace(value=loss, split="validation", better=better)
    metrics = {"loss": loss, "speed": SimpleNamespace(value=speed, split=None, better="higher")}
    return SimpleNamespace(study="toy", variant="v", seed=seed, status=status, metrics=metrics)


def runs(*losses, **words):
    return [result(loss, seed=seed, **words) for seed, loss in enumerate(losses)]


@pytest.mark.parametrize("others, words, margin_, thin", [
    ({"b": runs(1.0, 1.0), "c": runs(1.1, 1.1)}, {}, 0.1 / 0.2**0.5 * 2, True),
    ({"b": runs(1.0, 1.0), "c": runs(1.1, 1.1)}, {"thin": 0.4}, 0.1 / 0.2**0.5 * 2, False),
    ({"b": runs(1.0, 1.0), "c": runs(1.04, 1.04, speed=2.0)}, {"digits": 1, "tie_break": "speed"}, -0.04 / 0.2**0.5 * 2, True),
    ({}, {}, None, False),  # the baseline alone
    ({"b": runs(1.0, 1.0, status="killed")}, {}, None, False),
])  # fmt: skip
def test_the_margin_is_in_standard_deviations_of_the_baseline(others, words, margin_, thin):
    sigma = 0.2**0.5 / 2
    rule = SelectionRule.make({"from": "matrix", "metric": "loss", "baseline": "base", "thin": 2.0, **words})
    records = {"base": runs(3.0, 3.0 + 2**0.5 * sigma), **others}
    found = margin(rule, records, rank(rule, records))
    assert found["sigma"] == pytest.approx(sigma) and found["thin"] is thin
    assert found["margin"] == (margin_ if margin_ is None else pytest.approx(margin_))


def test_the_margin_of_seeds_that_agree_and_of_what_is_better_when_higher():
    rule = SelectionRule.make({"from": "matrix", "metric": "loss", "baseline": "base", "thin": 2.0})
    for other, thin in ((1.0, False), (3.0, True)):
        records = {"base": runs(3.0, 3.0), "b": runs(other, other)}
        found = margin(rule, records, ranked := rank(rule, records))
        assert found == {"margin": None, "sigma": 0.0, "thin": thin}
        said = note({**found, "ranked": ranked, "rule": rule.model_dump(by_alias=True) | {"from": list(records)}})
        assert ("both are promoted" in said) is thin, said
    assert unmet(["x"], lambda name: {"margin": None, "thin": False, "ranked": [1, 2]}) == "the baseline's seeds agree"
    assert unmet(["x"], lambda name: {"margin": None, "thin": False, "ranked": [1]}) == "no second variant"
    higher = {"base": runs(3.0, 3.2, better="higher"), "b": runs(5.0, 5.0, better="higher")}
    assert margin(rule, higher, rank(rule, higher))["margin"] == pytest.approx(1.9 / 0.2 * 2**0.5)


def test_a_run_whose_selection_is_not_there_says_what_makes_it(staged, capsys):
    graph.prepare(None, "smoke")
    assert execute.step("run", str(staged.record(SECOND).parent)) == 1
    said = "selections/rate/selection.json: there is no selection yet; `modernllm study run tiny` makes it"
    assert said in capsys.readouterr().err


def test_a_limit_in_standard_deviations_waits_for_all_seeds_and_stops_what_is_behind_them(staged):
    rule = "kill: {curve: distance, baseline: r2, sigmas: 3, after: 2, patience: 2}\n"
    staged.edit("tiny/plan.yaml", "variants:\n", f"{rule}variants:\n  slow: {{params: {{learning_rate: 0.1}}}}\n")
    runs, edges, _ = graph.collect(None, "smoke")
    assert edges["tiny/slow/s1"] == ["tiny/r2/s0", "tiny/r2/s1"] and runs["tiny/near/s0"].kill is None
    said = staged.run()
    assert said["tiny/slow/s0"] == said["tiny/slow/s1"] == "killed" and said["tiny/r25/s0"] == "finished"
    both = [load_record(staged.record(f"tiny/r2/s{seed}")).curves["distance"].y for seed in (0, 1)]
    limits = [staged.record(f"tiny/slow/s{seed}").with_name("baseline.json") for seed in (0, 1)]
    limits = [load_record(path).curves["distance"].y for path in limits]
    assert limits[0] == limits[1] == pytest.approx([(a + b) / 2 + 3 * abs(a - b) / 2**0.5 for a, b in zip(*both)])
    assert staged.run() == {}
    staged.edit("tiny/plan.yaml", "r2: {params: {learning_rate: 0.2}", "r2: {params: {learning_rate: 0.2, start_at: 0.1}")
    for seed in (0, 1):
        graph.prepare(None, "smoke")
        execute.step("run", str(staged.record(f"tiny/r2/s{seed}").parent))
    assert staged.states()["tiny/slow/s1"] == ("changed input", "baseline of the kill rule, tiny/r2/s0")
    staged.edit("tiny/plan.yaml", "sigmas: 3", "sigmas: 4")
    assert staged.states()["tiny/slow/s1"][0] == "changed parameter"


@pytest.mark.parametrize("right, wrong, words", [
    ("final: {pick: {start: 1}", "final: {pick: {strat: 1}", ["variants.final.pick", "'strat'", "did you mean 'start'"]),
    ("when: {rate: thin}", "when: {raet: thin}", ["variants.second.when", "did you mean 'rate'"]),
    ("when: {rate: thin}", "when: {start: thin}", ["variants.second.when.start needs a select.start.thin"]),
    ("when: {rate: thin}", "when: {rate: thick}", ["variants.second.when.rate is 'thick'", "'thin'"]),
    ("baseline: r2, thin", "thin", ["select.rate.thin is 0.5", "needs a select.rate.baseline"]),
    ("thin: 0.5", "thin: 0", ["select.rate.thin is 0", "greater than 0"]),
    ("thin: 0.5", "thine: 0.5", ["select.rate.thine", "did you mean 'thin'"]),
    ("from: [near, far]", "from: [second]", ["select.start.top_k is 1; allowed: up to 0"]),
    ("from: [near, far]", "from: []", ["select.start.from is []"]),
    ("from: [near, far]", "from: [near, final]", ["waits for itself", "select.start → variants.final"]),
    ("r2: {params", "r2: {pick: {start: 1}, params", ["waits for itself", "select.rate"]),
    ("final: {pick: {start: 1}", "final: {pick: {rate: 1, start: 1}", ["'rate' and 'start' both set learning_rate"]),
    ("final: {pick: {start: 1}", "final: {pick: 1", ["variants.final.pick is 1", "rate, start"]),
    ("final: {pick: {start: 1}", "final: {pick: {start: 2}", ["variants.final.pick.start is 2", "top_k = 1"]),
    ("final: {pick: {start: 1}", "final: {pick: {start: kept}", ["variants.final.pick.start is 'kept'", "select.start.baseline"]),
    ("final: {pick: {start: 1}", "final: {pick: {start: 0}", ["variants.final.pick.start is 0"]),
    ("r2: {params", "r2: {when: {rate: thin}, params", ["select.rate.baseline 'r2'", "'when'"]),
    ("  start: {from", "  st/art: {from", ["selection name 'st/art'", "letters"]),
    ("  start: {from", "  start: {form", ["select.start.form"]),
    ("variants:\n", "kill: {curve: distance, baseline: r2}\nvariants:\n", ["kill has no limit", "delta", "sigmas"]),
    ("variants:\n", "kill: {curve: distance, baseline: r2, delta: 1, sigmas: 2}\nvariants:\n", ["kill has delta and sigmas"]),
    ("variants:\n", "kill: {curve: distance, baseline: r2, sigmas: 0}\nvariants:\n", ["kill.sigmas is 0"]),
    ("variants:\n", "kill: {curve: distance, baseline: second, sigmas: 2}\nvariants:\n", ["kill.baseline 'second'"]),
])  # fmt: skip
def test_a_wrong_plan_is_refused_in_one_line(staged, right, wrong, words):
    staged.edit("tiny/plan.yaml", right, wrong)
    with pytest.raises(InputError) as error:
        load_plan("tiny")
    assert "\n" not in str(error.value) and "plan.yaml" in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("right, wrong, words", [
    ("{seeds: [0, 1]}}}", "{seeds: [0]}}}", "select.rate.baseline 'r2' has seeds [0] in profile 'cpu'; allowed: 2 or more"),
    ("{seeds: [0, 1]}}}", "{seeds: []}}}", "select.rate.baseline 'r2' has seeds [] in profile 'cpu'"),
    ("variants:\n", "kill: {curve: distance, baseline: r25, sigmas: 2}\nvariants:\n", "kill.baseline 'r25' has seeds [0]"),
    ("from: [near, far]", "from: [none]",
     "run tiny/final/s0 waits for select.start, none of whose variants runs in profile 'cpu'"),
    ("final: {pick: {start: 1}", "final: {inputs: {start: {variant: second, artifact: point}}, pick: {start: 1}",
     "run tiny/final/s0 starts from tiny/second/s0, which needs a thin selection (rate); allowed"),
])  # fmt: skip
def test_what_a_profile_lacks_is_said_before_anything_runs(staged, right, wrong, words):
    staged.edit("tiny/plan.yaml", "variants:\n", "variants:\n  none: {profiles: {smoke: {seeds: []}, cpu: {seeds: []}}}\n")
    staged.edit("tiny/plan.yaml", right, wrong)
    with pytest.raises(InputError) as error:
        graph.status(None, "cpu")
    assert words in str(error.value)
