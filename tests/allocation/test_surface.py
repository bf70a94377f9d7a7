"""A known quadratic gives its optimum back; intervals cover it as often as they say; what has no surface is refused."""

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from modernllm.allocation import surface
from modernllm.allocation.surface import Point, draw_atlas, fit_surface
from modernllm.core.config import InputError
from modernllm.core.plotting import style, write_figure

GRID = list(product((0.25, 0.35, 0.45), (2.0, 2.66, 3.0, 4.0)))


def bowl(share, expansion, at=(0.35, 2.8), curvature=(0.8, 0.3, 0.2)):
    u, v = np.log(share / at[0]), np.log(expansion / at[1])
    return 3 + curvature[0] * u * u + curvature[1] * u * v + curvature[2] * v * v


def noisy(scale, seeds=3, noise=0):
    rng = np.random.default_rng(noise)
    return [Point(*pair, bowl(*pair) + rng.normal(scale=scale), seed) for seed in range(seeds) for pair in GRID]


@settings(max_examples=50, deadline=None)
@for_all(st.floats(0.26, 0.44), st.floats(2.1, 3.9), st.floats(0.2, 5), st.floats(0.2, 5), st.floats(-0.9, 0.9))
def test_a_known_quadratic_gives_its_optimum_back(share, expansion, a, c, r):
    b = 2 * r * np.sqrt(a * c)  # positive definite
    found = fit_surface([Point(*pair, bowl(*pair, (share, expansion), (a, b, c))) for pair in GRID])
    assert found.optimum[:3] == pytest.approx((share, expansion, 3.0), rel=1e-6) and found.optimum.boundary == ()
    assert found.rmse < 1e-9


@pytest.mark.parametrize("at, boundary", [
    ((0.1, 2.8), ("lowest share",)), ((0.9, 2.8), ("highest share",)), ((0.35, 9.0), ("highest expansion",)),
    ((0.1, 0.5), ("lowest share", "lowest expansion")),
])
def test_an_optimum_beyond_the_range_is_on_its_boundary(at, boundary):
    found = fit_surface([Point(*pair, bowl(*pair, at, (0.8, 0.0, 0.2))) for pair in GRID])
    assert found.optimum.boundary == boundary
    assert 0.25 - 1e-9 <= found.optimum.share <= 0.45 + 1e-9 and 2 - 1e-9 <= found.optimum.expansion <= 4 + 1e-9


def test_a_saddle_has_its_lowest_point_on_the_boundary():
    saddle = lambda share, expansion: bowl(share, expansion, curvature=(-0.8, 0.0, 0.2))
    found = fit_surface([Point(*pair, saddle(*pair)) for pair in GRID])
    assert found.optimum[:3] == pytest.approx((0.25, 2.8, saddle(0.25, 2.8))) and found.optimum.boundary == ("lowest share",)


def test_intervals_grow_with_the_noise():
    quiet, loud = fit_surface(noisy(0.001)), fit_surface(noisy(0.004))
    widths = [high - low for found in (quiet, loud) for low, high in [found.optimum_interval()["share"]]]
    assert 0 < widths[0] < widths[1]
    low, high = loud.optimum_interval()["share"]
    assert low <= loud.optimum.share <= high and low <= 0.35 <= high
    inner, outer = (np.diff(loud.interval(0.3, 3.0, confidence)) for confidence in (0.5, 0.95))
    assert 0 <= inner < outer
    near = (loud.optimum.share * 1.01, loud.optimum.expansion)  # worse by the fit, but not shown to be
    assert loud(*near) > loud.optimum.value and loud.indistinct(*near) < 0 < loud.indistinct(0.25, 2.0)
    both = loud.indistinct(*np.transpose([near, (0.25, 2.0)]))
    assert both == pytest.approx([loud.indistinct(*near), loud.indistinct(0.25, 2.0)])


def test_intervals_of_three_seeds_cover_what_is_true_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(surface, "t_limit", cache(surface.t_limit))
    hits, tries = np.zeros(4), 400
    for noise in range(tries):
        found = fit_surface(noisy(0.003, noise=noise))
        (low, high), (least, most) = found.optimum_interval().values()
        under, over = found.interval(0.3, 3.0)
        hits += low <= 0.35 <= high, least <= 2.8 <= most, under <= bowl(0.3, 3.0) <= over, found.indistinct(0.35, 2.8) <= 0
    assert (hits[:3] / tries == pytest.approx(0.95, abs=0.03)) and hits[3] / tries > 0.95


def test_seeds_without_noise_have_no_spread():
    found = fit_surface([Point(*pair, bowl(*pair) + seed, seed) for seed in range(3) for pair in GRID])
    low, high = found.optimum_interval()["share"]  # a seed that shifts all values moves no optimum
    assert low == pytest.approx(0.35) and high == pytest.approx(0.35)
    assert np.diff(found.interval(0.35, 2.8)) > 1


@pytest.mark.parametrize("points, words", [
    ([], "0 pairs of share and expansion"),
    ([Point(*pair, 1.0) for pair in GRID[:5]], "5 pairs of share and expansion"),
    ([Point(*pair, 1.0) for pair in GRID[:8]], "three clearly different shares"),
    ([Point(0.3, e, 1.0) for e in range(1, 9)], "three clearly different shares"),
    ([Point(0.3 + k / 1000, e, 1.0) for k, (_, e) in enumerate(GRID)], "three clearly different shares"),
    ([Point(share * (1 + k / 500), e, 1.0) for k, (share, e) in enumerate(GRID[:8])], "three clearly different shares"),
    ([Point(*GRID[0], float("nan"))], "finite value"),
    ([Point(-0.1, 2.0, 1.0)], "share and an expansion above 0"),
    ([Point(*pair, 1.0) for pair in GRID] + [Point(*GRID[0], 2.0)], "one each"),
    ([Point(*pair, 1.0, seed) for seed in (0, 1) for pair in GRID][:-1], "seed 1 lacks share 0.45 with expansion 4"),
])
def test_what_has_no_surface(points, words):
    with pytest.raises(InputError, match="^points: ") as caught:
        fit_surface(points)
    assert words in str(caught.value) and "; allowed: " in str(caught.value)


def test_one_seed_has_no_interval():
    found = fit_surface(noisy(0.001, seeds=1))
    with pytest.raises(InputError, match="^points: one seed is given"):
        found.optimum_interval()
    with pytest.raises(InputError, match="^confidence: 95"):
        fit_surface(noisy(0.001)).interval(0.3, 3.0, 95)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_atlas_is_drawn_the_same_each_time(tmp_path, seeds):
    written = []
    for name in ("a", "b"):
        with style():
            figure = Figure(figsize=(3.15, 2.5))
            draw_atlas(figure.subplots(), fit_surface(noisy(0.004, seeds)), "loss (nats/token)")
        written.append(write_figure(figure, tmp_path, name))
    assert written[0]["svg"].read_bytes() == written[1]["svg"].read_bytes()
    assert written[0]["png"].read_bytes() == written[1]["png"].read_bytes()
