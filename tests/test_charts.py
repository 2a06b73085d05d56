"""Charts say in words what they show, in plain numbers, with intervals, and refuse what cannot be drawn."""

import numpy as np
import pytest

from lab import draw, shipped
from lab.charts import ticks

AXES = {"xlabel": "tokens", "ylabel": "loss (nats per token)"}


def axes_of(picture, theme=None):
    figure = picture.figure(theme)
    figure.canvas.draw()
    return figure.axes[0]


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels() if label.get_text()]


def test_a_logarithmic_axis_has_plain_numbers():
    axes = axes_of(draw.chart([draw.Points("", [1e5, 3e6], [4.2, 6.6])], **AXES, logx=True, logy=True))
    assert {"100k", "1M"} <= set(labels(axes.xaxis))
    assert {"5", "6"} <= set(labels(axes.yaxis))
    assert not any("10^" in text or "$" in text for text in labels(axes.xaxis) + labels(axes.yaxis))


def test_small_numbers_are_plain_too():
    axes = axes_of(draw.chart([draw.Points("", [1, 2], [2e-5, 0.4])], **AXES, logy=True))
    assert "0.0001" in labels(axes.yaxis) and not any("e" in text for text in labels(axes.yaxis))


@pytest.mark.parametrize("low, high", [(1, 1.2), (4.3, 6.5), (2.3e5, 4.2e6), (1e12, 3e19), (0.9, 11)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 8 and all(low <= value <= high for value in found)
    assert all(len(f"{value:.6g}".replace(".", "").strip("0").split("e")[0]) <= 3 for value in found)


def test_points_and_line_of_one_label_are_one_entry_in_the_order_given():
    points = [draw.Points(name, [1, 2], [3, 2], [2.5, 1.5], [3.5, 2.5]) for name in "ba"]
    lines = [draw.Line(name, [1, 2], [3, 2], [2.9, 1.9], [3.1, 2.1]) for name in "ba"]
    axes = axes_of(draw.chart([*points, *lines], **AXES))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["b", "a"]
    assert len(axes.collections) == 2 + 2  # a band and the error bars of each


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_series_differ_by_more_than_colour(theme):
    lines = [draw.Line(str(n), [1, 2], [n, n]) for n in range(9)]
    drawn = axes_of(draw.chart(lines, **AXES), theme).lines
    assert len({(line.get_marker(), line.get_linestyle()) for line in drawn}) == 9


def test_the_alt_text_and_the_table_hold_the_numbers():
    series = [draw.Points("16M", [1e6, 2e6], [5.5, 5.25], [5.4, 5.2], [5.6, 5.3]), draw.Line("a law", [1e6], [5.0])]
    picture = draw.chart(series, **AXES, title="Loss", alt="So much for it.")
    assert picture.alt == (
        "Loss. loss (nats per token) by tokens: 16M 5.5 (5.4 to 5.6) at 1M, 5.25 (5.2 to 5.3) at 2M; a law 5 at 1M. "
        "So much for it."
    )
    frame = picture.as_frame()
    assert frame["low"].tolist()[:2] == [5.4, 5.2] and np.isnan(frame["low"][2])
    assert frame["tokens"].tolist() == [1e6, 2e6, 1e6]


@pytest.mark.parametrize("note", ["", "Source: ladder.csv, $5. " * 12])
def test_a_note_is_under_the_axes_and_changes_nothing_else(note):
    figure = draw.chart([draw.Points("", [1, 2], [1, 2])], **AXES, note=note).figure()
    assert len(figure.texts) == bool(note)
    assert all(text.get_position()[1] < 0 for text in figure.texts)


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match="nothing to draw"):
        draw.chart([], **AXES)
    with pytest.raises(ValueError, match="'a' has 2 x and 1 y"):
        draw.Points("a", [1, 2], [1])
    with pytest.raises(ValueError, match="'a' has no high"):
        draw.Line("a", [1], [1], low=[1])
    with pytest.raises(ValueError, match="2 low, 1 high and 1 x"):
        draw.Line("a", [1], [1], low=[1, 2], high=[1])
    with pytest.raises(ValueError, match="'a' has a x of 0; its axis is a logarithm"):
        draw.chart([draw.Points("a", [0, 1], [1, 2])], **AXES, logx=True)
    with pytest.raises(ValueError, match="nothing to draw"):
        draw.effects([], xlabel="nats")
    with pytest.raises(ValueError, match="rate 'none' has no value"):
        draw.Effect("rate", "none", [])


def test_effects_show_each_seed_the_mean_and_the_range():
    rows = [draw.Effect("d_ff", "2x", [0.1, 0.2, 0.3]), draw.Effect("rate", "low", [-0.5])]
    picture = draw.effects(rows, xlabel="nats above the base", title="Causes", zero="the base")
    assert "d_ff, 2x +0.200 (+0.100 to +0.300); rate, low -0.500 (one seed)" in picture.alt
    axes = axes_of(picture)
    marks = [value for line in axes.lines if line.get_marker() == "|" for value in line.get_xdata()]
    assert marks == [0.1, 0.2, 0.3, -0.5]
    assert {"+0.200", "-0.500", "0: the base"} <= {text.get_text() for text in axes.texts}
    assert labels(axes.yaxis) == ["2x", "low", "d_ff", "rate"] and axes.yaxis_inverted()
    assert picture.as_frame()["seeds"].tolist() == [3, 1]


def test_a_table_that_is_not_there_names_its_command():
    with pytest.raises(FileNotFoundError, match="no table 'nothing'.*lab experiment nothing --out runs"):
        shipped.table("nothing")
