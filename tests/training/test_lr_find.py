import math

import pytest
from workers import ShuffledBatches, TinyModel, TinyObjective

from modernllm.core.config import InputError, RunFailed
from modernllm.training.lr_find import lr_find
from modernllm.training.objectives import LossOutput


class Explodes(TinyObjective):
    "No number any more after so many steps."

    def __init__(self, after):
        super().__init__()
        self.left = after

    def loss(self, model, batch):
        self.left -= 1
        out = super().loss(model, batch)
        return out if self.left >= 0 else LossOutput(out.total * math.nan, out.weight)


def test_rates_rise_by_one_factor_and_the_model_is_a_fresh_one():
    made = []
    found = lr_find(lambda: made.append(TinyModel()) or made[-1], TinyObjective(), ShuffledBatches(), steps=40, lowest=1e-4)
    rates = found.table["lr"]
    assert len(made) == 1 and rates[0] == 1e-4 and rates[1] / rates[0] == pytest.approx(1e4 ** (1 / 39))
    assert 1e-4 < found.suggestion < 1.0 and found.plot().get_xscale() == "log"


def test_an_end_in_nan_is_an_end():
    found = lr_find(TinyModel, Explodes(35), ShuffledBatches(), steps=40, lowest=1e-3)
    assert len(found.table["loss"]) == 35


def test_what_cannot_be_found_is_said():
    with pytest.raises(RunFailed, match="did not fall"):
        lr_find(TinyModel, TinyObjective(), ShuffledBatches(), steps=20, lowest=1e-9, highest=1e-8)
    for ends in ({"lowest": 1.0, "highest": 0.1}, {"highest": math.inf}, {"lowest": math.nan}):
        with pytest.raises(InputError, match="lowest"):
            lr_find(TinyModel, TinyObjective(), ShuffledBatches(), **ends)
