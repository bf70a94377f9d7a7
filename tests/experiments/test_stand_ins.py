"Stand-ins for guides: asked for by one variable, and never where a real model is wanted."

import pytest

from modernllm.experiments import stand_ins
from modernllm.experiments.stand_ins import guide_stand_in, guide_weights
from modernllm.models.pretrained import NoWeights


@pytest.fixture
def nowhere(monkeypatch):
    "A machine without weights."
    def find(name):
        raise NoWeights(f"model '{name}' cannot be had")

    monkeypatch.delenv("MODERNLLM_STAND_INS", raising=False)
    monkeypatch.setattr(stand_ins, "find_pretrained", find)


def test_without_the_variable_nothing_stands_in(nowhere):
    with pytest.raises(NoWeights, match="smollm2-135m"):
        guide_weights("smollm2-135m")
    assert guide_stand_in("sst2") is None


@pytest.mark.parametrize("value, on", [("1", True), ("yes", True), ("", False), ("0", False), ("no", False)])
def test_values_of_the_variable(nowhere, monkeypatch, value, on):
    monkeypatch.setenv("MODERNLLM_STAND_INS", value)
    assert guide_stand_in("gsm8k") == ("generated_pairs" if on else None)


def test_with_the_variable_the_weights_are_a_stand_in_under_its_own_name(nowhere, shared_cache, monkeypatch):
    monkeypatch.setenv("MODERNLLM_STAND_INS", "1")
    weights = guide_weights("smollm2-135m")
    assert (weights.name, weights.source) == ("stand-in", "stand-in") and "stand-in for smollm2-135m" in weights.note
    assert (weights.folder / "model.safetensors").is_file()
