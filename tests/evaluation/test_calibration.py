"AUROC and calibration against their definitions."

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.evaluation.calibration import auroc, calibration_error, draw_reliability, reliability

scored = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=2, max_size=30).filter(lambda rows: len(dict(rows)) == 2)


@given(scored)
def test_auroc_is_the_share_of_pairs_in_order(rows):
    right, wrong = ([score for label, score in rows if label is side] for side in (True, False))
    wins = [(a > b) + (a == b) / 2 for a in right for b in wrong]
    assert auroc(*zip(*rows)) == pytest.approx(sum(wins) / len(wins))


@given(scored, st.integers(1, 12))
def test_every_item_is_in_one_bin_and_the_error_is_a_share(rows, bins):
    table = reliability(*zip(*rows), bins=bins)
    assert table["n"].sum() == len(rows) and 0 <= calibration_error(table) <= 1
    assert ((table["score"] >= table["from"] - 1e-9) & (table["score"] <= table["to"] + 1e-9)).all()
    assert (table["right"] * table["n"]).sum() == pytest.approx(sum(label for label, _ in rows))


def test_error_of_a_known_case():
    labels, scores = [True, False, True, True], [0.95, 0.95, 0.25, 0.25]  # gaps: 0.45 of two items, 0.75 of two
    assert calibration_error(reliability(labels, scores)) == pytest.approx(0.6)
    assert draw_reliability(reliability(labels, scores)).axes[0].get_title() == "ECE 0.600, 4 items"


def test_no_bins_are_refused():
    with pytest.raises(InputError, match="bins: 0 is given"):
        reliability([True, False], [0.1, 0.2], bins=0)
