import io

import matplotlib.pyplot as plt
import numpy as np
import pytest

from modernllm.core import plotting
from modernllm.core.config import InputError
from modernllm.core.records import Record
from modernllm.reporting import figures
from modernllm.reporting.results import example_records


def test_both_files_and_the_same_bytes_each_time(project):
    plt.close("all")  # what other tests left open
    svg = figures.save(figures.metric_points(example_records(), "test_loss"), "f", "cpu")
    first = svg.read_bytes(), svg.with_suffix(".png").read_bytes()
    figures.save(figures.metric_points(example_records(), "test_loss"), "f", "cpu")
    assert first == (svg.read_bytes(), svg.with_suffix(".png").read_bytes())
    assert svg == project / "figures/cpu/f.svg" and b"<image" not in first[0]
    assert not plt.get_fignums()


def test_png_has_300_dots_an_inch(project):
    from PIL import Image

    svg = figures.save(figures.metric_points(example_records(), "test_loss"), "f", "cpu")
    with Image.open(svg.with_suffix(".png")) as image:
        assert image.width == round(plotting.COLUMN * 300) and round(image.info["dpi"][0]) == 300


def test_smoke_is_written_across_the_figure(project, monkeypatch):
    fig = figures.metric_points(example_records(), "test_loss")
    figures.save(fig, "f", "smoke", note="generated data")
    assert fig.get_supxlabel() == f"{figures.SMOKE_NOTE}; generated data"
    fig = figures.metric_points(example_records(), "test_loss")
    figures.save(fig, "f", "cpu")
    assert fig.get_supxlabel() == ""


def test_style_leaves_nothing_behind():
    before = plt.rcParams.copy()
    with plotting.style():
        assert plt.rcParams["svg.hashsalt"] == "modernllm"
    assert plt.rcParams == before


def test_curves_of_different_length_are_averaged_where_all_have_points():
    values = example_records()[0].to_dict()
    curve = {"x_unit": "tokens", "y_unit": "nats"}
    records = [Record.make(values | {"curves": {"c": curve | {"x": x, "y": [2 * v for v in x]}}})
               for x in ([0.0, 10.0, 20.0], [5.0, 15.0])]
    x, mean, sd = figures.mean_curve(records, "c")
    assert x.tolist() == [10.0] and np.allclose(mean, 20) and np.allclose(sd, 0)


@pytest.mark.parametrize("draw", [
    lambda records: figures.loss_curves(records, "no_such"),
    lambda records: figures.metric_points(records, "no_such"),
    lambda records: figures.mean_curve([], "c"),
    lambda records: plotting.series_look(6),
])
def test_what_cannot_be_drawn_is_refused(draw):
    with pytest.raises(InputError):
        draw(example_records())
    plt.close("all")


def test_a_panel_can_be_given():
    with plotting.style():
        fig, (left, right) = plt.subplots(1, 2)
    assert figures.loss_curves(example_records(), axes=left) is fig
    assert figures.metric_points(example_records(), "test_loss", axes=right) is fig
    fig.savefig(io.BytesIO(), format="svg")
    plt.close("all")
