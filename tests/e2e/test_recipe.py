"""The study of the recipe: one thing changes at a time, the choice is carried on rightly, and the summary says what happened."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from study_code import execute

from modernllm.core.config import InputError
from modernllm.workflow.expand import expand, own_params, selected_among
from modernllm.core.parameters import GIVEN, notebook_parameters
from modernllm.workflow.plan import load_plan
from modernllm.core.records import Record, publish
from modernllm.workflow.selection import select_variants
from modernllm.workflow.staleness import resolve
from modernllm.evaluation.perplexity import prefix_loss
from modernllm.reporting.results import example_records

TINY = {"limit_documents": 4, "every_nth": 2, "vocab_size": 300, "context": 16, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "max_tokens": 2560, "warmup_tokens": 256, "eval_every": 640,
        "eval_tokens": 64}  # fmt: skip


@pytest.fixture
def recipe(project, root, monkeypatch):
    "The plan, with records and results in a project of their own."
    monkeypatch.setenv("MODERNLLM_STUDIES", str(root / "nbs/studies"))
    return load_plan("recipe")


def invent(plan, losses):
    "Records of the cpu profile: by variant, a loss and how far seeds are apart."
    base, rng = example_records("cpu")[0].to_dict(), np.random.default_rng(0)
    metric = {"unit": "nats/token", "n_items": 1000, "better": "lower"}
    defaults = {k: v for k, v in notebook_parameters(plan.folder / "run.ipynb").items() if k not in GIVEN}
    for run in expand(plan, "cpu"):
        if run.variant not in losses:
            continue
        loss = losses[run.variant] + 0.005 * rng.standard_normal()
        values = {"parameters": (None, 1e6), "validation_loss": ("validation", loss),
                  "validation_bits_per_byte": ("validation", loss / 3)}  # fmt: skip
        if run.variant.startswith("medium_"):
            readings = ("test", "test_sliding")
            values |= {f"{r}_{q}": ("test", 100.0) for r in readings for q in ("word_ppl_closed", "bits_per_byte")}
        curve = base["curves"]["validation_loss"]
        record = Record.make(base | {
            "study": "recipe", "variant": run.variant, "seed": run.seed, "params": defaults | run.params,
            "metrics": {name: metric | {"split": split, "value": float(value)} for name, (split, value) in values.items()},
            "curves": {"validation_loss": curve | {"y": [y + loss for y in curve["y"]]}},
        })
        publish(record)
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "metrics.json").write_text(json.dumps(record.to_dict()))


def verdict(project):
    return (project / "data/results/cpu/recipe-verdict.md").read_text()


@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu"])
def test_a_change_changes_its_own_and_the_ranking_is_fair(recipe, profile):
    runs = {run.variant: run for run in expand(recipe, profile)}
    plain, *changes = selected_among(recipe, profile)
    assert plain == recipe.select.baseline
    for name in changes:
        own = own_params(recipe.variants[name], profile)
        assert runs[name].params == runs[plain].params | own and own.items() - runs[plain].params.items()
        assert len({"max_tokens", "every_nth", "limit_documents", "vocab_size", "read_test", "context"} & set(own)) == 0
    assert not any(runs[name].params["read_test"] for name in [plain, *changes])
    assert runs["medium_full"].params["read_test"] and runs["medium_full"].params["every_nth"] == 1
    assert not any(run.kill for run in runs.values())


def test_the_ranking_costs_what_was_allowed(recipe):
    runs = expand(recipe, "cpu")
    assert sum(run.hours * run.threads for run in runs if not run.variant.startswith("medium_")) <= 4.0 + 1e-9
    seeds = {name: sum(run.variant == name for run in runs) for name in selected_among(recipe, "cpu")}
    assert seeds.pop("adamw") == 5 and set(seeds.values()) == {3} and len(seeds) == 14


def kept(recipe, losses, variant="together"):
    invent(recipe, dict.fromkeys(selected_among(recipe, "cpu"), 5.0) | losses)
    spec = next(run for run in expand(recipe, "cpu") if run.variant == variant)
    pick = {"params": dict(spec.params), "pick": dict(spec.pick), "inputs": {}, "kill": None}
    return resolve(pick, partial(select_variants, recipe, "cpu"))["params"]


def test_of_changes_that_exclude_each_other_the_better_is_carried_on(recipe):
    params = kept(recipe, {"dropout_10": 4.7, "dropout_20": 4.5, "ema": 4.6, "last_5": 4.8, "muon": 4.4, "rate_2": 4.6})
    assert (params["dropout"], params["average"]) == (0.2, "ema")
    assert (params["optimizer"], params["rate_factor"]) == ("muon", 2.0)


def test_what_is_kept_goes_into_the_larger_run_and_leaves_its_sizes(recipe):
    params = kept(recipe, {"decay_30": 4.5, "half_batch": 4.6, "smoothing": 6.0}, "medium_full")
    assert (params["decay_factor"], params["batch_size"], params["label_smoothing"]) == (30.0, 8, 0.0)
    assert (params["hidden_size"], params["weight_decay"], params["learning_rate"], params["every_nth"]) == (256, 0.016, 2e-3, 1)
    dropped = {"decay_factor": 1.0, "batch_size": 16, "dropout": 0.2, "max_tokens": 30_000_000}
    assert kept(recipe, {"dropout_10": 4.5}, "medium_dropout") == params | dropped


def test_the_summary_says_what_is_kept_and_whether_gains_add_up(recipe, project, root):
    kept(recipe, {"dropout_20": 4.5, "dropout_10": 4.7, "muon": 4.8, "rate_2": 4.9, "wsd": 5.3, "medium_full": 4.0})
    invent(recipe, {"together": 4.4, "medium_dropout": 3.8})
    names = execute(root, "recipe", "summary.ipynb", profile="cpu")
    text = verdict(project)
    assert "Of 14 single changes 4 lower the validation loss" in text
    assert [row["variant"] for row in names["better"]] == ["dropout_20", "dropout_10", "muon", "rate_2"]
    assert [row["variant"] for row in names["parts"]] == ["dropout_20", "muon"]  # one dropout, and one factor of the rate
    assert names["total"] == pytest.approx(-0.7, abs=0.03)
    assert "goal" not in text and "`medium_dropout` ends lower on validation, by 0.2" in text
    assert set(names["table"].verdict) == {"kept", "dropped", "all that is kept"}
    assert (project / "figures/cpu/recipe-forest.svg").exists() and (project / "figures/cpu/recipe-curves.svg").exists()


def test_the_summary_of_a_ranking_in_which_nothing_helps(recipe, project, root):
    kept(recipe, {"together": 5.0})
    names = execute(root, "recipe", "summary.ipynb", profile="cpu")
    assert "Of 14 single changes 0 lower" in verdict(project) and "the baseline again" in verdict(project)
    assert set(names["table"].verdict) == {"dropped", "all that is kept"}


def test_no_records_is_one_clear_line(recipe, root):
    with pytest.raises(InputError, match="'recipe' has no records of profile 'cpu'; modernllm study run"):
        execute(root, "recipe", "summary.ipynb", profile="cpu")


@pytest.mark.parametrize("average", ["ema", "last"])
def test_the_average_that_was_evaluated_stays_in_the_model(recipe, shared_cache, root, average):
    names = execute(root, "recipe", "run.ipynb", dataset="embedded_docs", average=average, **TINY)
    model, last_step = names["model"], names["averages"][0].kept
    again = prefix_loss(names["corpus"].validation, context=16, max_tokens=64)(model)["loss"]
    assert again == pytest.approx(names["result"].history["eval"][-1]["loss"], abs=1e-6)
    assert all(not torch.equal(last_step[f"model.{name}"], p) for name, p in model.named_parameters())


def test_an_unknown_average_is_refused_before_any_work(recipe, root):
    with pytest.raises(InputError, match="average.*'emma'.*'ema'"):
        execute(root, "recipe", "run.ipynb", average="emma")
