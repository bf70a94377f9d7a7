"""Loss and gradients on one batch equal those of TRL 1.16: its stored numbers, and TRL itself where it is installed."""

import json
from importlib.util import find_spec

import pytest
from trl_parity import BETA, CASES, CHOSEN, PROMPTS, REJECTED, STORED, gradients, model, of_trl

from modernllm.alignment.dpo import Preference, with_reference
from modernllm.alignment.preference_encoding import PreferencePairs

PAIRS = PreferencePairs("fixed", "train", prompts=PROMPTS, chosen=CHOSEN, rejected=REJECTED)


def of_ours(case: str) -> dict:
    loss, normalised = CASES[case]
    pairs, trained = with_reference(PAIRS, model(0.1)), model(0.0)
    out = Preference(BETA, loss, normalised).loss(trained, pairs.batch([0, 1]))
    mean = out.total / out.weight
    mean.backward()
    return {"loss": mean.item(), "gradients": gradients(trained)}


def check(ours: dict, theirs: dict):
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5, rel=1e-6)
    assert ours["gradients"].keys() == theirs["gradients"].keys()
    for name, values in theirs["gradients"].items():
        assert ours["gradients"][name] == pytest.approx(values, abs=1e-5, rel=1e-5), name
    assert max(values[0] for values in theirs["gradients"].values()) > 0.1  # so that 1e-5 says something


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_the_stored_ones_of_trl(case):
    check(of_ours(case), json.loads(STORED.read_text())[case])


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_those_of_trl(case):
    check(of_ours(case), of_trl(case))
