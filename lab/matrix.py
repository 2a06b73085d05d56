"""The fault x check matrix: every check on the kit's own models and plans, healthy and with each fault."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint, checks, faults, labels, presets
from .attention import KVCache
from .config import ModelConfig, TrainConfig
from .diagnosis import diagnose
from .language_model import LanguageModel
from .masks import key_is_real
from .report import Report
from .subject import Subject
from .trainer import Trainer, planned_rates
from .transformer import Transformer

# Unequal lengths; the pairs are left-padded, where a missing pad mask is not hidden by the causal one, and one source
# is empty, as in a batch filled up to a fixed number of rows.
PAIRS = [([5, 6, 7, 8, 9], [10, 11, 12]), ([13, 14], [15, 16, 17, 18, 19]), ([], [])]
SPECIAL = {"pad_id": 1, "bos_id": 0, "eos_id": 2}


def config(**changes) -> ModelConfig:
    """The preset "tiny", with a vocabulary for the examples above."""
    return presets.tiny()[0].replace(vocab_size=64, **SPECIAL).replace(**changes)


def recipe() -> TrainConfig:
    """How that model is trained, by the preset."""
    return presets.tiny()[1].replace(steps=1000)


def plan() -> dict[str, Any]:
    """A training for that model: on two million tokens, so that neither it nor they are too few."""
    train = recipe()
    return {
        "rates": planned_rates(train),
        "lengths": [5, 12, 40, 64],
        "packed": False,
        "train_tokens": 2_000_000,
        "step_tokens": train.batch_tokens * train.accumulate,
    }


def collate(pairs: list) -> dict[str, Tensor]:
    batch = labels.collate_pairs(pairs, side="left", **SPECIAL)
    empty = torch.tensor([not source for source, _ in pairs])
    batch["input_ids"][empty] = SPECIAL["pad_id"]
    return batch


def one_update(model: nn.Module, optimizer: Any, trainer: Trainer, micro_batches: list) -> None:
    """One step of the kit's Trainer, which is its own scheduler, over those micro-batches."""
    step = trainer.progress.step
    trainer.config = trainer.config.replace(steps=step + 1, accumulate=len(micro_batches))
    trainer.batches = iter(micro_batches)
    trainer.run()


def training(make: Callable[[ModelConfig], nn.Module], model: nn.Module) -> dict[str, Any]:
    """The kit's Trainer, as a Subject is told of it: of that model, a fresh one of another, and what it saved."""

    def build() -> tuple[nn.Module, Any, Trainer]:
        trainer = Trainer(make(config()), [], recipe())
        return trainer.model, trainer.optimizer, trainer

    folder = Path(tempfile.mkdtemp(prefix="lab-matrix-"))
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    trainer = Trainer(model, [], recipe(), out=folder)
    trainer.save(best=True)
    return {
        "build": build,
        "train_step": one_update,
        "optimizer": trainer.optimizer,
        "checkpoint": folder,
        "load": lambda path: checkpoint.find(path).build(),
        "tied": True,
    }


def translate_by_token(model: Transformer, batch: dict[str, Tensor]) -> Tensor:
    """Logits (B, T, V) of the decoder, fed one token at a time through its cache."""
    memory, ids = model.encode(batch["input_ids"]), batch["decoder_input_ids"]
    mask = key_is_real(batch["input_ids"], model.config.pad_id)
    cache = KVCache(model.config.num_layers, model.config.max_seq_len)
    steps = [model.decode(ids[:, t : t + 1], memory, mask, None, cache) for t in range(ids.size(1))]
    return model.head(torch.cat(steps, dim=1))


def continue_by_token(model: LanguageModel, batch: dict[str, Tensor]) -> Tensor:
    """Logits (B, T, V), fed one token at a time through the cache."""
    ids, cache = batch["input_ids"], KVCache(model.config.num_layers, model.config.max_seq_len)
    return torch.cat([model(ids[:, t : t + 1], cache=cache).logits for t in range(ids.size(1))], dim=1)


def translator(seed: int = 0) -> Subject:
    """A small Transformer with all that the checks ask for."""
    torch.manual_seed(seed)
    model, examples = Transformer(config()), PAIRS
    return Subject(
        model,
        collate=collate,
        examples=examples,
        evaluate=lambda model: model.evaluate([labels.collate_pairs(examples[:2], **SPECIAL)]),
        generate=lambda model, batch: model.generate(batch["input_ids"], 4),
        incremental=translate_by_token,
        **plan(),
        **training(Transformer, model),
        name="the kit's Transformer",
    )


def language_model(seed: int = 0) -> Subject:
    """A small LanguageModel on left-padded rows, with all that the checks ask for."""
    torch.manual_seed(seed)
    model, texts = LanguageModel(config()), [[5, 6, 7, 8, 9], [10, 11, 12]]
    return Subject(
        model,
        collate=lambda texts: labels.collate_texts(texts, side="left", **SPECIAL),
        examples=texts,
        evaluate=lambda model: model.evaluate([labels.collate_texts(texts, **SPECIAL)]),
        generate=lambda model, batch: model.generate(batch["input_ids"], 4),
        incremental=continue_by_token,
        **plan(),
        **training(LanguageModel, model),
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
        """The checks that found something. A note is enough of the check that is to catch the fault."""
        noted = {note.check for note in self.report.notes}
        return {finding.check for finding in self.report.findings} | (noted & {self.caught_by})

    @property
    def unexplained(self) -> set[str]:
        return self.found - {self.caught_by} - set(self.also)

    @property
    def good(self) -> bool:
        """Caught by its own check, and nothing fires that the fault does not explain."""
        caught = self.caught_by in self.found if self.caught_by else True
        return caught and not self.unexplained and not self.report.errors


REVIEW = ("labels", "masks", "modes")  # the families of the review's four findings


def healthy(name: str, families: Sequence[str] | None = None) -> Row:
    """The row of a subject without a fault: every check of those families, the slow ones too."""
    return Row(f"healthy {name}", diagnose(SUBJECTS[name](), only=columns(families)))


def broken(name: str, families: Sequence[str] | None = None) -> Row:
    """The row of the fault of that name: every check but the slow ones, unless one is to catch it."""
    fault = faults.get(name)
    asked = [name for name in columns(families) if not checks.get(name).opt_in or name == fault.caught_by]
    with fault.inject():
        return Row(fault.id, diagnose(SUBJECTS[fault.on](), only=asked), fault.caught_by, fault.also)


def run(families: Sequence[str] | None = None) -> list[Row]:
    """The healthy models, then each fault: all, which takes minutes, or those of some families, by their checks."""
    chosen = [fault.id for fault in faults.all() if families is None or fault.family in families]
    return [healthy(name, families) for name in SUBJECTS] + [broken(name, families) for name in chosen]


def columns(families: Sequence[str] | None = None) -> list[str]:
    return [check.id for check in checks.all() if families is None or check.family in families]
