"""ScalingExplorer: its numbers are the law's, its optimum that of a search, its warnings those of the law's runs."""

import html
import math
import re
import time
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from lab.canvas import THEMES
from lab.published import BESIROGLU_2024, HOFFMANN_2022, MUENNIGHOFF_2023
from lab.widgets import ScalingExplorer

LAWS = {"Besiroglu": BESIROGLU_2024, "Hoffmann": HOFFMANN_2022, "Muennighoff": MUENNIGHOFF_2023}


def made(**how):
    return ScalingExplorer(LAWS, **how)


def test_the_numbers_are_those_of_the_law():
    explorer = made(parameters=1e9, tokens=1e10)
    assert explorer.numbers["loss"] == pytest.approx(BESIROGLU_2024.loss(1e9, 1e10))
    assert explorer.numbers["flops"] == pytest.approx(6e19) and explorer.numbers["tokens_per_parameter"] == 10
    best = explorer.numbers["optimal_parameters"], explorer.numbers["optimal_tokens"]
    assert best == pytest.approx(BESIROGLU_2024.optimal(6e19))
    assert explorer.numbers["optimal_loss"] <= explorer.numbers["loss"]
    for words in ("1B parameters on 10B tokens, 10 per parameter", "6.00 × 10^19 FLOPs", "perplexity"):
        assert words in explorer.text
    assert f"perplexity {math.exp(explorer.numbers['loss']):.3g}" in explorer.text


def test_every_size_of_the_curve_has_the_same_flops_and_the_loss_of_the_law():
    frame = made(parameters=1e8, tokens=1e9).as_frame()
    for n, d, loss in frame.iloc[:, :3].to_numpy():
        assert 6 * n * d == pytest.approx(6e17) and loss == pytest.approx(BESIROGLU_2024.loss(n, d))
    assert frame.iloc[:, 2].min() == pytest.approx(BESIROGLU_2024.loss(*BESIROGLU_2024.optimal(6e17)))


def test_another_law_is_another_curve():
    explorer = made()
    before = explorer.numbers["loss"]
    explorer.set(law="Hoffmann")
    assert explorer.numbers["loss"] != before and "Hoffmann et al. 2022" in explorer.text


def test_repeats_are_those_of_the_law_that_knows_them():
    explorer = made(parameters=1e8, tokens=1e9, distinct=1e8).set(law="Muennighoff")
    assert explorer.numbers["loss"] == pytest.approx(MUENNIGHOFF_2023.loss(1e8, 1e9, 1e8))
    assert "100M tokens are distinct, so each is read 10 times" in explorer.text
    fresh = explorer.set(repeated=False).numbers["loss"]
    assert fresh == pytest.approx(MUENNIGHOFF_2023.loss(1e8, 1e9)) and "distinct" not in explorer.text
    assert "none is read twice" in explorer.set(repeated=True, distinct=12.0).text


def test_the_optimum_with_repeats_is_that_of_a_finer_search():
    explorer = made(parameters=1e8, tokens=1e9, distinct=1e8).set(law="Muennighoff")
    flops = explorer.numbers["flops"]
    sizes = [10 ** (6 + 4 * i / 20_000) for i in range(20_001)]
    lowest = min(MUENNIGHOFF_2023.loss(n, flops / (6 * n), 1e8) for n in sizes)
    assert explorer.numbers["optimal_loss"] == pytest.approx(lowest, abs=1e-6)
    assert explorer.numbers["optimal_loss"] > MUENNIGHOFF_2023.loss(*MUENNIGHOFF_2023.optimal(flops))


def test_controls_of_repeats_are_off_where_the_law_knows_none():
    explorer = made(distinct=1e7)
    assert explorer.controls["repeated"].disabled and explorer.controls["distinct"].disabled
    assert explorer.numbers["loss"] == pytest.approx(
        BESIROGLU_2024.loss(10 ** explorer.values["parameters"], 10 ** explorer.values["tokens"])
    )
    explorer.set(law="Muennighoff")
    assert not explorer.controls["repeated"].disabled and not explorer.controls["distinct"].disabled
    assert explorer.set(repeated=False).controls["distinct"].disabled


def test_outside_is_said_and_hatched_and_inside_is_not():
    explorer = made(parameters=1e9, tokens=2e10)
    assert "Within the runs" in explorer.text and "Outside" not in explorer.text
    explorer.set(parameters=6.0)
    assert "Outside the law, so a guess: 1M parameters, where its runs had 57M to 16.2B" in explorer.text
    assert "hatched" in explorer.page.value and explorer.as_frame()["outside the law"].any()
    unknown = ScalingExplorer({"one": replace(BESIROGLU_2024, span=None)})
    assert "what its runs ranged over is not known" in unknown.text and "hatched" not in unknown.page.value


def test_a_loss_above_that_of_guessing_is_called_so():
    assert "more than guessing costs" in made(parameters=1e4, tokens=1e5).text


@pytest.mark.parametrize("parameters", [4.0, 8.0, 12.0])
@pytest.mark.parametrize("tokens", [5.0, 9.0, 13.0])
def test_the_whole_range_of_the_sliders_is_drawn_within_the_paper(parameters, tokens):
    for law in LAWS:
        explorer = made().set(law=law, parameters=parameters, tokens=tokens, repeated=True, distinct=6.0)
        picture = ElementTree.fromstring(explorer.page.value)
        high = float(picture.get("viewBox").split()[3])
        drawn = [float(y) for path in re.findall(r' d="([^"]+)" fill="none"', explorer.page.value)
                 for y in re.findall(r"[ML]-?[\d.]+ (-?[\d.]+)", path)]  # fmt: skip
        assert min(drawn) >= 0 and max(drawn) <= high, (law, min(drawn), max(drawn))
        assert all(math.isfinite(value) for value in explorer.numbers.values())


def test_a_move_is_drawn_in_well_under_a_tenth_of_a_second():
    explorer = made(distinct=1e7).set(law="Muennighoff")
    seconds = []
    for step in range(9):
        start = time.process_time()
        explorer.set(parameters=round(6 + step / 20, 2), repeated=True)
        seconds.append(time.process_time() - start)
    assert sorted(seconds)[4] < 0.1


@pytest.mark.parametrize("theme", THEMES)
def test_page_still_twin_table_and_words_move_together(theme):
    explorer = made(theme=theme)
    page, words, frame = explorer.page.value, explorer.says.value, explorer.as_frame()
    explorer.controls["tokens"].value = 9.0
    assert explorer.page.value != page and explorer.says.value != words and not explorer.as_frame().equals(frame)
    picture = ElementTree.fromstring(explorer.page.value)
    assert picture.get("role") == "img" and explorer.lines[0] in picture.get("aria-label")
    assert f'fill="{THEMES[theme].paper}"' in explorer.page.value and len(picture.findall(".//{*}title")) > 20
    assert explorer.still().render("svg", theme) == explorer.picture.render("svg", theme)
    assert all(html.escape(line) in explorer.says.value for line in explorer.lines)
    assert all(label in explorer.settings() for label in ("log10 of parameters", "log10 of tokens", "law: Besiroglu"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"laws": {}}, "give {name: lab.published.Law}"),
        ({"laws": {"a": "Hoffmann"}}, "give {name: lab.published.Law}"),
        ({"laws": LAWS, "parameters": 1e3}, "parameters is 1000; the sliders go from 10k to 1T"),
        ({"laws": LAWS, "tokens": 1e14}, "tokens is 1e.14"),
        ({"laws": LAWS, "distinct": 0}, "distinct is 0"),
    ],
)
def test_it_refuses(how, message):
    with pytest.raises(ValueError, match=message):
        ScalingExplorer(**how)


def test_a_value_off_the_slider_is_named_and_moves_nothing():
    explorer = made()
    before = explorer.values
    with pytest.raises(ValueError, match="parameters is 13.0; it must be a number from 4.0 to 12.0"):
        explorer.set(tokens=9.0, parameters=13.0)
    assert explorer.values == before
