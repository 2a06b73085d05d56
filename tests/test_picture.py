"""What pictures are made of: themes, grids of 1 x 1 to 200 x 200, pages with words, tables, and stable bytes."""

import base64
import hashlib
import html
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lab import canvas, draw, masks, picture
from lab.grid import Grid, regions
from lab.grid_picture import GridPicture, from_csv
from lab.states import STATES, Cell

SVG = "{http://www.w3.org/2000/svg}"


def tokens(count: int) -> list[str]:
    return [f"tok{at}" for at in range(count)]


def leaky(size: int) -> GridPicture:
    """A causal mask with one leak, its last tenth padding."""
    used, pads = masks.causal(size), list(range(size - size // 10, size))
    used[1, size // 2] = True
    return draw.mask(used, tokens(size), should=masks.causal(size), pads=pads)


# Themes


@pytest.mark.parametrize("name", canvas.THEMES)
def test_every_symbol_and_line_is_seen_in_both_themes(name: str) -> None:
    """WCAG 2.2: 4.5 : 1 for text, 3 : 1 for lines that mean something."""
    theme = canvas.theme(name)
    assert canvas.contrast(theme.ink, theme.paper) >= 7
    for look in STATES.values():
        for value in (0.0, 0.1, 0.5, 1.0):
            fill = look.fill(theme, value)
            assert canvas.contrast(canvas.ink_on(fill), fill) >= 4.5
    for colour, _, _ in theme.lines:
        assert canvas.contrast(colour, theme.paper) >= 3


def test_contrast_is_that_of_the_standard() -> None:
    assert canvas.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert canvas.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # WCAG's well-known near miss


def test_the_environment_chooses_the_theme(monkeypatch: pytest.MonkeyPatch) -> None:
    assert to_hex(leaky(6).figure().get_facecolor()) == "#ffffff"
    monkeypatch.setenv("LAB_THEME", "dark")
    assert to_hex(leaky(6).figure().get_facecolor()) == canvas.THEMES["dark"].paper
    assert to_hex(leaky(6).figure("light").get_facecolor()) == "#ffffff"
    with pytest.raises(ValueError, match="'neon'.*light, dark"):
        leaky(6).figure("neon")


def test_no_two_states_look_the_same() -> None:
    looks = [(look.symbol, look.hatch, look.alarm, look.scale) for name, look in STATES.items() if name != "token"]
    same = {look for look in looks if looks.count(look) > 1}
    # What differs by colour alone never stands in one picture, or its cells show their text.
    assert same <= {
        ("", "", False, False),
        ("", "", False, True),
        ("×", "", False, False),
        ("", "/", True, True),
        ("", "x", True, True),
        ("○", "\\", True, False),
        ("", "\\", False, True),
        ("–", "", False, False),
    }


# Grids of every size


@pytest.mark.parametrize("size", [1, 2, 6, 24, 64, 200])
def test_a_grid_fits_its_page_at_every_size(size: int) -> None:
    figure = draw.mask(masks.causal(size), tokens(size)).figure()
    wide, high = figure.get_size_inches()
    assert 4 < wide < 10 and high < 12
    renderer = FigureCanvasAgg(figure).get_renderer()
    labels = [text for text in figure.axes[0].texts if text.get_text().split(" ")[-1].startswith("tok")]
    for turned in (0, 90):
        boxes = [text.get_window_extent(renderer) for text in labels if text.get_rotation() == turned]
        for one in boxes:
            assert not [
                b
                for b in boxes
                if b is not one and b.overlaps(one.shrunk(0.9, 0.8)) and b.x0 != one.x0 and b.y0 != one.y0
            ]
    assert min(text.get_size() for text in labels) >= 8


def test_one_leak_among_forty_thousand_cells_is_marked_in_the_margin() -> None:
    figure = leaky(200).figure("light")
    marks = [
        line for line in figure.axes[0].lines if line.get_color() == canvas.THEMES["light"].readable(canvas.VERMILLION)
    ]
    assert len(marks) == 1 and len(marks[0].get_xdata()) == 2 * 3  # one row, one column
    clean = draw.mask(masks.causal(200), tokens(200)).figure("light")
    assert len(clean.axes[0].lines) < len(figure.axes[0].lines)


def test_regions_cover_just_what_is_marked() -> None:
    torch.manual_seed(0)
    for share in (0.0, 0.3, 0.7, 1.0):
        marked = torch.rand(9, 7) < share
        covered = torch.zeros(9, 7, dtype=torch.int)
        for i, j, high, wide in regions(marked.tolist()):
            covered[i : i + high, j : j + wide] += 1
        assert torch.equal(covered, marked.int())
    assert regions(torch.ones(50, 50).bool().tolist()) == [(0, 0, 50, 50)]


def test_sparse_pixels_are_the_cells() -> None:
    """200 x 200 cells are an image; its pixels are the states' colours, row for row."""
    image = leaky(200).figure("light").axes[0].images[0].get_array()
    theme = canvas.theme("light")
    colours = {name: STATES[name].fill(theme) for name in STATES}
    assert image.shape[:2] == (200, 200)
    assert to_hex(image[5, 3] / 255) == colours["may attend"]
    assert to_hex(image[3, 5] / 255) == colours["blocked"]
    assert to_hex(image[1, 100] / 255) == colours["leak: the future may be attended to"]
    assert to_hex(image[195, 3] / 255) == colours["padding's own row: may attend"]


# Pages


def page_of(shown: GridPicture, theme: str = "light") -> ElementTree.Element:
    return ElementTree.fromstring(shown.on_page(theme))


@pytest.mark.parametrize("size", [3, 64])
def test_a_page_says_each_cell_under_the_pointer(size: int) -> None:
    root = page_of(leaky(size))
    notes = [title.text for title in root.iter(f"{SVG}title")]
    assert len(notes) == size * size
    assert notes[0] == "tok0 → tok0: may attend"
    assert notes.count(f"tok1 → tok{size // 2}: leak: the future may be attended to") == (1 if size // 2 > 1 else 0)
    assert root.get("role") == "img" and "may attend" in root.get("aria-label")


def test_a_page_needs_nothing_from_outside() -> None:
    text = leaky(6).on_page()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<script|<image|@import", text)


def test_pictures_on_one_page_do_not_share_names() -> None:
    pages = [leaky(6).on_page("light"), leaky(6).on_page("dark"), leaky(7).on_page("light")]
    names = [set(re.findall(r'<pattern id="([^"]+)"', text)) for text in pages]
    assert all(names) and not (names[0] & names[1] or names[0] & names[2])
    for text, own in zip(pages, names, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", text)) == own


def test_a_caption_keeps_its_parts_apart() -> None:
    texts = [text.text for text in page_of(leaky(6)).iter(f"{SVG}text")]
    assert [text.split("\u00a0") for text in texts if "query" in text][0][0] == "↓ query (who looks)"


def test_tokens_are_escaped() -> None:
    root = page_of(draw.mask(masks.causal(2), ["<b>", '"&'], title="<i>"))
    assert {"<b>", '"&', "<i>"} <= {text.text for text in root.iter(f"{SVG}text")}


# Words, tables, CSV


def test_alt_text_counts_what_is_there() -> None:
    assert (
        leaky(20).alt.startswith("20 rows by 20 columns; ") and "1 leak: the future may be attended to" in leaky(20).alt
    )
    assert GridPicture(leaky(6).grids, "My words.").alt == "My words."


@pytest.mark.parametrize("size", [1, 6, 40])
def test_a_csv_gives_the_same_picture_back(size: int) -> None:
    torch.manual_seed(0)
    weights = torch.rand(2, size, size)
    weights[0, 0, 0] = float("nan")
    first = draw.weights(weights, tokens(size), pads=[0], title=["same", "same"])
    again = GridPicture(from_csv(first.csv(), caption=first.grids[0].caption), across=first.across)
    assert again.csv() == first.csv()
    for theme in canvas.THEMES:
        assert again.render("svg", theme) == first.render("svg", theme)
        assert again.on_page(theme) == first.on_page(theme)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "nothing"),
        (b"a,b\n1,2\n", "['a', 'b']"),
        (b"panel,i,j,row,column,state,text,value,note\n,0,0,a,b,odd,,,\n", "'odd' is no state"),
    ],
)
def test_a_foreign_csv_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        from_csv(content)


# Bytes, files, notebooks


def test_another_process_and_another_style_draw_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import hashlib, matplotlib, torch; matplotlib.rcParams.update({'font.size': 30, 'axes.facecolor': 'k'});"
        "from lab import draw; n = ['é', '▁', *'ab' * 31];"
        "p = draw.weights(torch.eye(2), ['é', '▁'], ['$x$', 'pad'], title='t', pads=[1]);"
        "q = draw.weights(torch.eye(64), n, title='t', pads=[1]);"
        "c = draw.curves({'a': ([1, 2], [3, 4])}, xlabel='x', ylabel='y');"
        "print(hashlib.sha256(b''.join(f.render('svg') for f in (p, p, q, c))).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        for environment in (os.environ | {"PYTHONHASHSEED": "7"}, os.environ | {"PYTHONHASHSEED": "8"})
    ]
    assert runs[0].stdout == runs[1].stdout and runs[0].stderr == runs[1].stderr == ""
    shown = draw.weights(torch.eye(2), ["é", "▁"], ["$x$", "pad"], title="t", pads=[1])
    many = draw.weights(torch.eye(64), ["é", "▁", *"ab" * 31], title="t", pads=[1])
    curve = draw.curves({"a": ([1, 2], [3, 4])}, xlabel="x", ylabel="y")
    content = b"".join(one.render("svg") for one in (shown, shown, many, curve))
    assert runs[0].stdout.strip() == hashlib.sha256(content).hexdigest()


def test_an_svg_says_what_it_shows() -> None:
    shown = draw.bars({'a "b" <c>': 1}, xlabel="x", title="T")
    root = ElementTree.fromstring(shown.render("svg"))
    assert root.get("role") == "img" and root.get("aria-label") == shown.alt == 'T: x: a "b" <c> 1.'
    escaped = draw.bars({r"\u65e5 \1": 1}, xlabel="x")  # an escaped token is no pattern
    assert ElementTree.fromstring(escaped.render("svg")).get("aria-label") == escaped.alt


def test_save_makes_the_folder_and_says_where_it_cannot(tmp_path: Path) -> None:
    shown = draw.bars({"a": 1}, xlabel="x")
    assert draw.save(shown, tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert draw.save(shown, str(tmp_path / "a.svg")).read_bytes().startswith(b"<?xml")
    with pytest.raises(OSError, match=r"cannot write .*a\.svg/b\.svg .*choose"):
        draw.save(shown, tmp_path / "a.svg" / "b.svg")
    with pytest.raises(ValueError, match=r"a\.jpg ends in '\.jpg'; .*\.svg or \.png"):
        draw.save(shown, "a.jpg")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """IPython as in a notebook; what is displayed."""
    shown: list[dict[str, str]] = []
    display = SimpleNamespace(display=lambda data, raw: shown.append(data))
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()), display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    return shown


def test_show_displays_an_image_with_escaped_alt_text(kernel: list, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, alt = draw.bars({"a": 1}, xlabel="x"), 'a "<b>" & c'
    draw.show(shown, alt=alt)
    monkeypatch.setattr(picture, "MAX_SVG", 10)
    draw.show(shown)
    own = Figure()
    own.add_subplot()
    draw.show(own, alt=alt)
    for bundle, kind, start in zip(kernel, ("svg+xml", "png", "png"), (b"<?xml", b"\x89PNG", b"\x89PNG"), strict=True):
        found = re.fullmatch(
            r'<img alt="([^"]*)" src="data:image/([^;]*);base64,([^"]*)" style="(.*)">', bundle["text/html"]
        )
        assert found and "<b>" not in found[1] and html.unescape(found[1]) == bundle["text/plain"] == alt
        assert found[2] == kind and base64.b64decode(found[3]).startswith(start)
        assert found[4] == "max-width:100%"


def test_show_prints_the_alt_text_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    draw.show(draw.bars({"a": 1}, xlabel="x"))
    draw.show(draw.bars({"a": 1}, xlabel="x"), alt="one bar")
    assert capsys.readouterr().out == "x: a 1.\none bar\n"


def test_a_cell_knows_its_words() -> None:
    assert Cell("weight", ".25", 0.25, "0.2501").words == "weight, 0.2501"
    assert Cell("may attend").words == "may attend"
    assert Cell("token", "Fermer").words == "token, Fermer"
    assert Grid([[Cell()]], ["a"], ["b"]).cells[0][0].words == ""
