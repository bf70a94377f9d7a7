"""Gains of a pipeline's steps: McNemar between neighbours, Holm over all models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.alignment.alignment_pipeline import step_gains
from modernllm.core.config import InputError
from modernllm.evaluation.intervals import mcnemar


def test_each_step_is_compared_with_the_one_before_and_holm_counts_all_models():
    base, sft, dpo = [0] * 20, [1] * 12 + [0] * 8, [1] * 10 + [0] * 10
    models = {"own": {"base": base, "SFT": sft, "DPO": dpo}, "other": {"SFT": base, "DPO": dpo}}
    table = step_gains(models).set_index(["model", "step"])
    assert table.p.isna().tolist() == [True, False, False, True, False]
    ps = [mcnemar(sft, base)[2], mcnemar(dpo, sft)[2], mcnemar(dpo, base)[2]]
    assert table.loc[("own", "SFT"), "p"] == pytest.approx(3 * min(ps))  # the smallest of three
    assert (table.loc[("own", "DPO"), "won"], table.loc[("own", "DPO"), "lost"]) == (0, 2)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_gain_is_problems_won_less_problems_lost(pairs):
    before, after = zip(*pairs)
    row = step_gains({"m": {"a": before, "b": after}}).iloc[1]
    assert row.gain == pytest.approx((row.won - row.lost) / len(pairs)) and row.low <= row.solved <= row.high and 0 <= row.p <= 1


def test_no_problems_and_other_problems_are_refused():
    with pytest.raises(InputError, match="step SFT: no problems"):
        step_gains({"own": {"SFT": []}})
    with pytest.raises(InputError, match="the same items"):
        step_gains({"own": {"SFT": [1], "DPO": [1, 0]}})
