"""The pictures of the shipped EOS runs: what they read, what they say, and what they refuse."""

import pandas as pd
import pytest

from lab import shipped
from lab.experiments.causes import arms
from lab.results import endings

AT_END = {"learned": (0.2, 0.3), "ignored": (1e-6, 2e-6), "cut off": (0.05, 0.1)}
LENGTH = {"learned": (60.0, 70.0), "ignored": (127.0, 127.0), "cut off": (110.0, 100.0)}


@pytest.fixture
def table() -> pd.DataFrame:
    """Two seeds of each arm, in an order that is not that of ARMS, and a run of another cause."""
    rows = [{"run": "base-base-seed0", "arm": "base", "cause": "base", "seed": 0}]
    for arm in ("ignored", "cut off", "learned"):
        for seed in (1, 0):
            rows.append(
                {"run": f"eos-{arm}-{seed}", "arm": arm, "cause": "eos", "seed": seed, "context": 128, "steps": 1024}
                | {"eos_at_end": AT_END[arm][seed], "eos_elsewhere": 0.001, "generated_tokens": LENGTH[arm][seed]}
                | {"ended": 0.0 if arm == "ignored" else 0.5, "loss": 5.0 + seed, "rows_loss": 5.5, "batch_tokens": 512}
                | {"corpus": "wiki2015 bpe-4096 0123", "body_parameters": 113184, "training_loss": 5.1}
            )
    return pd.DataFrame(rows)


@pytest.fixture
def curves(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for run in table.to_dict("records"):
        for step in (64, 128, 256):
            row = {"run": run["run"], "step": step, "tokens": step * 100 + run["seed"], "training_loss": 6.0}
            if step > 64:  # measured at validations alone
                row |= {name: (run[name] * step / 256) for name in endings.MEASURED}
            rows.append(row)
    return pd.DataFrame(rows)


def test_the_arms_are_those_of_the_experiment() -> None:
    planned = {arm["arm"]: arm["data"] for arm in arms() if arm["cause"] == "eos"}
    assert list(planned) == list(endings.ARMS)
    assert f"rows of {planned['cut off'].cut} tokens" in endings.ARMS["cut off"]


def test_runs_are_in_the_order_of_the_arms_and_of_the_seeds(table: pd.DataFrame) -> None:
    found = endings.runs(table)
    assert list(zip(found["arm"], found["seed"], strict=True))[:3] == [("learned", 0), ("learned", 1), ("ignored", 0)]
    assert set(found["cause"]) == {"eos"}


def test_a_table_without_such_runs_says_how_to_measure_them(table: pd.DataFrame) -> None:
    for missing in (table[table["cause"] == "base"], table.drop(columns="eos_at_end")):
        with pytest.raises(ValueError, match="no run of the cause 'eos'; measure them with `python -m lab experiment"):
            endings.runs(missing)


def test_an_unknown_arm_is_named(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="'doubled'; the arms are learned, ignored, cut off"):
        endings.runs(table.replace({"arm": {"ignored": "doubled"}}))


def test_along_takes_the_range_of_the_seeds_at_each_validation(table: pd.DataFrame, curves: pd.DataFrame) -> None:
    found = endings.along(table, curves)
    part = found[(found["arm"] == "cut off") & (found["quantity"] == "eos_at_end")].set_index("step")
    assert list(part.index) == [128, 256]
    low, high = AT_END["cut off"]
    assert part.loc[256, ["low", "mean", "high"]].tolist() == pytest.approx([low, (low + high) / 2, high])
    assert part.loc[128, "tokens"] == 12_800.5 and part.loc[256, "seeds"] == 2


def test_curves_without_the_measurement_are_refused(table: pd.DataFrame, curves: pd.DataFrame) -> None:
    for without in (curves.drop(columns=list(endings.MEASURED)), curves[curves["step"] == 64]):
        with pytest.raises(ValueError, match="no measurement of EOS along these runs"):
            endings.along(table, without)


def test_the_probability_is_drawn_for_each_arm_and_place(table: pd.DataFrame, curves: pd.DataFrame) -> None:
    picture = endings.probability(table, curves)
    drawn = picture.as_frame()
    assert drawn["series"].nunique() == 7 and {"low", "high"} <= set(drawn)
    even = drawn[drawn["series"].str.startswith("1 / vocabulary")]["mean probability of EOS"]
    assert even.tolist() == [1 / 4096, 1 / 4096]
    assert "learned 0.25; ignored (pad = EOS) 1.5e-06; cut off (rows of 32 tokens) 0.075" in picture.alt
    axes = picture.figure().axes[0]
    assert axes.get_yscale() == "log" and "tokens" in axes.get_xlabel()


def test_the_lengths_stand_against_the_share_that_ended(table: pd.DataFrame) -> None:
    picture = endings.lengths(table)
    drawn = picture.as_frame().set_index("series")
    ignored = drawn.loc["ignored (pad = EOS)"]
    assert (ignored["tokens of a generated row, mean"] == 127).all()
    assert (ignored["rows that ended by themselves, %"] == 0).all()
    assert "learned: 65 tokens, 50 % ended" in picture.alt and "the limit, 127 tokens" in set(drawn.index)


def test_one_arm_alone_is_drawn_without_the_others(table: pd.DataFrame, curves: pd.DataFrame) -> None:
    few = table[table["arm"].isin(["base", "learned"]) & (table["seed"] == 0)]
    assert endings.probability(few, curves).as_frame()["series"].nunique() == 3
    assert "causes.csv, 1 run of" in endings.foot(endings.runs(few)) and "seed 0." in endings.foot(endings.runs(few))


def test_the_summary_has_the_mean_of_the_seeds(table: pd.DataFrame) -> None:
    found = endings.summary(table)
    assert list(found.index) == list(endings.ARMS)
    assert found.loc["learned", "loss"] == 5.5 and found.loc["learned", "seeds"] == 2


def test_the_shipped_tables_can_be_drawn() -> None:
    try:
        endings.runs()
    except ValueError:
        pytest.skip("the shipped table holds no run of the cause 'eos'")
    assert len(endings.probability().as_frame()) and len(endings.lengths().as_frame())
    assert shipped.path("causes").name in endings.foot(endings.runs())
