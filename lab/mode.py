"""Evaluation mode that gives every submodule its own mode back, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, every submodule is in eval mode; after, each is in the mode it came with.

    Each, and not `model.train()` for all: a frozen part stays in eval, an outer `evaluating` is not undone by an inner
    one, and a model that came in eval leaves in eval. Also after an exception, and when a generator that holds it is
    closed. A generator should hold it for one step at a time and not across a `yield`: between two tokens the model
    belongs to the caller.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield model
    finally:
        for module, training in modes:
            module.training = training
