"""The fault x check matrix: every check on the kit's own models and plans, healthy and with each fault."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from . import checks, faults, labels, presets
from .config import ModelConfig
from .diagnosis import diagnose
from .language_model import LanguageModel
from .report import Report
from .subject import Subject
from .trainer import planned_rates
from .transformer import Transformer

# Unequal lengths; the pairs are left-padded, where a missing pad mask is not hidden by the causal one, and one source
# is empty, as in a batch filled up to a fixed number of rows.
PAIRS = [([5, 6, 7, 8, 9], [10, 11, 12]), ([13, 14], [15, 16, 17, 18, 19]), ([], [])]
SPECIAL = {"pad_id": 1, "bos_id": 0, "eos_id": 2}


def config(**changes) -> ModelConfig:
    """The preset "tiny", with a vocabulary for the examples above."""
    return presets.tiny()[0].replace(vocab_size=64, **SPECIAL).replace(**changes)


def plan() -> dict[str, Any]:
    """A training for that model: on two million tokens, so that neither it nor they are too few."""
    train = presets.tiny()[1].replace(steps=1000)
    return {
        "rates": planned_rates(train),
        "lengths": [5, 12, 40, 64],
        "packed": False,
        "train_tokens": 2_000_000,
        "step_tokens": train.batch_tokens * train.accumulate,
    }


def collate(pairs: list) -> dict[str, torch.Tensor]:
    batch = labels.collate_pairs(pairs, side="left", **SPECIAL)
    empty = torch.tensor([not source for source, _ in pairs])
    batch["input_ids"][empty] = SPECIAL["pad_id"]
    return batch


def translator(seed: int = 0) -> Subject:
    """A small Transformer with all that the checks ask for."""
    torch.manual_seed(seed)
    examples = PAIRS
    return Subject(
        Transformer(config()),
        collate=collate,
        examples=examples,
        evaluate=lambda model: model.evaluate([labels.collate_pairs(examples[:2], **SPECIAL)]),
        generate=lambda model, batch: model.generate(batch["input_ids"][:2], 4),
        **plan(),
        name="the kit's Transformer",
    )


def language_model(seed: int = 0) -> Subject:
    """A small LanguageModel on left-padded rows, with all that the checks ask for."""
    torch.manual_seed(seed)
    texts = [[5, 6, 7, 8, 9], [10, 11, 12]]
    return Subject(
        LanguageModel(config()),
        collate=lambda texts: labels.collate_texts(texts, side="left", **SPECIAL),
        examples=texts,
        evaluate=lambda model: model.evaluate([labels.collate_texts(texts, **SPECIAL)]),
        generate=lambda model, batch: model.generate(batch["input_ids"], 4),
        **plan(),
        name="the kit's LanguageModel",
    )


SUBJECTS = {"translator": translator, "language model": language_model}


@dataclass(frozen=True)
class Row:
    """One fault, or none (healthy): the report of every check on the model that shows it."""

    name: str
    report: Report
    caught_by: str = ""
    also: dict[str, str] = field(default_factory=dict)

    @property
    def found(self) -> set[str]:
        return {finding.check for finding in self.report.findings}

    @property
    def unexplained(self) -> set[str]:
        return self.found - {self.caught_by} - set(self.also)

    @property
    def good(self) -> bool:
        """Caught by its own check, and nothing fires that the fault does not explain."""
        caught = self.caught_by in self.found if self.caught_by else True
        return caught and not self.unexplained and not self.report.errors


def run() -> list[Row]:
    """The healthy models, then each fault."""
    rows = [Row(f"healthy {name}", diagnose(make())) for name, make in SUBJECTS.items()]
    for fault in faults.all():
        with fault.inject():
            rows.append(Row(fault.id, diagnose(SUBJECTS[fault.on]()), fault.caught_by, fault.also))
    return rows


def columns() -> list[str]:
    return [check.id for check in checks.all()]
