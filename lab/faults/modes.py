"""Faults in evaluate() and generate(): modes that never come back, or come back wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ..evaluation import Evaluation, mean_loss
from .base import Fault, Twin, register

LESSON = "notebooks/03_stuck_in_eval.ipynb"


def evaluate_stuck(self, batches: Iterable[Mapping[str, Tensor]]) -> Evaluation:
    self.eval()
    return mean_loss(self, batches)


def generate_stuck(self, input_ids: Tensor, max_new_tokens: int | None = None, **how) -> Tensor:
    self.eval()
    return self.continuation(input_ids, max_new_tokens, **how)


def evaluate_ends_in_train(self, batches: Iterable[Mapping[str, Tensor]]) -> Evaluation:
    self.eval()
    result = mean_loss(self, batches)
    self.train()
    return result


def generate_ends_in_train(self, input_ids: Tensor, max_new_tokens: int | None = None, **how) -> Tensor:
    self.eval()
    result = self.continuation(input_ids, max_new_tokens, **how)
    self.train()
    return result


register(
    Fault(
        "stuck-in-eval-transformer",
        "Transformer.evaluate() and generate() switch to eval and never come back: training goes on without dropout",
        "modes",
        caught_by="stuck-in-eval",
        lesson=LESSON,
        twins=(
            Twin("lab.transformer:Transformer.evaluate", evaluate_stuck),
            Twin("lab.transformer:Transformer.generate", generate_stuck),
        ),
    )
)
register(
    Fault(
        "stuck-in-eval-language-model",
        "LanguageModel.generate() switches to eval and never comes back",
        "modes",
        caught_by="stuck-in-eval",
        lesson=LESSON,
        twins=(Twin("lab.language_model:LanguageModel.generate", generate_stuck),),
        on="language model",
    )
)
register(
    Fault(
        "train-at-the-end",
        "evaluate() and generate() end in train(): frozen parts wake up, and an exception still leaves eval behind",
        "modes",
        caught_by="half-repaired-mode",
        lesson=LESSON,
        twins=(
            Twin("lab.transformer:Transformer.evaluate", evaluate_ends_in_train),
            Twin("lab.transformer:Transformer.generate", generate_ends_in_train),
        ),
        also={"stuck-in-eval": "train() stands after the work, so an exception skips it"},
        half_repair=True,
    )
)
