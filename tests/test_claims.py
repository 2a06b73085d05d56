"""The claims table: verdicts follow from numbers, commands work, and the committed file is what the code makes."""

import shlex
from collections.abc import Iterator

import pytest
import typer
from causes_table import table
from test_results_causes import costing
from typer.testing import CliRunner

from lab import claims, experiments
from lab.claims import arithmetic, base, quoted, runs, tried
from lab.claims.pictures import by_size
from lab.cli import app
from lab.results.causes import Difference

SHIPPED = claims.claims()
BARE = {"causes": None, "ladder": None, "sizes": None}
WITHOUT_RUNS = claims.claims(BARE)


def named(found: list[claims.Claim], text: str) -> claims.Claim:
    (one,) = [claim for claim in found if text in claim.claim]
    return one


def test_the_committed_table_is_what_the_code_makes() -> None:
    assert claims.PATH.read_bytes() == claims.as_csv(SHIPPED).encode()


def test_the_columns_are_the_six() -> None:
    assert list(claims.table().columns) == ["claim", "source", "measured", "unit", "verdict", "command"]
    assert len(claims.table()) == len(SHIPPED) and set(claims.table()["verdict"]) <= set(claims.VERDICTS)


def test_no_claim_stands_twice() -> None:
    assert len({one.claim for one in SHIPPED}) == len(SHIPPED)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("16M params (d=256", "does not hold"),
        ("GPT-2 Small: 117M", "does not hold"),
        ("7x smaller", "does not hold"),
        ("context 512: ~45-50M params", "holds"),
        ("118M tokens", "holds"),
        ("WikiText-2 (~2M tokens)", "unit error"),
        ("better sized", "does not hold"),
        ("GPT-2 Small, WikiText-103", "holds"),
        ("twice GPT-2's", "unit error"),
        ("already struggles", "does not hold"),
        ("Option C, ~117M", "unit error"),
        ("up to 1063", "does not hold"),
        ("Lower initial", "does not hold"),
        ("Transformer paper", "holds"),
        ("padding mask", "does not hold"),
        ("model config", "holds"),
        ("much better perplexity", "does not hold"),
    ],
)
def test_what_arithmetic_says_needs_no_run(text: str, verdict: str) -> None:
    assert named(WITHOUT_RUNS, text).verdict == verdict


def commands() -> Iterator[str]:
    yield from dict.fromkeys(one.command for one in SHIPPED)


@pytest.mark.parametrize("line", commands())
def test_every_command_is_understood(line: str) -> None:
    python, flag, lab, name, *rest = shlex.split(line)
    assert (python, flag, lab) == ("python", "-m", "lab")
    command = typer.main.get_command(app).commands[name]
    given = command.make_context(name, list(rest)).params  # raises for an option that is not there
    if name == "experiment":
        plans = experiments.plans_of(given["name"], given["device"])
        assert experiments.chosen(plans, given["only"] or ())
    if name == "claims" and given["only"]:
        assert any(one.command == line for one in claims.matching(SHIPPED, given["only"]))
    if name == "size":
        result = CliRunner().invoke(app, [name, *rest])
        assert result.exit_code == 0, result.output
        sized = [one.measured for one in SHIPPED if one.command == line]
        assert sized and result.output.strip()


def test_the_numbers_of_a_row_are_those_of_its_command() -> None:
    result = CliRunner().invoke(app, ["size", "--preset", "reported-16m", "--preset", "16m"])
    for number in ("15,040,256", "2,108,928", "16,090,880"):
        assert number in result.output and number in named(SHIPPED, "16M params").measured


LOW, NONE, HIGH = (
    Difference(-0.2, -0.3, -0.1, (3, 3)),
    Difference(0.0, -0.02, 0.02, (3, 3)),
    Difference(0.2, 0.1, 0.3, (3, 3)),
)
WIDE = Difference(0.1, -0.1, 0.3, (3, 3))


@pytest.mark.parametrize(
    ("found", "costs", "gains"),
    [
        (HIGH, "holds", "does not hold"),
        (LOW, "does not hold", "holds"),
        (NONE, "does not hold", "does not hold"),
        (WIDE, "not tested", "not tested"),
        (Difference(5.0, None, None, (1, 1)), "not tested", "not tested"),
        (None, "not tested", "not tested"),
    ],
)
def test_a_verdict_on_runs_follows_from_their_interval(found: Difference | None, costs: str, gains: str) -> None:
    assert (base.costs(found), base.gains(found)) == (costs, gains)


def test_a_perplexity_without_a_unit_is_read_in_both() -> None:
    assert base.in_both_units((30, 40), (35, 35), (36, 39)) == "holds"
    assert base.in_both_units((30, 40), (35, 35), (60, 80)) == "unit error"
    assert base.in_both_units((30, 40), (20, 24), (36, 44)) == "unit error"
    assert base.in_both_units((30, 40), (70, 70), (122, 167)) == "does not hold"
    assert base.in_both_units((30, 40), (10, 12), (13, 16)) == "does not hold"


def test_a_count_holds_within_a_twentieth() -> None:
    assert base.counted(104, 100) == "holds" and base.counted(106, 100) == base.counted(94, 100) == "does not hold"
    assert base.counted(44.9, 45, 50) == "holds"
    assert base.in_either(2, {"words": 2.05, "tokens": 2.4}) == "unit error"
    assert base.in_either(2, {"words": 2.05, "tokens": 1.95}) == "holds"


def test_a_row_is_whole() -> None:
    with pytest.raises(ValueError, match="'perhaps'"):
        claims.Claim("a", "b", "c", "d", "perhaps", "e")
    with pytest.raises(ValueError, match="measured of the claim 'a'"):
        claims.Claim("a", "b", " ", "d", "holds", "e")


MEASURED = ["d_ff should", "at least 512", "No warmup", "2,000 steps is", "6e-4 is better", "EOS learning", "eval mode"]


@pytest.mark.parametrize("text", MEASURED)
@pytest.mark.parametrize("frame", [None, table(seeds=(0,))], ids=["no runs", "one seed"])
def test_what_is_not_measured_is_not_tested(text: str, frame: object) -> None:
    one = named(claims.claims(BARE | {"causes": frame}), text)
    assert one.verdict == "not tested" and ("no run" in one.measured or "one seed each" in one.measured)


@pytest.mark.parametrize(
    ("text", "arm", "sign"),
    [
        ("d_ff should", "d_ff 2x, same width", 1),
        ("at least 512", "context 512 packed", -1),
        ("long-range", "context 512 padded", -1),
        ("No warmup", "warmup none", 1),
        ("2,000 steps is", "warmup 2000 steps", -1),
        ("6e-4 is better", "rate 0.0006", -1),
        ("EOS learning", "eos ignored", 1),
        ("eval mode", "dropout 0.2, stuck in eval", 1),
    ],
)
def test_a_verdict_turns_with_its_arm(text: str, arm: str, sign: int) -> None:
    for nats in (0.3, -0.3):
        frame = table(costing(**{arm: nats}))
        one = named(claims.claims(BARE | {"causes": frame}), text)
        other = "not tested" if text == "long-range" else "does not hold"
        assert one.verdict == ("holds" if nats * sign > 0 else other)
        assert f"{nats:+.3f} nats" in one.measured and "at this scale (0.32M parameters" in one.measured


def test_a_run_of_the_size_gives_its_own_verdict() -> None:
    import pandas as pd

    row = {"run": "reported-16m-wikitext-2", "corpus": "wikitext-2 gpt2 01", "tokens": 24e6, "epochs": 9.7, "loss": 3.6,
           "perplexity": 36.0, "bits_per_byte": 1.2}  # fmt: skip
    for perplexity, verdict in ((36, "unit error"), (130, "does not hold"), (20, "unit error"), (27, "unit error")):
        found = claims.claims(BARE | {"sizes": pd.DataFrame([row | {"perplexity": perplexity}])})
        word = perplexity ** (quoted.VALIDATION_TOKENS / quoted.VALIDATION_WORDS)
        expected = verdict if perplexity == 130 or 30 <= perplexity <= 40 or 30 <= word <= 40 else "does not hold"
        assert named(found, "Option B, WikiText-2").verdict == expected
        assert f"perplexity {perplexity} per token" in named(found, "Option B, WikiText-2").measured
    early = claims.claims(BARE | {"sizes": pd.DataFrame([row | {"epochs": 2.0}])})
    assert named(early, "Option B, WikiText-2").verdict == "not tested"
    assert named(early, "16M on WikiText-103").verdict == "not tested"


def test_slopes_of_the_ladder_are_those_of_the_runs() -> None:
    import numpy as np
    import pandas as pd

    runs_ = [(n, d, 9 - 0.1 * np.log2(n) - 0.2 * np.log2(d)) for n in (1e5, 2e5, 8e5) for d in (1e6, 4e6)]
    frame = pd.DataFrame(runs_, columns=["parameters", "tokens", "loss"])
    said = runs.slopes({"ladder": frame})
    assert "by -0.10 nats, one of the tokens by -0.20" in said
    assert "not run far enough" in runs.slopes({"ladder": frame[frame["parameters"] < 5e5]})


def test_units_are_those_of_the_kit() -> None:
    low, high = quoted.per_word(70)
    assert low == pytest.approx(122.4, abs=0.1) and high == pytest.approx(167.3, abs=0.1)
    assert quoted.per_token(high)[0] == pytest.approx(70) and quoted.per_token(low)[1] == pytest.approx(70)
    assert arithmetic.between((20.2, 24.6)) == "20 to 25" and arithmetic.between((20.2, 20.3)) == "20"


def test_what_is_tried_at_once_can_come_out_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried.same_training("right") and not tried.same_training("left")
    assert tried.heads_are_in_the_weights() == (29, False)
    monkeypatch.setattr(tried, "same_training", lambda side: False)
    assert named(list(tried.rows()), "padding mask").verdict == "holds"


def test_wikitext_counts_are_those_of_the_text() -> None:
    try:
        found = quoted.recount()
    except FileNotFoundError:
        pytest.skip("WikiText-2 or GPT-2's vocabulary is in no place that is asked")
    assert found == quoted.COUNTS


def test_the_command_prints_filters_and_writes(tmp_path) -> None:
    result = CliRunner().invoke(app, ["claims", "--only", "unit error"])
    assert result.exit_code == 0 and "UNIT ERROR: " in result.output and "DOES NOT HOLD" not in result.output
    assert "$ python -m lab" in result.output
    result = CliRunner().invoke(app, ["claims", "--out", str(tmp_path / "new" / "claims.csv")])
    assert result.exit_code == 0 and (tmp_path / "new" / "claims.csv").read_text() == claims.as_csv(SHIPPED)
    result = CliRunner().invoke(app, ["claims", "--only", "no such claim"])
    assert result.exit_code and "unknown claim" in str(result.exception)


def test_the_table_that_is_not_there_names_its_command(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="lab claims --out"):
        claims.table(tmp_path / "claims.csv")


def test_the_picture_of_sizes_holds_both_readings() -> None:
    picture = by_size()
    assert "reported-16m 70 to 70 is 122 to 167 per word" in picture.alt
    frame = picture.as_frame()
    assert len(frame) == 3 + 3 + sum("WikiText-2" not in one.name and one.parameters is not None for one in quoted.ALL)
