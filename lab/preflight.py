"""`lab train --preflight`: every check on the model and the first batch, before a step is spent on them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .diagnosis import diagnose
from .labels import IGNORE_INDEX
from .parallel import World
from .report import Report
from .subject import Subject

FAIL_ON = "P1"
ROWS, TOKENS = 4, 64  # of the first batch; the checks ask many questions of it


class Stopped(Exception):  # noqa: N818 - nothing broke: it is what was asked for
    """The preflight found something with which training cannot work."""


def check_first(model: nn.Module, batch: Mapping[str, Tensor], plan: Mapping[str, Any], world: World) -> None:
    """Diagnose on the first rank, print what was found there, and raise Stopped on all where it is P0 or P1."""
    verdict = None
    if world.chief:
        start = time.perf_counter()
        report = preflight(model, batch, plan)
        print(told(report, time.perf_counter() - start), file=sys.stderr)
        verdict = len(report.at_least(FAIL_ON))
    if count := world.gather(verdict)[0]:
        raise Stopped(
            f"Nothing was trained: the preflight found {counted(count)} of {FAIL_ON} or worse. Repair what it names "
            f"(lab diagnose --explain CHECK), or train without --preflight."
        )


def preflight(model: nn.Module, batch: Mapping[str, Tensor], plan: Mapping[str, Any]) -> Report:
    """Every check on one of the kit's models, a few rows of the batch, and the plan (as a Subject takes it).

    With a loss_chunk there are no logits beside the loss. It changes how the loss is computed and not what it is, so
    the checks see the model without.
    """
    few = few_rows(batch)
    config = model.config
    subject = Subject(
        model,
        few,
        generate=lambda model, batch: model.generate(batch["input_ids"], 4),
        evaluate=lambda model: model.evaluate([few]),
        **plan,
        name=f"{type(model).__name__} and its first batch",
    )
    model.config = config.replace(loss_chunk=None)
    try:
        return diagnose(subject)
    finally:
        model.config = config


def few_rows(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Some rows of a batch, the shortest and the longest among them; of packed blocks the first tokens."""
    lengths = (batch["labels"] != IGNORE_INDEX).sum(1)
    order = lengths.argsort()
    rows = torch.cat([order[:1], order[1:][-(ROWS - 1) :]])
    packed = "decoder_input_ids" not in batch
    return {key: value[rows][:, : TOKENS if packed else None].clone() for key, value in batch.items()}


def told(report: Report, seconds: float) -> str:
    """The findings, two lines each, and how many checks were asked."""
    asked = f"{len(report.passed)} checks passed, {len(report.skipped)} did not apply"
    lines = [f"Preflight, {seconds:.0f} s: {asked}, {counted(len(report.findings))}.", report.brief()]
    lines += [f"ERROR in {name} (a bug of this tool, please report it): {why}" for name, why in report.errors.items()]
    return "\n".join(line for line in lines if line)


def counted(count: int) -> str:
    return f"{count} finding{'' if count == 1 else 's'}"
