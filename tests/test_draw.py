"""The pictures of given values: what they mark, what they refuse, and what they say in words."""

import pytest
import torch
from matplotlib.figure import Figure

from lab import draw, masks, matrix
from lab.canvas import render
from lab.grid_picture import GridPicture
from lab.picture import Picture
from lab.report import Finding, Report

TEXT = {"queries": ["a", "b"], "keys": ["c", "d"]}
CAUSAL_3 = masks.causal(3)


def texts(picture: Picture) -> list[str]:
    return [text.get_text() for text in picture.figure("light").axes[0].texts]


def hatches(picture: Picture) -> set[str]:
    return {patch.get_hatch() for patch in picture.figure("light").axes[0].patches} - {None, ""}


def shown(picture: GridPicture, panel: int = 0) -> list[list[str]]:
    return [[cell.shown for cell in row] for row in picture.grids[panel].cells]


def states(picture: GridPicture, panel: int = 0) -> list[list[str]]:
    return [[cell.state for cell in row] for row in picture.grids[panel].cells]


def test_batch_marks_ignored_labels_padding_and_special_tokens() -> None:
    rows = torch.tensor([[0, 7, 2, 1], [0, 8, -100, -100]])
    tokens = [["<s>", "é", "</s>", "<pad>"], ["<s>", "▁b", *"xx"]]
    picture = draw.batch_grid(rows, tokens, title="a batch")
    assert shown(picture) == [["<s>", "é", "</s>", "pad"], ["<s>", "▁b", "-100", "-100"]]
    assert hatches(picture) == {"xxx", "///"}
    assert {"a batch", "padding", "start or end", "for the loss alone: no token"} <= set(texts(picture))


def test_batch_of_one_cell_and_of_no_padding() -> None:
    picture = draw.batch_grid(torch.tensor([[5]]), [["a"]])
    assert texts(picture) == ["→ position", "row 0", "0", "a"]
    assert not hatches(picture)


def test_long_and_odd_tokens_stay_readable(recwarn: pytest.WarningsRecorder) -> None:
    tokens = [["extraordinarily-long-token", "\n", "日", "$x$"]]
    picture = draw.batch_grid(torch.tensor([[5, 6, 7, 8]]), tokens, title="日 $")
    seen = texts(picture)
    assert any(text.startswith("extra") and text.endswith("…") for text in seen)
    assert {r"\n", r"\u65e5", "$x$"} <= set(seen)
    render(picture.figure(), "svg")
    assert not list(recwarn)


def test_mask_is_drawn_as_given() -> None:
    mask = torch.tensor([[True, True], [False, True]])  # not causal on purpose
    assert shown(draw.mask(mask, **TEXT)) == [["■", "■"], ["·", "■"]]
    picture = draw.mask(mask, **TEXT, pads=torch.tensor([False, True]))
    assert shown(picture) == [["■", "▲"], ["·", "▲"]]
    assert hatches(picture) == {"///"} and picture.leaks == 2
    assert {"▨ d", "c", "leak: padding may be attended to"} <= set(texts(picture))
    assert "query (who looks)" in str(texts(picture)) and "key (what is looked at)" in str(texts(picture))


def test_mask_beside_what_it_should_be() -> None:
    used = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 1, 1]]).bool()
    assert states(draw.mask(used, ["a", "b", "c"], should=CAUSAL_3)) == [
        ["may attend", *["leak: the future may be attended to"] * 2],
        ["blocked, but should not be", "may attend", "blocked"],
        ["may attend"] * 3,
    ]
    window = torch.eye(3).bool()
    assert states(draw.mask(used, ["a", "b", "c"], should=window))[2][0] == "leak: may be attended to, but should not"


def test_a_row_of_padding_teaches_nothing_and_is_told_apart() -> None:
    picture = draw.mask(CAUSAL_3, ["a", "b", "pad"], should=CAUSAL_3 & torch.tensor([True, True, False]), pads=[2])
    assert states(picture)[2] == ["padding's own row: may attend"] * 3
    assert picture.leaks == 0
    left = draw.mask(CAUSAL_3, ["pad", "b", "c"], pads=[0])
    assert left.leaks == 2 and states(left)[0][0] == "padding's own row: may attend"
    assert draw.mask(CAUSAL_3, ["pad", "b", "c"], pads=[0], query_pads=[]).leaks == 3
    cross = draw.mask(CAUSAL_3, ["a", "b", "c"], ["pad", "b", "c"], pads=[0])
    assert cross.leaks == 3, "the keys' padding is not the queries'"


def test_a_cached_query_is_the_last_position() -> None:
    last = draw.mask(torch.ones(1, 3).bool(), ["c"], ["a", "b", "c"], should=torch.tensor([[True, True, True]]))
    assert states(last) == [["may attend"] * 3]
    first = draw.mask(torch.ones(1, 3).bool(), ["c"], ["a", "b", "c"], should=torch.tensor([[False, True, True]]))
    assert states(first)[0][0] == "leak: may be attended to, but should not"


def test_a_batch_is_drawn_as_small_multiples() -> None:
    ids = torch.tensor([[7, 8, 1], [1, 7, 8]])
    used, tokens = masks.decoder(ids, 1), [["a", "b", "pad"], ["pad", "a", "b"]]
    picture = draw.mask(used, tokens, pads=ids == 1, title="batch")
    assert [grid.title for grid in picture.grids] == ["batch: row 0", "batch: row 1"]
    assert [list(grid.columns) for grid in picture.grids] == [["a", "b", "▨ pad"], ["▨ pad", "a", "b"]]
    assert [[cell.state for cell in grid.cells[1]].count("may attend") for grid in picture.grids] == [2, 1]
    assert picture.leaks == 0
    assert draw.mask(masks.causal(3).expand(2, 3, 3), tokens, pads=ids == 1).leaks == 2
    assert list(picture.as_frame().index.get_level_values(0).unique()) == ["batch: row 0", "batch: row 1"]


@pytest.mark.parametrize("pads", [[1], torch.tensor([1]), [False, True], torch.tensor([False, True])])
def test_pads_are_bools_or_numbers(pads: object) -> None:
    assert draw.mask(masks.causal(2), **TEXT, pads=pads).grids[0].columns == ["c", "▨ d"]


def test_weights_tell_zero_from_small_and_hide_nothing() -> None:
    weights = torch.tensor([[0.996, 0.004], [1.0, 0.0]], requires_grad=True)
    assert shown(draw.weights(weights, **TEXT)) == [["1.00", ".00"], ["1.00", "×"]]
    picture = draw.weights(torch.tensor([[float("nan"), 0.25]]), ["a"], ["c", "d"], pads=[1])
    assert {"NaN", ".25", "leak: weight on padding", "not a number"} <= set(texts(picture))
    assert hatches(picture) == {"xxx", "///"}
    assert picture.as_frame().loc["a", "▨ d"] == "leak: weight on padding, 0.25"


def test_weights_on_the_future_are_marked() -> None:
    weights = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    assert states(draw.weights(weights, ["a", "b"], should=masks.causal(2))) == [
        ["weight", "leak: weight on the future"],
        ["weight", "weight"],
    ]


def test_conjunction_goes_step_by_step() -> None:
    picture = draw.conjunction(["pad", "a", "b"], [0])
    real, causal, both = (
        torch.tensor([["■" in cell.shown or cell.look.alarm for cell in row] for row in grid.cells[1:]])
        for grid in picture.grids
    )
    assert torch.equal(both, real & causal)
    assert torch.equal(both, masks.decoder(torch.tensor([[1, 5, 6]]), 1)[0, 0, 1:])
    leaks = [{cell.state for row in grid.cells for cell in row if cell.look.alarm} for grid in picture.grids]
    assert leaks == [{"leak: the future may be attended to"}, {"leak: padding may be attended to"}, set()]
    cross = draw.conjunction(["a", "b"], [2], keys=["x", "y", "pad"])
    assert len(cross.grids) == 1 and states(cross) == [["may attend", "may attend", "blocked padding"]] * 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: draw.mask(masks.causal(2)[None, None, None], **TEXT), ["mask", "(1, 1, 1, 2, 2)"]),
        (lambda: draw.mask(masks.causal(3), **TEXT), ["3 rows", "2 queries"]),
        (lambda: draw.weights(torch.ones(2, 5), **TEXT), ["5 columns", "2 keys"]),
        (lambda: draw.mask(torch.ones(2, 2), **TEXT), ["float32", "True = may attend"]),
        (lambda: draw.mask(masks.causal(2), **TEXT, should=torch.ones(2, 2)), ["should", "float32"]),
        (lambda: draw.mask(masks.causal(2), **TEXT, should=masks.causal(3)), ["should", "(3, 3)", "(1, 2, 2)"]),
        (lambda: draw.mask(masks.causal(2), **TEXT, pads=[2]), ["column 2", "2 keys"]),
        (lambda: draw.mask(masks.causal(2), **TEXT, pads=[True]), ["(1,)", "2 keys"]),
        (lambda: draw.mask(masks.causal(2).expand(2, 2, 2), [["a", "b"]]), ["2 rows", "1 lists of queries"]),
        (lambda: draw.mask(masks.causal(2).expand(2, 2, 2), ["a", "b"], title=["t"]), ["2 rows", "1 titles"]),
        (lambda: draw.batch_grid(torch.ones(2, 3), [["a"] * 3]), ["2 rows", "1 lists"]),
        (lambda: draw.batch_grid(torch.ones(2, 3), [["a"] * 3, ["a"]]), ["3 columns", "1 tokens"]),
        (lambda: draw.batch_grid(torch.ones(2, 3), []), ["2 rows", "0 lists"]),
        (lambda: draw.curves({"x": ([1, 2], [1])}, xlabel="", ylabel=""), ["2 xs", "1 ys"]),
        (lambda: draw.bars({"a": 0}, xlabel="", log=True), ["0", "above 0"]),
        (lambda: draw.curves({}, xlabel="", ylabel=""), ["no curve"]),
        (lambda: draw.bars({}, xlabel=""), ["no bar"]),
        (lambda: draw.timeline({}), ["no mode"]),
        (lambda: draw.fault_matrix([]), ["no row"]),
        (lambda: draw.show(Figure(), " "), ["alt is empty"]),
    ],
)
def test_errors_name_what_was_wrong(call, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


def test_timeline_frames_what_did_not_come_back() -> None:
    snapshots = {"before": {"a": True, "b": False}, "after": {"a": False, "b": False, "c": True}}
    picture = draw.timeline(snapshots)
    assert shown(picture) == [["T", "E ≠"], ["E", "E"], ["–", "T ≠"]]
    assert hatches(picture) == {"\\\\\\"}


def test_matrix_tells_every_case() -> None:
    def row(name: str, own: str, *found: str, also: tuple[str, ...] = (), **how) -> matrix.Row:
        report = Report(findings=[Finding(check, "P2", "") for check in found], **how)
        return matrix.Row(name, report, own, dict.fromkeys(also, "why"))

    crash, pads, full, stuck, half = matrix.columns()[:5]
    rows = [
        row("fault", crash, crash, pads, stuck, also=(pads,), skipped={full: "no batch"}, errors={half: "broke"}),
        row("silent", crash),
        row("healthy", "", pads),
    ]
    picture = draw.fault_matrix(rows)
    grid = picture.grids[0]
    seen = {name: line[:5] for name, line in zip(grid.rows, shown(picture), strict=True)}
    assert list(seen) == ["healthy", "fault", "silent"] and grid.rule == 1
    assert seen["healthy"] == ["", "!", "", "", ""]
    assert seen["fault"] == ["●", "○", "–", "!", "E"]
    assert seen["silent"][0] == "?"
    assert b"no batch" in picture.csv()
    assert {"xxx", "\\\\\\"} == hatches(picture)


def test_curves_differ_by_more_than_colour() -> None:
    lines = {str(n): ([1, 2, 3], [n, n, n]) for n in range(5)} | {"$5": ([1], [1])}
    picture = draw.curves(lines, xlabel="step", ylabel="loss ($)", title="cost in $ and $")
    axes = picture.figure().axes[0]
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines[:5]}) == 5
    assert (axes.get_xlabel(), axes.get_title(loc="left")) == ("step", r"cost in \$ and \$")
    assert picture.alt.startswith("cost in $ and $: loss ($) by step: 0 from 0 to 0; 1 from 1 to 1")
    assert picture.as_frame().iloc[3].tolist() == ["1", 1, 1]


def test_bars_say_their_values() -> None:
    picture = draw.bars({"a": 0.5, "b" * 80: 123456.7}, xlabel="tokens", log=True)
    assert texts(picture) == ["0.5", "123,457"]
    assert picture.alt == f"tokens: a 0.5; {'b' * 80} 123,457."
    assert picture.as_frame()["tokens"].tolist() == [0.5, 123456.7]
