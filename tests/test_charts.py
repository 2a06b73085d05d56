"""Charts say in words what they show, in plain numbers, with intervals, and refuse what cannot be drawn."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lab import draw, shipped
from lab.charts import ticks

AXES = {"xlabel": "tokens", "ylabel": "loss (nats per token)"}


def axes_of(picture, theme=None):
    figure = picture.figure(theme)
    FigureCanvasAgg(figure).draw()
    return figure.axes[0]


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels() if label.get_text()]


def test_a_logarithmic_axis_has_plain_numbers():
    axes = axes_of(draw.chart([draw.Points("", [1e5, 1.02e5, 3e6], [4.2, 5, 6.6])], **AXES, logx=True, logy=True))
    assert {"100k", "1M"} <= set(labels(axes.xaxis))
    assert {"5", "6"} <= set(labels(axes.yaxis))
    assert not any("10^" in text or "$" in text for text in labels(axes.xaxis) + labels(axes.yaxis))


def test_small_numbers_are_plain_too():
    axes = axes_of(draw.chart([draw.Points("", [1, 2], [2e-5, 0.4])], **AXES, logy=True))
    assert "0.0001" in labels(axes.yaxis) and not any("e" in text for text in labels(axes.yaxis))


def test_ticks_stand_where_it_was_measured_if_there_is_room():
    contexts = draw.Points("", [64, 128, 256, 512], [1, 2, 3, 4])
    assert labels(axes_of(draw.chart([contexts], **AXES, logx=True)).xaxis) == ["64", "128", "256", "512"]
    near = draw.Points("", [64, 65, 256, 512], [1, 2, 3, 4])
    assert "65" not in labels(axes_of(draw.chart([near], **AXES, logx=True)).xaxis)


def test_one_number_alone_has_a_logarithmic_axis_around_it():
    axes = axes_of(draw.chart([draw.Points("", [131_072], [7.5])], **AXES, logx=True))
    assert labels(axes.xaxis) == ["131k"]
    assert axes.transAxes.inverted().transform(axes.transData.transform((131_072, 7.5)))[0] == pytest.approx(0.5)


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


def test_marks_belong_to_what_was_measured():
    curve, points = draw.Line("one", [1, 2, 4], [3, 2, 1]), draw.Points("one", [1, 4], [3.1, 0.9])
    axes = axes_of(draw.chart([points, curve], **AXES))
    drawn = {line.get_marker(): list(line.get_ydata()) for line in axes.lines if len(line.get_xdata())}
    assert drawn["o"] == [3.1, 0.9] and drawn["None"] == [3, 2, 1]
    alone = axes_of(draw.chart([curve], **AXES)).lines[0]
    assert alone.get_marker() == "o"


def test_what_is_framed_looks_otherwise():
    series = [
        draw.Points("a", [1], [2]),
        draw.Points("b", [1], [2], framed=True),
        draw.Line("c", [1, 2], [2, 3], framed=True),
    ]
    axes = axes_of(draw.chart(series, **AXES))
    looks = {line.get_marker(): line for line in axes.lines if len(line.get_xdata())}
    assert looks["s"].get_markerfacecolor() == "none" != looks["o"].get_markerfacecolor()
    assert looks["None"].get_linewidth() > 4 and looks["None"].get_zorder() < looks["o"].get_zorder()


def test_a_band_that_leaves_the_picture_is_cut_and_said():
    points = draw.Points("runs", [1, 4], [3, 1])
    for high, cut in (([3.2, 2.2, 1.2], False), ([90, 9, 1.2], True)):
        curve = draw.Line("fit", [1, 2, 4], [3, 2, 1], [2.9, 1.9, 0.9], high)
        figure = draw.chart([points, curve], **AXES, note="n").figure()
        assert (figure.axes[0].get_ylim()[1] < 5) and ("cut at the frame" in figure.texts[0].get_text()) == cut


def test_a_line_that_joins_points_is_said_once():
    joined = [draw.Points("a", [1, 2], [3, 2]), draw.Line("a", [1, 2], [3, 2]), draw.Line("law", [1, 2], [3, 2])]
    assert draw.chart(joined, **AXES).alt.count("a 3 at 1, 2 at 2") == 1


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
    for rows in (1, 30):  # a tall figure and a low one: the note keeps its distance in inches
        figure = draw.effects([draw.Effect("", str(n), [1.0]) for n in range(rows)], xlabel="nats", note=note).figure()
        FigureCanvasAgg(figure).draw()
        assert len(figure.texts) == bool(note)
        for text in figure.texts:
            gap = figure.axes[0].xaxis.label.get_window_extent().y0 - text.get_window_extent().y1
            assert 0 < gap / figure.dpi < 0.4


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
    rows = [
        draw.Effect("d_ff", "2x", [0.1, 0.2, 0.3]),
        draw.Effect("rate", "low", [-0.5]),
        draw.Effect("rate", "base", [-1e-9]),
    ]
    picture = draw.effects(rows, xlabel="nats above the base", title="Causes", zero="the base")
    assert "d_ff, 2x +0.200 (+0.100 to +0.300); rate, low -0.500 (one seed)" in picture.alt
    axes = axes_of(picture)
    marks = [value for line in axes.lines if line.get_marker() == "|" for value in line.get_xdata()]
    assert marks == [0.1, 0.2, 0.3, -0.5, -1e-9]
    assert {"+0.200", "-0.500", "+0.000", "0: the base"} <= {text.get_text() for text in axes.texts}
    assert labels(axes.yaxis) == ["2x", "low", "base", "d_ff", "rate"] and axes.yaxis_inverted()
    assert picture.as_frame()["seeds"].tolist() == [3, 1, 1]


def test_a_table_that_is_not_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    assert shipped.optional("prediction") is None
    (tmp_path / "prediction.csv").write_text("run\na\n")
    assert list(shipped.optional("prediction")["run"]) == ["a"]


def test_a_table_that_is_not_there_names_its_command():
    with pytest.raises(FileNotFoundError, match="no table 'nothing'.*lab experiment nothing --out runs"):
        shipped.table("nothing")
