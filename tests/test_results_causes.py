"""Causes in nats: each arm against its own reference, and nothing called clear that the seeds do not carry."""

import math
import statistics

import pandas as pd
import pytest
from causes_table import BITS, curves, table

from lab import shipped
from lab.results import causes


def costing(**costs: float):
    """A loss by arm, the same spread in each: costs {cause_arm: nats}."""
    return lambda cause, arm, seed: 6 + costs.get(f"{cause} {arm}", 0) + 0.01 * seed


FRAME = table(costing(**{"warmup none": 0.3, "rate 0.0003": 1.0, "eos ignored": 0.2, "dropout 0": -0.1}))


def test_a_difference_is_of_the_means_with_students_interval() -> None:
    a, b = [1.0, 1.1, 1.2], [1.5, 1.6, 1.8]
    found = causes.difference(a, b)
    pooled = (statistics.variance(a) + statistics.variance(b)) / 2
    reach = 2.776 * math.sqrt(pooled * 2 / 3)
    assert found.mean == pytest.approx(1.6333 - 1.1, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((found.mean - reach, found.mean + reach))
    assert found.clear and not causes.difference(a, [1.1, 1.15, 1.3]).clear
    assert causes.difference(b, a).mean == -found.mean


def test_more_seeds_say_more() -> None:
    few, many = (causes.difference([1.0, 1.2] * n, [1.1, 1.3] * n) for n in (1, 20))
    assert not few.clear and many.clear


def test_one_seed_says_nothing() -> None:
    found = causes.difference([1.0], [9.0, 9.1])
    assert not found.clear and found.low is None and "no interval" in str(found)
    with pytest.raises(ValueError, match="0 and 2 values"):
        causes.difference([], [1.0, 2.0])
    with pytest.raises(ValueError, match="degrees of freedom are 0"):
        causes.critical(0)


def test_each_group_has_its_own_reference_and_column() -> None:
    shifted = FRAME.copy()
    shifted.loc[shifted["cause"] == "base", "loss"] += 5  # of which rows and dropout know nothing
    for cause, arm, nats in (("eos", "ignored", 0.2), ("dropout", "0", -0.1), ("warmup", "none", 0.3 - 5)):
        assert causes.cost(shifted, cause, arm).mean == pytest.approx(nats)
    rows = FRAME.copy()
    rows.loc[rows["arm"] == "ignored", "rows_loss"] += 1
    assert causes.cost(rows, "eos", "ignored").mean == pytest.approx(1.2)
    assert causes.cost(rows, "eos", "ignored", column="loss").mean == pytest.approx(0.2)


def test_two_arms_of_one_cause() -> None:
    frame = table(costing(**{"context 256 padded": 0.4, "context 512 padded": 0.9}))
    assert causes.cost(frame, "context", "512 padded", "256 padded").mean == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no run of '1024 padded'"):
        causes.cost(frame, "context", "1024 padded")


def test_the_ranking_is_by_nats_in_every_unit() -> None:
    found = causes.ranking(FRAME)
    assert found["nats"].is_monotonic_decreasing and len(found) == 22  # 26 arms less four references
    first = found.iloc[0]
    assert (first["cause"], first["arm"], first["against"]) == ("rate", "0.0003", "base")
    assert first["nats"] == pytest.approx(1) and first["times perplexity"] == pytest.approx(math.e)
    assert first["bits per byte"] == pytest.approx(BITS) and first["perplexity"] == pytest.approx(
        math.exp(first["loss"])
    )
    assert set(found[found["clear"]]["arm"]) == {"0.0003", "none", "ignored", "0"}


def test_an_arm_without_its_reference_is_left_out() -> None:
    without = FRAME[FRAME["arm"] != "learned"]
    assert "eos" not in set(causes.ranking(without)["cause"])
    with pytest.raises(ValueError, match="no arm has a run"):
        causes.ranking(FRAME[FRAME["cause"] == "base"])


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=["one seed", "three"])
def test_the_pictures_say_what_they_show(seeds: tuple[int, ...]) -> None:
    frame = FRAME[FRAME["seed"].isin(seeds)]
    ranked = causes.ranked(frame)
    assert "0.0003 +1.000" in ranked.alt and len(ranked.as_frame()) == 22 + 7
    context = causes.context(frame)
    assert "512 padded 50%" in context.alt and "512 packed 100%" in context.alt
    assert set(context.as_frame()["series"]) == {"rows packed", "rows cut and padded"}
    rates = causes.rates(frame)
    assert len(rates.as_frame()) == 2 * 6 and "seed" in rates.as_frame()["series"][0]
    warmups = causes.warmups(frame, curves(frame))
    assert set(warmups.as_frame()["series"]) == {f"{n} of 1,024 steps" for n in ("0", "10", "51", "2,000")}
    for picture in (ranked, context, rates, warmups):
        assert picture.render("svg").startswith(b"<?xml")


def test_the_scale_is_said() -> None:
    assert "0.32M parameters" in causes.scale(FRAME) and "3 seeds" in causes.scale(FRAME)
    assert "0.52M positions of wiki2015" in causes.scale(FRAME)


def test_the_shipped_runs_can_be_ranked() -> None:
    try:
        frame = shipped.table("causes")
    except FileNotFoundError:
        pytest.skip("figures/data/causes.csv is not there")
    found = causes.ranking(frame)
    assert isinstance(found, pd.DataFrame) and len(found)
