"""The battery in somebody's test suite: assert_healthy, and one test a check."""

import subprocess
import sys

import pytest
from foreign import PAD, TorchTransformer, pairs_batch

import lab
from lab import checks

pytest_plugins = ["pytester"]


def broken():
    """Reads its left pads in the decoder."""
    return lab.Subject(TorchTransformer("source memory"), pairs_batch("left"), pad_id=PAD)


def healthy():
    return lab.Subject(TorchTransformer(), pairs_batch("left"), pad_id=PAD)


ONLY = ["padding-crash", "attends-to-pads", "stuck-in-eval"]


def test_the_healthy_passes_and_its_report_comes_back():
    report = lab.assert_healthy(healthy(), only=ONLY)
    assert report.passed == ONLY[:2] and list(report.skipped) == ONLY[2:]


def test_the_broken_fails_with_the_report():
    with pytest.raises(AssertionError, match=r"(?s)P2 or worse.*\[P2\] padded target.*foreign.py lines"):
        lab.assert_healthy(broken(), only=ONLY)


def test_what_is_not_asked_does_not_fail():
    lab.assert_healthy(broken(), only=ONLY, fail_on="P1")
    lab.assert_healthy(broken(), only=ONLY, skip=["attends-to-pads"])
    baseline = lab.diagnose(broken(), only=ONLY).baseline()
    assert lab.assert_healthy(broken(), only=ONLY, baseline=baseline).known


def test_a_model_and_its_batch_will_do():
    lab.assert_healthy(TorchTransformer(), pairs_batch(), only=["padding-crash"])


def test_a_wrong_severity_is_refused_before_the_work():
    with pytest.raises(ValueError, match="fail_on is 'P7'"):
        lab.assert_healthy(None, fail_on="P7")


FILE = """
import lab
from foreign import PAD, TorchTransformer, pairs_batch

made = []
ONLY = ["padding-crash", "attends-to-pads", "stuck-in-eval"]

def broken():
    made.append(1)
    return lab.Subject(TorchTransformer("source memory"), pairs_batch("left"), pad_id=PAD)

test_broken = lab.each_check(broken, only=ONLY)
test_lenient = lab.each_check(broken, only=ONLY, fail_on="P0")

@lab.each_check
def test_decorated():
    "What it is for."
    raise KeyError("in the maker")

def test_made_once():
    assert len(made) == 2
"""


def test_one_test_a_check(pytester):
    pytester.makepyfile(FILE)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-v", "-rs", "--tb=line")
    result.stdout.fnmatch_lines(
        [
            "*test_broken?padding-crash? PASSED*",
            "*test_broken?attends-to-pads? FAILED*",
            "*test_broken?stuck-in-eval? SKIPPED*",
            "*test_lenient?attends-to-pads? PASSED*",
            "*test_decorated?padding-crash? FAILED*",
            "*test_made_once PASSED*",
        ]
    )
    text = result.stdout.str()
    assert "[P2] padded target positions are attended to" in text and "needs generate=lambda" in text
    assert "KeyError: 'in the maker'" in text
    all_of_them = sum(not check.opt_in for check in checks.all())
    result.assert_outcomes(passed=4, failed=1 + all_of_them, skipped=2)


def test_an_unknown_check_is_refused_at_once():
    with pytest.raises(ValueError, match="unknown check 'pads'"):
        lab.each_check(healthy, only=["pads"])


def test_neither_torch_nor_pytest_is_imported_before_it_is_needed():
    code = "import sys, lab; lab.assert_healthy; sys.exit('torch' in sys.modules or 'pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
