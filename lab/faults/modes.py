"""Faults in evaluate() and generate(): modes that never come back, or come back wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ..evaluation import Evaluation, mean_loss
from .base import fault

EVALUATE, GENERATE = "lab.transformer:Transformer.evaluate", "lab.transformer:Transformer.generate"
LESSON = "03_stuck_in_eval"


@fault("stuck-in-eval-transformer", of=EVALUATE, caught_by="stuck-in-eval", lesson=LESSON)
def evaluate_stuck(self, batches: Iterable[Mapping[str, Tensor]]) -> Evaluation:
    """Transformer.evaluate() and generate() switch to eval and never come back: training goes on without dropout"""
    self.eval()
    return mean_loss(self, batches)


@fault(
    "stuck-in-eval-language-model",
    of="lab.language_model:LanguageModel.generate",
    caught_by="stuck-in-eval",
    lesson=LESSON,
    on="language model",
)
@fault("stuck-in-eval-transformer", of=GENERATE)
def generate_stuck(self, input_ids: Tensor, max_new_tokens: int | None = None, **how) -> Tensor:
    """LanguageModel.generate() switches to eval and never comes back"""
    self.eval()
    return self.continuation(input_ids, max_new_tokens, **how)


@fault(
    "train-at-the-end",
    of=EVALUATE,
    caught_by="half-repaired-mode",
    lesson=LESSON,
    also={"stuck-in-eval": "train() stands after the work, so an exception skips it"},
    half_repair=True,
)
def evaluate_ends_in_train(self, batches: Iterable[Mapping[str, Tensor]]) -> Evaluation:
    """evaluate() and generate() end in train(): frozen parts wake up, and an exception still leaves eval behind"""
    self.eval()
    result = mean_loss(self, batches)
    self.train()
    return result


@fault("train-at-the-end", of=GENERATE)
def generate_ends_in_train(self, input_ids: Tensor, max_new_tokens: int | None = None, **how) -> Tensor:
    self.eval()
    result = self.continuation(input_ids, max_new_tokens, **how)
    self.train()
    return result


@fault(
    "gives-all-the-roots-mode",
    of=EVALUATE,
    caught_by="half-repaired-mode",
    lesson=LESSON,
    half_repair=True,
)
def evaluate_restores_the_root(self, batches: Iterable[Mapping[str, Tensor]]) -> Evaluation:
    """evaluate() notes the model's own mode and gives it to all of its parts: frozen ones wake up"""
    was = self.training
    self.eval()
    try:
        return mean_loss(self, batches)
    finally:
        self.train(was)
