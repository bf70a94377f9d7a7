"Named recipes of `modernllm train`: what they hold, what the line changes, and the check of the machine."

import pytest

from modernllm.cli.app import main
from modernllm.cli.named_recipe import GIB, NAMED, check_card, needed_memory, with_named
from modernllm.cli.recipe import make_recipe
from modernllm.core.config import InputError

SMALL = ["vocab_size=512", "data=embedded_docs", "limit_documents=20", "hidden_size=16", "num_hidden_layers=2",
         "num_attention_heads=2", "max_position_embeddings=32", "batch_size=2", "max_steps=3", "precision=fp32", "accumulation=1"]


def test_the_largest_model_fits_a_card_of_12_gb_and_no_smaller_one():
    recipe = make_recipe(with_named("max", {}))
    assert recipe.data.checkpointing and recipe.training.accumulation == 32
    assert 11.22 * GIB < needed_memory(recipe) < 11.5 * GIB  # 11.22 were measured
    check_card(recipe, 12 * GIB)
    with pytest.raises(InputError, match="needs a graphics card with 11.3 GiB free, and this machine has 8.0"):
        check_card(recipe, 8 * GIB)
    with pytest.raises(InputError, match="this machine has none"):
        check_card(recipe, None)


def test_the_sizes_are_those_that_the_study_found(root):
    from modernllm.core.records import load_record

    found = load_record(root / "data/records/cpu/max_size/dense/s0.json").metrics
    values = NAMED["max"]
    names = {"layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads", "batch": "batch_size",
             "feed_forward": "intermediate_size", **{name: name for name in ("accumulation", "learning_rate", "checkpointing")}}
    assert {name: found[name].value for name in names} == {name: values[setting] for name, setting in names.items()}


def test_the_line_wins_and_there_is_one_length():
    assert with_named("max", {"max_steps": 5, "batch_size": 4}) == {
        **{name: value for name, value in NAMED["max"].items() if name != "max_epochs"}, "max_steps": 5, "batch_size": 4}


def test_a_machine_without_a_card_is_told_before_anything_is_read(monkeypatch, capsys, project):
    monkeypatch.setattr("modernllm.cli.named_recipe.free_card_memory", lambda: None)
    assert main(["train", "--recipe", "max"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "this machine has none; allowed: one that has" in error
    assert not list(project.glob("runs/*"))


def test_an_unknown_recipe_is_refused(capsys):
    assert main(["train", "--recipe", "min"]) == 2
    assert "'max'" in capsys.readouterr().err


def test_a_recipe_that_fits_is_trained(monkeypatch, tmp_path):
    monkeypatch.setattr("modernllm.cli.named_recipe.free_card_memory", lambda: 12 * GIB)
    assert main(["train", "--recipe", "max", *SMALL, "intermediate_size=32", "--out", str(tmp_path / "out")]) == 0
    assert "checkpointing: true" in (tmp_path / "out/model/recipe.yaml").read_text()


def test_checkpointing_changes_no_weight(tmp_path):
    for name in ("false", "true"):
        assert main(["train", *SMALL, f"checkpointing={name}", "--out", str(tmp_path / name)]) == 0
    plain, again = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("false", "true"))
    assert plain == again
