"""The one training loop; it knows nothing of the model but `model(**batch).loss` and `model.evaluate(batches)`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .labels import count_targets
from .schedule import warmup_cosine


def find_device(name: str) -> torch.device:
    """The device of that name. Raises ValueError where this machine has none, naming those it has."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(
            f"device {name!r} is not there ({str(error).splitlines()[0]}); use {' or '.join(there)}."
        ) from error
    return device


@dataclass
class History:
    """steps: one dict a step (step, loss in nats per token, rate, tokens); evaluations: (step, loss, tokens)."""

    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)


def require_finite(name: str, value: Tensor, step: int) -> None:
    """Stop before a NaN reaches the weights: a finite loss can have gradients that are not."""
    if not value.isfinite():
        raise FloatingPointError(f"the {name} is {value.item()} at step {step}; lower the rate or look at that batch.")


def forever(loader: Iterable[Mapping[str, Tensor]]) -> Iterator[Mapping[str, Tensor]]:
    """Epoch after epoch, each in another order."""
    for epoch in itertools.count():
        if hasattr(getattr(loader, "batch_sampler", None), "set_epoch"):
            loader.batch_sampler.set_epoch(epoch)
        yield from loader


def fit(
    model: nn.Module,
    loader: Iterable[Mapping[str, Tensor]],
    config: TrainConfig,
    *,
    validation: Iterable[Mapping[str, Tensor]] | None = None,
    on_step: Callable[[dict[str, float]], Any] | None = None,
) -> History:
    """Train with AdamW, warmup then cosine, and clipped gradients; evaluate every `config.eval_every` steps.

    The model is put in train mode once, at the start: evaluate() is trusted to give the mode back. on_step is called
    with each step's record, for progress bars. Raises FloatingPointError naming the step where loss or gradients are
    not finite, and ValueError for a batch without a target.
    """
    torch.manual_seed(config.seed)
    device = next(model.parameters()).device
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    history = History()
    model.train()
    for step, batch in zip(range(1, config.steps + 1), forever(loader), strict=False):
        start = time.perf_counter()
        rate = config.learning_rate * warmup_cosine(step - 1, config.warmup_steps, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        tokens = count_targets(batch["labels"])
        loss = model(**{key: value.to(device) for key, value in batch.items()}).loss
        require_finite("loss", loss, step)
        optimizer.zero_grad()
        loss.backward()
        require_finite("gradient norm", torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm), step)
        optimizer.step()
        seconds = time.perf_counter() - start
        record = {"step": step, "loss": loss.item(), "rate": rate, "tokens": tokens, "seconds": seconds}
        history.steps.append(record)
        if validation is not None and (step % config.eval_every == 0 or step == config.steps):
            result = model.evaluate(validation)
            history.evaluations.append({"step": step, "loss": result.loss, "tokens": result.tokens})
            record["validation"] = result.loss
        if on_step is not None:
            on_step(record)
    return history
