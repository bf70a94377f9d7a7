"""The studies of experts, a full card, fewer key/value heads and a budget: equal models are equal, wrong ones are refused, and
a summary stands runs that were stopped early."""

import math
from functools import cache

import pytest
import torch
from study_code import execute

from modernllm.allocation.space import Allocation
from modernllm.core.config import InputError
from modernllm.workflow.expand import expand
from modernllm.core.parameters import GIVEN, notebook_parameters
from modernllm.workflow.plan import load_plan
from modernllm.core.records import Record, publish
from modernllm.models.budget import total_parameters
from modernllm.models.config import ModernLLMConfig
from modernllm.reporting.results import example_records

TINY = {"dataset": "embedded_docs", "limit_documents": 4, "vocab_size": 300, "context": 16, "hidden_size": 8,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_tokens": 2560, "warmup_steps": 2, "eval_tokens": 64}  # fmt: skip
PROFILES = ["smoke", "cpu", "gpu"]


@pytest.fixture
def own(shared_cache, root, monkeypatch):
    "Studies as they are, with records and results in a project of their own."
    monkeypatch.setenv("MODERNLLM_STUDIES", str(root / "nbs/studies"))


def variants(study, profile):
    "All parameters of each variant."
    plan = load_plan(study)
    plain = {k: v for k, v in notebook_parameters(plan.folder / "run.ipynb").items() if k not in GIVEN}
    return {run.variant: plain | run.params for run in expand(plan, profile)}


@pytest.mark.parametrize("profile", PROFILES)
def test_experts_are_compared_with_equal_work_and_with_equal_size(own, profile):
    found = variants("moe", profile)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
             "num_local_experts", "num_experts_per_tok")  # fmt: skip
    count = {v: total_parameters(ModernLLMConfig.checked(**{name: p[name] for name in names})) for v, p in found.items()}
    assert count["moe"].active == pytest.approx(count["dense_active"].active, rel=0.015)
    assert count["moe"].total == pytest.approx(count["dense_total"].total, rel=0.015)
    apart = {"intermediate_size", "num_local_experts"}  # all else is the same
    assert len({tuple((k, v) for k, v in p.items() if k not in apart) for p in found.values()}) == 1


@pytest.fixture
def experts(own, root):
    "The names of a tiny run."
    quick = {"seconds": 0.01, "cost_rounds": 1, "eval_every": 2}
    return execute(root, "moe", "run.ipynb", num_local_experts=4, intermediate_size=8, **quick, **TINY)


def test_what_a_run_says_of_experts(experts):
    record = experts["record"]
    values = {name: metric.value for name, metric in record.metrics.items()}
    for layer in range(2):
        assert sum(record.curves[f"expert_load_{layer}"].y) == pytest.approx(1, abs=1e-4)
    assert 0 <= values["least_used_expert"] <= 1 and 0 < values["load_evenness"] <= 1 + 1e-6
    assert record.curves["validation_loss_in_time"].x == sorted(record.curves["validation_loss_in_time"].x)
    reached = experts["evals"].loss
    assert reached.min() <= values["validation_in_time_loss"] <= reached.max()
    for experts_there in (2, 4, 8):  # the same work, more and more parameters
        assert values[f"cost_{experts_there}_of_which_2_operations"] == pytest.approx(1, abs=0.1)
        assert values[f"cost_{experts_there}_of_which_2_time"] > 0
    sizes = [values[f"cost_{n}_of_which_2_parameters"] for n in (2, 4, 8)]
    assert sizes == sorted(sizes) and sizes[-1] > 1.1
    assert values["cost_8_of_which_1_operations"] < 1


def test_the_summary_of_experts_says_which_is_better(own, project, root, experts):
    routers = ("load_evenness", "least_used_expert", "starved_experts", "cost_")
    for run in expand(load_plan("moe"), "cpu"):
        said = experts["record"].to_dict() | {"study": "moe", "variant": run.variant, "seed": run.seed, "profile": "cpu"}
        better = {"moe": 0.0, "dense_active": 0.5, "dense_total": -0.5}[run.variant] + 0.01 * run.seed**2
        said["metrics"] = {
            name: metric | {"value": metric["value"] + better * name.endswith("_loss")}
            for name, metric in said["metrics"].items() if run.variant == "moe" or not name.startswith(routers)
        }  # fmt: skip
        said["params"] = said["params"] | run.params
        publish(Record.make(said))
    names = execute(root, "moe", "summary.ipynb", profile="cpu")
    differences = (project / "data/results/cpu/moe-differences.md").read_text().splitlines()[2:6]
    assert [("−0.5" in line, " 0.5" in line) for line in differences] == [(True, False), (False, True)] * 2
    stability = names["table"]
    assert len(stability) == 9 and set(stability[stability.variant != "moe"]["starved experts"]) == {"–"}


BUDGET = "total_params", "embedding_ratio", "glu_expansion", "vocab_size", "tied_lm_head"
realised = cache(lambda *values: Allocation(**dict(zip(BUDGET, values))).realised())


def spend(profile, stopped, best=0.35, repeat="1" * 64):
    "Records of all runs of a budget, lowest at one share. Of the variants in `stopped` one seed was stopped early."
    params = variants("allocation", profile)
    for run in expand(load_plan("allocation"), profile):
        given = params[run.variant]
        shape = realised(*(given[name] for name in BUDGET))
        told = {name: getattr(shape, name) for name in ("embedding_ratio", "glu_expansion", "layers")} | {"width": 100}
        if run.seed != 1 or run.variant not in stopped:
            value = 1.6 + 0.1 * math.log(shape.embedding_ratio / best) ** 2 + 0.02 * math.log(shape.glu_expansion / 2.8) ** 2
            value += 0.001 * run.seed + 0.0002 * (len(run.variant) * (run.seed + 1) % 3)
            told |= {f"validation_{quantity}": value for quantity in ("bits_per_byte", "word_ppl_closed", "token_ppl")}
            told |= {f"smallbench_mean_accuracy{side}": 0.25 for side in ("", "_low", "_high", "_chance")}
            told |= dict.fromkeys(["test_word_ppl_closed", "test_bits_per_byte", "latency_128_peak_mb", "leaked_prompts"], 9.0)
            told["decode_ms"] = 2.0
        labels = [Allocation(**{name: of[name] for name in BUDGET}).label for of in params.values()]
        turns = {"x": [1, 2, 3], "y": [1.0, 3.25, 4.0], "x_unit": "round", "y_unit": "ms"}
        metric = {"unit": "1", "better": "lower"}
        publish(Record.make(example_records(profile)[0].to_dict() | {
            "study": "allocation", "variant": run.variant, "seed": run.seed, "params": given,
            "curves": {f"decode_ms_{label}": turns for label in labels if run.variant == "repeat"},
            "status": "finished" if "decode_ms" in told else "killed",
            "metrics": {name: {**metric, "value": value, "split": "validation" if name.startswith("validation") else None}
                        for name, value in told.items()},
            "artifacts": {"model": {"path": "model", "sha256": repeat if run.variant == "repeat" else "1" * 64, "bytes": 1}},
        }))  # fmt: skip


def test_the_summary_of_a_budget_shows_runs_that_were_stopped_early_and_compares_sizes(own, project, root):
    spend("gpu", [], best=0.3)
    spend("cpu", ["share-25"])
    names = execute(root, "allocation", "summary.ipynb", profile="cpu")
    tested = names["tests"]
    assert "share-25" not in tested and "share-45" in tested and all(found.paired for found, _ in tested.values())
    ranking = (project / "data/results/cpu/allocation-ranking.md").read_text()
    assert "stopped early (1 of 3)" in ranking and ranking.count("| 3.25 |") == len(names["ranked"])
    assert names["surface"].optimum.share == pytest.approx(0.35, rel=0.1)
    assert "profile gpu) it is lowest at a share of 0.3" in names["text"]
    assert "intervals of the share do not overlap" in names["text"]
    summary, results = ((project / "report/allocation" / name).read_text() for name in ("results_summary.csv", "RESULTS.md"))
    assert "bits_per_byte" in summary and "token_ppl" not in summary and "hours by the clock" in results


def test_the_summary_of_a_budget_without_a_surface_says_so_and_a_repeat_that_differs_is_refused(own, root, monkeypatch):
    monkeypatch.setattr("modernllm.reporting.figures.save", lambda *_: None)  # which another test writes
    stopped = [f"share-{share}{more}" for share in (25, 45) for more in ("", "-glu-20", "-glu-40")]
    spend("cpu", stopped)
    text = execute(root, "allocation", "summary.ipynb", profile="cpu")["text"]
    why = "4 pairs of share and expansion do not fix a quadratic surface"
    assert f"No surface is fitted: {why}" in text and f"was not compared: {why}" in text and "same, bit for bit" in text
    spend("cpu", stopped, repeat="2" * 64)
    hashes = f"hash {'2' * 64}, those of finalist .* {'1' * 64}; allowed"
    with pytest.raises(InputError, match=f"repeat: its weights have the {hashes}"):
        execute(root, "allocation", "summary.ipynb", profile="cpu")


@pytest.mark.parametrize("card", [6, 12])
def test_nothing_larger_fits_the_card(own, root, card):
    names = execute(root, "max_size", "run.ipynb", card_gb=float(card), max_layers=30)
    need, table, best = names["record"].metrics["card_need_GB"].value, names["table"], names["best"]
    assert need <= card and best.layers < 30  # the search did not end at its border
    assert not (table[table.need <= card * 2**30].total > best.total).any()
    weights = sum(names["record"].metrics[f"{name}_gb"].value for name in ("weights", "gradients", "optimizer"))
    assert need > weights == pytest.approx(16 * best.total / 2**30)


def test_a_card_that_holds_nothing_and_a_card_that_is_not_there(own, root):
    with pytest.raises(InputError, match="card_gb: 0.8 hold no model") as caught:
        execute(root, "max_size", "run.ipynb", card_gb=0.8, max_layers=4)
    assert "\n" not in str(caught.value)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="steps: 5 need a graphics card"):
            execute(root, "max_size", "run.ipynb", steps=5, max_layers=4)


@pytest.mark.parametrize("profile", PROFILES)
def test_fewer_heads_are_paid_out_in_width(own, profile):
    found = variants("gqa", profile)
    counts = []
    for p in found.values():
        heads, kv, hidden = p["num_attention_heads"], p["num_key_value_heads"], p["hidden_size"]
        width = 8 * round((p["intermediate_size"] + 2 * (heads - kv) * (hidden // heads) / 3) / 8)  # as run.ipynb has it
        counts.append(total_parameters(ModernLLMConfig.checked(
            vocab_size=p["vocab_size"], hidden_size=hidden, num_hidden_layers=p["num_hidden_layers"], num_attention_heads=heads,
            num_key_value_heads=kv, intermediate_size=width)).total)  # fmt: skip
    assert max(counts) / min(counts) < 1.01
    kept = [p["num_key_value_heads"] for p in found.values()]
    assert kept == sorted(set(kept), reverse=True) and kept[-1] == 1


def test_models_that_cannot_be_made_equal_are_refused(own, root):
    with pytest.raises(InputError, match="intermediate_size: with .* allowed 1%"):
        execute(root, "gqa", "run.ipynb", intermediate_size=12, num_key_value_heads=1, **TINY)
