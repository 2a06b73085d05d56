"""The scaling pictures: each draws the numbers of its table, and says what the runs cannot justify."""

import math

import numpy as np
import pandas as pd
import pytest

from lab import published, scaling
from lab.published import HOFFMANN_2022, Law
from lab.results import predictions
from lab.results import scaling as pictures
from lab.results.source import made_by

LAW = Law(30.0, 900.0, 2.2, 0.30, 0.42)
WIDTHS = {32: (186_048, 50_880), 48: (315_936, 113_184), 64: (470_400, 200_064), 80: (726_880, 388_960)}
WIDTHS |= {96: (1_075_968, 670_464), 128: (1_727_488, 1_186_816)}
BUDGETS = (262_144, 524_288, 1_048_576, 2_097_152)


def ladder(widths=WIDTHS, budgets=BUDGETS, seeds=(0, 1), noise=0.004, law=LAW):
    rng, rows = np.random.default_rng(0), []
    for seed in seeds:
        for width, (total, body) in widths.items():
            for tokens in budgets:
                loss = law.loss(total, tokens) * math.exp(noise * rng.standard_normal())
                rows.append(
                    {
                        "run": f"d{width}-seed{seed}-{tokens // 1000}k",
                        "family": f"d{width}-seed{seed}",
                        "parameters": total,
                        "body_parameters": body,
                        "tokens": tokens,
                        "flops": 6.5 * total * tokens,
                        "loss": loss,
                        "seed": seed,
                        "corpus": "wiki2015 bpe-4096 87c0226669ae91ef",
                        "d_model": width,
                        "rate": 1e-3,
                        "context": 256,
                        "train_tokens": 37_772_354,
                    }  # fmt: skip
                )
    return pd.DataFrame(rows)


def drawn(picture):
    """It can be drawn on either paper, and has words and a table."""
    assert picture.alt.endswith(".") and len(picture.as_frame())
    return [picture.render("svg", theme) for theme in ("light", "dark")]


def test_the_source_names_file_corpus_and_seeds():
    words = made_by(ladder(), "ladder")
    assert "figures/data/ladder.csv, 48 runs" in words and "wiki2015 bpe-4096, seeds 0, 1" in words
    assert "seed 0." in made_by(ladder(seeds=(0,)), "ladder") and "87c0" not in words


# Counts


def test_counts_draw_both_counts_and_say_the_share():
    picture = pictures.counts({"16m": (16_090_880, 3_159_552), "117m": (124_439_808, 85_056_000)})
    frame = picture.as_frame()
    assert frame.loc["16m", "embeddings"] == 12_931_328 and frame.loc["117m", "share"] == pytest.approx(
        0.3165, abs=1e-4
    )
    assert "16m 3.16M of 16.1M (80% embeddings)" in picture.alt
    drawn(picture)
    assert [3_159_552] in [line.get_xdata().tolist() for line in picture.figure().axes[0].lines]


def test_a_ladder_is_counted_once_a_width():
    found = pictures.ladder_counts(ladder())
    assert list(found.values()) == list(WIDTHS.values()) and next(iter(found)) == "ladder, width 32"


@pytest.mark.parametrize(("sizes", "message"), [({}, "no model"), ({"a": (5, 6)}, r"a has .*\(5, 6\)")])
def test_counts_refuse(sizes, message):
    with pytest.raises(ValueError, match=message):
        pictures.counts(sizes)


# Curves


def test_curves_are_of_the_longest_run_of_each_size_and_the_first_seed():
    table = ladder()
    points = pd.DataFrame(
        [
            {"run": run, "tokens": tokens * share, "training_loss": seed + share}
            for run, tokens, seed in table[["run", "tokens", "seed"]].itertuples(index=False)
            for share in (0.1, 0.2, 0.5, 1.0)
        ]
    )
    picture = pictures.curves(table, points)
    frame = picture.as_frame()
    assert frame["series"].nunique() == len(WIDTHS) and frame.iloc[:, 1].max() == BUDGETS[-1]
    assert sorted(frame.iloc[:, 2].unique()) == [0.5, 1.0]  # seed 0, without its first descent
    drawn(picture)


def test_ends_are_means_of_seeds_with_their_range_and_one_point_has_no_line():
    table = ladder().query("not (d_model == 128 and tokens > 262144)")
    frame = pictures.ends(table).as_frame()
    one = frame[(frame["series"] == "186k parameters") & (frame["what"] == "points")].iloc[0]
    seeds = table[(table["d_model"] == 32) & (table["tokens"] == BUDGETS[0])]["loss"]
    assert one.iloc[2] == pytest.approx(seeds.mean())
    assert (one["low"], one["high"]) == pytest.approx((seeds.min(), seeds.max()))
    alone = frame[frame["series"] == "1.73M parameters"]
    assert list(alone["what"]) == ["points"]
    drawn(pictures.ends(table))


def test_ends_of_one_seed_have_no_range():
    picture = pictures.ends(ladder(seeds=(0,)))
    assert "low" not in picture.as_frame()
    drawn(picture)


def test_ends_against_flops_have_the_lowest_so_far():
    picture = pictures.ends(ladder(), "flops")
    frame = picture.as_frame()
    assert "lowest so far" in set(frame["series"]) and "The size of the lowest loss" in picture.alt
    drawn(picture)
    with pytest.raises(ValueError, match="against is 'steps'"):
        pictures.ends(ladder(), "steps")
    assert "lowest so far" not in set(pictures.ends(ladder(budgets=BUDGETS[:1]), "flops").as_frame()["series"])


def test_the_envelope_is_below_every_run_and_never_rises():
    table = ladder(noise=0.0)
    found = pictures.envelope(table)
    assert (np.diff(found["loss"]) <= 0).all() and (np.diff(found["flops"]) > 0).all()
    for flops, loss in table[["flops", "loss"]].to_numpy():
        later = found[found["flops"] >= flops]
        assert not len(later) or later["loss"].iloc[0] <= loss * (1 + 1e-9)


def test_interpolation_goes_through_the_runs_and_not_beyond_them():
    table = ladder(noise=0.0, seeds=(0,))
    mine = table[table["d_model"] == 32].sort_values("flops")
    flops = np.array([*mine["flops"], mine["flops"].max() * 1.1])
    found = pictures.interpolated(table[table["d_model"] == 32], flops)
    assert list(found["loss"]) == pytest.approx(list(mine["loss"]))
    assert list(found["tokens"]) == pytest.approx(list(mine["tokens"]))


# Fits


def test_a_fit_is_drawn_with_its_band_over_all_its_runs():
    table = ladder()
    found = scaling.fit(scaling.read(table), bootstraps=40)
    picture = pictures.fitted(found, note=made_by(table, "ladder"))
    frame = picture.as_frame()
    points, curve = (frame[frame["what"] == what] for what in ("points", "line"))
    assert sorted(points.iloc[:, 2]) == pytest.approx(sorted(table["loss"])) and curve["series"].nunique() == len(
        BUDGETS
    )
    one = curve[curve["series"] == "262k tokens"].iloc[7]
    low, high = found.band(one.iloc[1], 262_144.0)
    assert one.iloc[2] == pytest.approx(found.loss(one.iloc[1], 262_144.0)[0])
    assert (one["low"], one["high"]) == pytest.approx((low[0], high[0]))
    assert "alpha" in picture.alt and "95%" in picture.alt
    drawn(picture)
    assert pictures.fitted(found, "tokens").as_frame()["series"].nunique() == len(WIDTHS)


def test_a_fit_without_an_interval_has_no_band_and_says_why():
    found = scaling.fit(scaling.read(ladder(budgets=BUDGETS[:3])), bootstraps=40)
    picture = pictures.fitted(found)
    assert "low" not in picture.as_frame().query("what == 'curve'").dropna(axis=1)
    assert "No band: 3 numbers of tokens determine 3 constants" in picture.alt
    drawn(picture)


def test_a_form_of_one_variable_has_one_curve():
    table = ladder(budgets=BUDGETS[:1])
    found = scaling.fit(scaling.read(table, size="body"), "size", bootstraps=20)
    picture = pictures.fitted(found, count="body")
    assert picture.as_frame()["series"].nunique() == 1 and "parameters (body)" in picture.alt
    with pytest.raises(ValueError, match="by is 'tokens'; L = E . A / N.alpha has parameters"):
        pictures.fitted(found, "tokens")


# At equal FLOPs


def test_at_equal_flops_four_sizes_share_them_and_tokens_fit():
    sample = pictures.at_equal_flops(ladder(noise=0.0))
    assert 1 <= len(np.unique(sample.flops)) <= 3
    for flops in np.unique(sample.flops):
        here = sample.where(sample.flops == flops)
        assert len(here) >= 4 and here.flops == pytest.approx(6.5 * here.parameters * here.tokens, rel=1e-6)
        # A power law in D is no straight line; what that costs is below a hundredth.
        assert here.loss == pytest.approx(
            [LAW.loss(*run) for run in zip(here.parameters, here.tokens, strict=True)], rel=0.01
        )
    with pytest.raises(ValueError, match="nowhere have 4 sizes the same FLOPs"):
        pictures.at_equal_flops(ladder(budgets=BUDGETS[:1]))


def test_parabolas_mark_a_lowest_point_only_between_the_sizes():
    flops = 1e20
    true = HOFFMANN_2022.optimal(flops)[0]
    sizes = true * np.geomspace(1 / 4, 4, 7)
    losses = np.array([HOFFMANN_2022.loss(n, flops / (6 * n)) for n in sizes])
    sample = scaling.runs(sizes, flops / (6 * sizes), losses, flops=np.full(7, flops))
    frame = pictures.parabolas(sample).as_frame()
    lowest = frame[frame["series"] == "lowest of a parabola"].iloc[0]
    assert lowest.iloc[1] == pytest.approx(true, rel=0.03)
    beside = sample.where(sizes > 1.2 * true)
    picture = pictures.parabolas(beside)
    assert "lowest of a parabola" not in set(picture.as_frame()["series"])
    assert "1 of 1 parabolas" in picture.alt
    drawn(picture)


def test_the_bias_is_that_of_the_library():
    picture = pictures.bias(HOFFMANN_2022, 1e21, 32)
    true, found = (
        picture.as_frame().set_index("series").loc[f"lowest of the {what}"].iloc[0] for what in ("law", "parabola")
    )
    assert found / true == pytest.approx(scaling.parabola_bias(HOFFMANN_2022, [1e21, 1e22], width=32).found[0] / true)
    assert "1.093 times" in picture.title
    drawn(picture)
    with pytest.raises(ValueError, match="width is 1"):
        pictures.bias(HOFFMANN_2022, 1e21, 1)


def test_bias_by_width_grows_and_is_none_for_a_symmetric_law():
    frame = pictures.bias_by_width({"even": Law(400, 400, 1.7, 0.3, 0.3), "Hoffmann": HOFFMANN_2022}, 1e21).as_frame()
    even, uneven = (frame[frame["series"] == name].iloc[:, 2].to_numpy() for name in ("even", "Hoffmann"))
    assert even == pytest.approx(1, abs=1e-6) and (np.diff(uneven) > 0).all() and uneven[-1] > 1.05


# Predictions


def registered(**changes):
    row = {"run": "big", "parameters": 5e6, "tokens": 1e6, "predicted": 5.0, "low": 4.9, "high": 5.1, "level": 0.95,
           "outside": "5M parameters, 1.3 times above the runs fitted", "reason": None}  # fmt: skip
    return pd.DataFrame([row | changes])


@pytest.mark.parametrize(
    ("loss", "verdict"), [(5.05, "inside"), (4.9, "inside"), (5.2, "outside, above"), (4.5, "outside, below")]
)
def test_a_prediction_is_judged_by_its_interval(loss, verdict):
    measured = pd.DataFrame({"run": ["big"], "loss": [loss]})
    assert predictions.verdicts(registered(), measured)["verdict"].tolist() == [verdict]
    picture = predictions.prediction(registered(), measured)
    assert verdict in picture.alt and loss in picture.as_frame().iloc[:, 2].tolist()
    drawn(picture)


@pytest.mark.parametrize("measured", [None, pd.DataFrame({"run": ["other"], "loss": [5.0]})])
def test_a_run_that_is_not_there_yet_is_said_and_not_drawn(measured):
    picture = predictions.prediction(registered(), measured)
    assert "big: not run yet" in picture.alt and set(picture.as_frame()["what"]) == {"points"}
    assert len(picture.as_frame()) == 1


def test_a_prediction_without_interval_is_neither_right_nor_wrong():
    none = registered(low=math.nan, high=math.nan, reason="3 sizes determine 3 constants")
    measured = pd.DataFrame({"run": ["big"], "loss": [5.0]})
    assert predictions.verdicts(none, measured)["verdict"][0] == (
        "no interval was predicted: 3 sizes determine 3 constants"
    )
    assert "no interval" in predictions.prediction(none, measured).alt


# The review's sizes


def test_what_laws_expect_stands_beside_what_was_measured():
    table = ladder(law=HOFFMANN_2022, noise=0.0)
    found = predictions.expected(
        table, {"Hoffmann": HOFFMANN_2022, "fit": scaling.fit(scaling.read(table), bootstraps=0)}
    )
    assert list(found["Hoffmann"]) == pytest.approx(list(found["measured"]))
    assert list(found["fit"]) == pytest.approx(list(found["measured"]), rel=1e-3)


def test_the_common_budget_is_the_largest_that_most_sizes_have():
    table = ladder().query("not (d_model == 128 and tokens > 524288)")
    assert predictions.common_tokens(table) == 524_288


def test_measured_points_and_laws_are_drawn_and_guessing_too():
    table = ladder()
    laws = {"Hoffmann": HOFFMANN_2022, "Besiroglu": published.BESIROGLU_2024}
    picture = predictions.beside_laws(table, laws, 4096)
    frame = picture.as_frame()
    assert set(frame["series"]) == {"measured", *laws, "guessing, ln 4,096"}
    assert set(frame[frame["series"] == "measured"].iloc[:, 2]) == set(table[table["tokens"] == BUDGETS[-1]]["loss"])
    assert (frame[frame["series"] == "measured"]["what"] == "points").all()  # no line through them
    assert frame[frame["series"].str.startswith("guessing")].iloc[0, 2] == pytest.approx(math.log(4096))
    drawn(picture)


def test_what_differs_beside_the_size_is_said():
    table = ladder()
    assert predictions.recipes(table) == ""
    table.loc[table["d_model"] == 32, "rate"] = 6e-4
    first = published.short(table["parameters"].min())
    assert f"{first} 0.0006, 256; " in predictions.recipes(table.sort_values("parameters"))
    for picture in (predictions.review_sizes(table), predictions.review_tokens(table)):
        assert f"{first} 0.0006, 256; " in " ".join(text.get_text() for text in picture.figure().texts)


def test_units_of_another_tokenizer_are_bridged_by_bytes():
    """A ladder whose tokens hold half as many bytes: as many bytes are twice the tokens, and half the nats each."""
    table = ladder(noise=0.0).assign(bits_per_byte=lambda t: t["loss"] / math.log(2) / 3)
    sizes = ladder(noise=0.0).assign(bits_per_byte=lambda t: t["loss"] / math.log(2) / 6)
    found = scaling.fit(scaling.read(table), bootstraps=0)
    bits = predictions.in_bits_per_byte(sizes, table, found)
    one = bits.iloc[0]
    expected = float(found.loss(one["parameters"], 2.0 * one["tokens"])[0]) / math.log(2) / 3
    assert one["expected"] == pytest.approx(expected)
    assert one["measured"] == pytest.approx(sizes["bits_per_byte"].max())


def test_committed_figures_take_tables_alone():
    table = ladder()
    assert pictures.by_flops(table).alt == pictures.ends(table, "flops").alt
    assert pictures.ladder_fit(table).title.startswith("L = E + A")
    assert pictures.ladder_fit(ladder(budgets=BUDGETS[:3])).title.startswith("L = ((N_c")
    both = pd.concat([table, table.assign(corpus="wikitext-2 gpt2 0")])
    assert len(predictions.review_sizes(both).as_frame().query("series == 'measured'")) == 12
    assert predictions.review_tokens(both).as_frame().equals(predictions.review_tokens(table).as_frame())
