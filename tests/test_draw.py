"""The figures: what they mark, what they refuse, and the same bytes every time."""

import base64
import hashlib
import html
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from lab import canvas, draw, figures, masks, matrix
from lab.report import Finding, Report

FOLDER = Path(__file__).parents[1] / "figures"
TEXT = {"queries": ["a", "b"], "keys": ["c", "d"]}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def hatches(figure: Figure) -> set[str]:
    return {patch.get_hatch() for patch in figure.axes[0].patches} - {None, ""}


def cells(figure_of, *args, **how) -> list[list[str]]:
    return [[cell.text for cell in row] for row in figure_of.grid(*args, **how).cells]


@pytest.mark.parametrize("name", figures.FIGURES)
def test_committed_figure_is_a_fresh_drawing(name: str, tmp_path: Path) -> None:
    fresh = figures.write(name, tmp_path / "new" / "folder")
    assert [path.name for path in fresh] == [f"{name}.svg", f"{name}.csv"]
    for path in fresh:
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), f"{path.name}: run `make figures`"
    assert len(figures.FIGURES[name].alt) > 40
    svg = fresh[0].read_text()
    assert re.search(r"<title>[^<]+</title>", svg)
    assert "<text" not in svg and "dc:date" not in svg
    assert "url(#h" in svg or name == "report"  # a hatch


def test_nothing_else_is_committed() -> None:
    measured = {"lost_dropout", "review_matrix"}  # the demo's own, which git ignores
    assert {path.stem for path in FOLDER.iterdir()} - measured == set(figures.FIGURES)


def test_another_process_and_another_style_draw_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import hashlib, matplotlib, torch; matplotlib.rcParams.update({'font.size': 30, 'axes.facecolor': 'k'});"
        "from lab import canvas, draw;"
        "f = draw.attention(torch.eye(2), ['é', '▁'], ['$x$', 'pad'], title='t', pads=[1]);"
        "print(hashlib.sha256(canvas.render(f, 'svg') + canvas.render(f, 'svg')).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    figure = draw.attention(torch.eye(2), ["é", "▁"], ["$x$", "pad"], title="t", pads=[1])
    assert run.stdout.strip() == hashlib.sha256(canvas.render(figure, "svg") * 2).hexdigest()
    assert run.stderr == ""


def test_batch_marks_ignored_labels_padding_and_special_tokens() -> None:
    rows, tokens = (
        torch.tensor([[0, 7, 2, 1], [0, 8, -100, -100]]),
        [["<s>", "é", "</s>", "<pad>"], ["<s>", "▁b", *"xx"]],
    )
    assert cells(draw.batch_grid, rows, tokens) == [["<s>", "é", "</s>", "pad"], ["<s>", "▁b", "-100", "-100"]]
    figure = draw.batch_grid(rows, tokens, title="a batch")
    assert hatches(figure) == {"xxx", "///"}
    assert {"a batch", "padding", "start or end", "for the loss alone: no token"} <= set(texts(figure))


def test_batch_of_one_cell_and_of_no_padding() -> None:
    figure = draw.batch_grid(torch.tensor([[5]]), [["a"]])
    assert texts(figure) == ["→ position", "0", "row 0", "a"]
    assert not hatches(figure)


def test_long_and_odd_tokens_stay_readable(recwarn: pytest.WarningsRecorder) -> None:
    figure = draw.batch_grid(
        torch.tensor([[5, 6, 7, 8]]), [["extraordinarily-long-token", "\n", "日", "$x$"]], title="日 $"
    )
    shown = texts(figure)
    assert any(text.startswith("extra") and text.endswith("…") for text in shown)
    assert {r"\n", r"\u65e5", "$x$"} <= set(shown)
    canvas.render(figure, "svg")
    assert not list(recwarn)


def test_mask_is_drawn_as_given() -> None:
    mask = torch.tensor([[True, True], [False, True]])  # not causal on purpose
    assert cells(draw.attend_mask, mask, **TEXT) == [["■", "■"], ["·", "■"]]
    figure = draw.attend_mask(mask, **TEXT, pads=torch.tensor([False, True]))
    assert hatches(figure) == {"///"}
    assert {"▨ d", "c", "may attend to padding"} <= set(texts(figure))
    assert "query (who looks)" in str(texts(figure)) and "key (what is looked at)" in str(texts(figure))


@pytest.mark.parametrize("pads", [[1], torch.tensor([1]), [False, True], torch.tensor([False, True])])
def test_pads_are_bools_or_numbers(pads: object) -> None:
    assert draw.attend_mask.grid(masks.causal(2), **TEXT, pads=pads).columns == ["c", "▨ d"]


def test_attention_tells_zero_from_small_and_hides_nothing() -> None:
    weights = torch.tensor([[0.996, 0.004], [1.0, 0.0]], requires_grad=True)
    assert cells(draw.attention, weights, **TEXT) == [["1.00", ".00"], ["1.00", "×"]]
    figure = draw.attention(torch.tensor([[float("nan"), 0.25]]), ["a"], ["c", "d"], pads=[1])
    assert {"NaN", ".25", "weight on padding", "not a number"} <= set(texts(figure))
    assert hatches(figure) == {"xxx", "///"}


@pytest.mark.parametrize("function", [draw.attend_mask, draw.attention])
def test_one_cell_and_many(function) -> None:
    one = torch.ones(1, 1, dtype=torch.bool if function is draw.attend_mask else torch.float32)
    for size in (1, 24):
        names = ["token"] * size
        width = function(one.expand(size, size), names, names).get_size_inches()[0]
        assert 4 < width < 12


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: draw.attend_mask(masks.causal(2)[None], **TEXT), ["mask", "(1, 2, 2)"]),
        (lambda: draw.attend_mask(masks.causal(3), **TEXT), ["3 rows", "2 queries"]),
        (lambda: draw.attention(torch.ones(2, 5), **TEXT), ["5 columns", "2 keys"]),
        (lambda: draw.attend_mask(torch.ones(2, 2), **TEXT), ["float32", "True = may attend"]),
        (lambda: draw.attend_mask(masks.causal(2), **TEXT, pads=[2]), ["column 2", "2 keys"]),
        (lambda: draw.attend_mask(masks.causal(2), **TEXT, pads=[True]), ["(1,)", "2 keys"]),
        (lambda: draw.batch_grid(torch.ones(2, 3), [["a"] * 3]), ["2 rows", "1 lists"]),
        (lambda: draw.batch_grid(torch.ones(2, 3), [["a"] * 3, ["a"]]), ["3 columns", "1 tokens"]),
        (lambda: draw.batch_grid(torch.ones(2, 3), []), ["2 rows", "0 lists"]),
        (lambda: draw.curves({"x": ([1, 2], [1])}, xlabel="", ylabel=""), ["2 xs", "1 ys"]),
        (lambda: draw.bars({"a": 0}, xlabel="", log=True), ["0", "above 0"]),
        (lambda: draw.curves({}, xlabel="", ylabel=""), ["no curve"]),
        (lambda: draw.bars({}, xlabel=""), ["no bar"]),
        (lambda: draw.modes({}), ["no mode"]),
        (lambda: draw.fault_matrix([]), ["no row"]),
        (lambda: draw.show(Figure(), " "), ["alt is empty"]),
        (lambda: draw.save(Figure(), "a.jpg"), ["a.jpg", ".svg or .png"]),
    ],
)
def test_errors_name_what_was_wrong(call, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


def test_modes_frame_what_did_not_come_back() -> None:
    snapshots = {"before": {"a": True, "b": False}, "after": {"a": False, "b": False, "c": True}}
    assert cells(draw.modes, snapshots) == [["T", "E ≠"], ["E", "E"], ["–", "T ≠"]]
    assert hatches(draw.modes(snapshots)) == {"\\\\\\"}


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
    grid = draw.fault_matrix.grid(rows)
    shown = {name: [cell.text for cell in line[:5]] for name, line in zip(grid.rows, grid.cells, strict=True)}
    assert list(shown) == ["healthy", "fault", "silent"] and grid.rule == 1
    assert shown["healthy"] == ["", "!", "", "", ""]
    assert shown["fault"] == ["●", "○", "–", "!", "E"]
    assert shown["silent"][0] == "?"
    assert b"no batch" in canvas.table([grid])
    assert {"xxx", "\\\\\\"} == hatches(draw.fault_matrix(rows))


def test_curves_differ_by_more_than_colour() -> None:
    lines = {str(n): ([1, 2, 3], [n, n, n]) for n in range(5)} | {"$5": ([1], [1])}
    axes = draw.curves(lines, xlabel="step", ylabel="loss ($)", title="cost in $ and $").axes[0]
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines[:5]}) == 5
    assert (axes.get_xlabel(), axes.get_title(loc="left")) == ("step", r"cost in \$ and \$")


def test_bars_say_their_values() -> None:
    figure = draw.bars({"a": 0.5, "b" * 80: 123456.7}, xlabel="tokens", log=True)
    assert texts(figure) == ["0.5", "123,457"]
    assert canvas.render(figure, "png") == canvas.render(figure, "png")


def test_save_makes_the_folder_and_says_where_it_cannot(tmp_path: Path) -> None:
    figure = draw.bars({"a": 1}, xlabel="x")
    assert draw.save(figure, tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert draw.save(figure, str(tmp_path / "a.svg")).read_bytes().startswith(b"<?xml")
    with pytest.raises(OSError, match=r"cannot write .*a\.svg/b\.svg .*choose"):
        draw.save(figure, tmp_path / "a.svg" / "b.svg")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """IPython as in a notebook; what is displayed."""
    shown: list[dict[str, str]] = []
    display = SimpleNamespace(display=lambda data, raw: shown.append(data))
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()), display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    return shown


def test_show_displays_an_image_with_escaped_alt_text(kernel: list, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, alt = draw.bars({"a": 1}, xlabel="x"), 'a "<b>" & c'
    draw.show(figure, alt=alt)
    monkeypatch.setattr(canvas, "MAX_SVG", 10)
    draw.show(figure, alt=alt)
    for bundle, kind, start in zip(kernel, ("svg+xml", "png"), (b"<?xml", b"\x89PNG"), strict=True):
        found = re.fullmatch(
            r'<img alt="([^"]*)" src="data:image/([^;]*);base64,([^"]*)" style="(.*)">', bundle["text/html"]
        )
        assert found and "<b>" not in found[1] and html.unescape(found[1]) == bundle["text/plain"] == alt
        assert found[2] == kind and base64.b64decode(found[3]).startswith(start)
        assert found[4] == "max-width:100%"


def test_show_prints_the_alt_text_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    draw.show(draw.bars({"a": 1}, xlabel="x"), alt="one bar")
    assert capsys.readouterr().out == "one bar\n"
