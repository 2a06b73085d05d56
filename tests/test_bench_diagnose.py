"""`lab bench diagnose` times every check that was asked, and its memory is that of the model and what comes beside."""

import json
from pathlib import Path

import pytest

from lab import bench_diagnose, checks

TINY = {"vocab_size": 90, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bench_diagnose.SIZES, "tiny", TINY)
        return bench_diagnose.measured("tiny")


def test_every_check_that_was_asked_is_timed_slowest_first(result):
    seconds = result["seconds"]
    asked = {check.id for check in checks.all() if not check.opt_in}
    stopped = {name for name, why in result["report"]["skipped"].items() if why.startswith("rests on")}
    assert set(seconds) == set(result["extra_bytes"]) == asked - stopped
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)
    assert 0 < sum(seconds.values()) <= result["total_seconds"]


def test_the_model_is_healthy_and_counted_once(result):
    # Its generate() leaves the dropout of a model in train mode on: true, and no fault of this model's.
    assert {finding["check"] for finding in result["report"]["findings"]} <= {"generates-with-dropout"}
    assert not result["report"]["errors"]
    assert 4 * result["parameters"] <= result["model_bytes"] < 4.2 * result["parameters"]


def test_what_is_shown_is_what_was_measured(result):
    lines = bench_diagnose.shown(result).splitlines()
    assert f"{result['parameters']:,} parameters" in lines[0] and f"{result['total_seconds']:.1f} s" in lines[0]
    slowest = next(iter(result["seconds"]))
    assert lines[4].split()[0] == slowest and "0 errors" in lines[2]


def test_diagnose_is_put_back():
    from lab import diagnosis

    assert diagnosis.put.__module__ == "lab.diagnosis"


def test_a_fresh_process_measures_and_the_json_is_written(tmp_path, capsys):
    path = tmp_path / "deep" / "diagnose.json"
    (written,) = bench_diagnose.run(("3m",), path, threads=1)
    assert json.loads(path.read_text()) == [written] and written["machine"]["threads"] == 1
    assert 2.5e6 < written["parameters"] < 3.5e6 and "3,2" in capsys.readouterr().out


def test_an_unknown_size_is_named():
    with pytest.raises(ValueError, match="unknown size '7b'.*3m, 124m"):
        bench_diagnose.run(("7b",))
