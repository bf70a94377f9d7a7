"""The studies of experts, of a full card and of fewer key/value heads: equal models are equal, wrong ones are refused."""

import pytest
import torch
from study_code import execute

from modernllm.core.config import InputError
from modernllm.workflow.expand import expand
from modernllm.core.parameters import GIVEN, notebook_parameters
from modernllm.workflow.plan import load_plan
from modernllm.core.records import Record, publish
from modernllm.models.budget import total_parameters
from modernllm.models.config import ModernLLMConfig

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
