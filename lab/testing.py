"""The battery in somebody's test suite: one assertion for all checks, or one test a check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `import lab` waits for neither torch nor pytest
    from .report import Report
    from .subject import Subject


def assert_healthy(
    subject: Any,
    batch: Any = None,
    *,
    fail_on: str = "P2",
    only: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    seed: int = 0,
    baseline: str | Path | Mapping[str, Any] | None = None,
) -> Report:
    """Diagnose a Subject, or a model and its batch; the report, where nothing of `fail_on` or worse was found.

    def test_my_model():
        lab.assert_healthy(model, batch)

    only, skip: names of checks. baseline: as Report.against takes it. Raises AssertionError with the report's text,
    ValueError for an unknown check or severity.
    """
    __tracebackhide__ = True
    from .diagnosis import diagnose
    from .report import Report

    Report().exit_code(fail_on)  # before the work
    report = diagnose(subject, batch, only=only, skip=skip, seed=seed)
    if baseline is not None:
        report.against(baseline)
    if report.exit_code(fail_on):
        raise AssertionError(f"there are findings of {fail_on} or worse.\n\n{report.text()}")
    return report


def each_check(
    make_subject: Callable[[], Subject],
    *,
    fail_on: str = "P2",
    only: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    seed: int = 0,
    baseline: str | Path | Mapping[str, Any] | None = None,
) -> Callable:
    """A parametrised test, one for each check, of the Subject (or model) that a function without arguments returns.

    test_my_model = lab.each_check(make_subject)        # test_my_model[padding-crash], test_my_model[attends-to-pads] …

    @lab.each_check                                     # the same, above the function that makes it
    def test_my_model():
        return lab.Subject(model, batch)

    The subject is made, and the battery put to it, once, when the first of these tests runs. A test fails with the
    findings of its check of `fail_on` or worse, and is skipped, with the reason, where the check was.
    only, skip, seed, baseline: as in assert_healthy. Needs pytest. Raises ValueError for an unknown check or severity.
    """
    import pytest

    from .diagnosis import chosen_checks, diagnose
    from .report import Report

    Report().exit_code(fail_on)
    only, skip = None if only is None else list(only), list(skip)
    outcome: list[Report | Exception] = []

    def report() -> Report:
        if not outcome:
            try:
                found = diagnose(make_subject(), only=only, skip=skip, seed=seed)
                outcome.append(found if baseline is None else found.against(baseline))
            except Exception as error:
                outcome.append(error)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    @pytest.mark.parametrize("check", [check.id for check in chosen_checks(only, skip)])
    def test(check: str) -> None:
        __tracebackhide__ = True
        found = report()
        bad = [finding.text() for finding in found.at_least(fail_on) if finding.check == check]
        if bad:
            pytest.fail("\n\n".join(bad), pytrace=False)
        if check in found.errors:
            pytest.skip(f"the check broke, by a bug of this tool: {found.errors[check]}")
        if check in found.skipped:
            pytest.skip(found.skipped[check])

    test.__name__ = test.__qualname__ = make_subject.__name__
    test.__module__, test.__doc__ = make_subject.__module__, make_subject.__doc__
    return test
