"""Checks on the training loop: what one update does, whether the rate moves, whether a batch can be learnt by heart."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from ..calling import Missing, clone
from ..instruments import user_frame
from ..probe import Probe
from ..report import Finding, Where
from .base import check
from .parameters import some
from .randomness import Dropouts, seed_all
from .updates import Loop, measured, rates_of, shares
from .uses import backward, objective

LESSON = "06_why_perplexity_70"
# How far two gradients of the same numbers may be apart: float32, summed in another order.
ROUNDING = 1e-3
STEPS, RATES = 150, (3e-3, 3e-4)


@check(
    "accumulation-scale",
    severity="P2",
    family="loop",
    lesson=LESSON,
    silent="gradient clipping and AdamW both hide a factor; what is left is another training than the one intended",
    repair="weigh each micro-batch by its share of the target tokens: (loss * its tokens / all tokens).backward()",
)
def accumulation_scale(probe: Probe) -> Iterator[Finding]:
    """Two micro-batches in one update give the gradient of their rows as one batch.

    Clipping and dropout are switched off for it. The rows are unlike, so that an update in which the last micro-batch
    alone counts does not pass. Where rows hold unequal numbers of targets, the mean of the micro-batches' means is not
    the mean over their tokens.
    """
    seen = measured(probe)
    where = seen.where
    if float((seen.parts - seen.whole).norm()) <= ROUNDING * float(seen.whole.norm()):
        return
    a, b, rest = shares(seen.parts, seen.first, seen.second)
    alpha, beta, unlike = shares(seen.whole, seen.first, seen.second)
    if max(rest, unlike) > 0.05:
        raise Missing("the gradient of two rows is not made of those of each alone, so nothing can be told")
    evidence: dict[str, Any] = {
        "weight of the first micro-batch": a,
        "of the second": b,
        "weight of these rows in one batch": alpha,
        "and": beta,
    }
    if min(abs(a), abs(b)) < 0.05 * max(abs(a), abs(b)):
        which = "last" if abs(a) < abs(b) else "first"
        yield probe.finding(
            f"of two micro-batches the {which} alone counts in an update",
            evidence=evidence,
            where=where,
            repair="zero the gradients once an update, before the first micro-batch",
        )
    elif not 0.67 < (a + b) / (alpha + beta) < 1.5:
        yield probe.finding(
            f"two accumulated micro-batches give a gradient {(a + b) / (alpha + beta):.3g} times that of one batch",
            evidence=evidence,
            where=where,
        )
    elif abs(a / b - alpha / beta) > 0.02 * abs(alpha / beta):
        yield probe.finding(
            "micro-batches weigh the same whatever they hold: a target in a padded one counts for more than in a full "
            "one",
            "P3",
            evidence=evidence,
            where=where,
        )


@check(
    "zero-grad",
    severity="P1",
    family="loop",
    lesson=LESSON,
    silent="clipping keeps the sum in bounds: it acts as a momentum without an end, and the loss falls for a while",
    repair="optimizer.zero_grad() once an update, before the first backward pass",
)
def zero_grad(probe: Probe) -> Iterator[Finding]:
    """The gradient of the second update does not hold that of the first.

    No parameter is moved between the two, so the second's own gradient is known.
    """
    seen = measured(probe)
    if float((seen.after - seen.second).norm()) <= ROUNDING * float(seen.second.norm()):
        return
    before, own, rest = shares(seen.after, seen.first, seen.second)
    if rest > 0.05:
        raise Missing("the gradient of the second update is not made of the two batches' own: nothing can be told")
    if before > 0.05 * abs(own):
        yield probe.finding(
            "the gradient of an update still holds that of the one before: nobody sets it to zero",
            evidence={"weight of the batch before": before, "of the update's own": own},
            where=seen.where,
        )


@check(
    "scheduler-never-stepped",
    severity="P2",
    family="loop",
    lesson=LESSON,
    silent="a constant rate trains too, only to a higher loss; or, where warmup starts at zero, not at all",
    repair="scheduler.step() after each optimizer.step(), or set each group's rate from the plan before it",
    explains=("step-changes-parameters",),
)
def scheduler_never_stepped(probe: Probe) -> Iterator[Finding]:
    """Over four updates the learning rate moves, where the scheduler or the plan of rates would move it.

    That a rate is set proves nothing: a LambdaLR sets the first one when it is built.
    """
    subject = probe.subject
    seen = measured(probe)
    if any(rates != seen.rates[0] for rates in seen.rates):
        return
    steps = len(seen.rates)
    planned = None if subject.rates is None else [float(rate) for rate in subject.rates[:steps]]
    if planned is None:
        planned = scheduled(Loop(probe), steps)
    if len(set(planned)) < 2:
        raise Missing(f"the plan holds the rate through its first {steps} updates: give rates= that move, to be told")
    yield probe.finding(
        f"the learning rate stays {seen.rates[0][0]:.3g} over {steps} updates, and is planned to go from "
        f"{planned[0]:.3g} to {planned[-1]:.3g}: the scheduler is never stepped",
        evidence={"updates": steps, "rate": seen.rates[0][0], "planned last": planned[-1]},
        where=seen.where,
    )


def scheduled(loop: Loop, steps: int) -> list[float]:
    """The rates that the scheduler sets where it is stepped once an update. Raises Missing without one."""
    _, optimizer, scheduler = loop.fresh()
    if scheduler is None:
        raise Missing("there is no scheduler: give build= that makes one, or rates=, the rate of each step")
    rates = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimizer was not asked to step before
            for _ in range(steps):
                rates.append(rates_of(optimizer)[0])
                scheduler.step()
    except Exception as error:
        raise Missing(
            f"the scheduler cannot be stepped by itself ({type(error).__name__}): give rates=, the rate of each step"
        ) from error
    return rates


@check(
    "step-changes-parameters",
    severity="P1",
    family="loop",
    lesson=LESSON,
    silent="what the optimizer does move may learn enough for the loss to fall",
    repair="call optimizer.step() once an update, of an optimizer that holds these very parameters",
    after=("unregistered-parameters",),
)
def step_changes_parameters(probe: Probe) -> Iterator[Finding]:
    """One update moves every parameter that has a gradient.

    A first rate of zero, as a warmup from zero has, is waited for. The rate is raised for the one update that is looked
    at: at a small one a gain of 1.0 stays 1.0 in float32.
    """
    loop = Loop(probe)
    batch = probe.shared.made["loop"].batch if "loop" in probe.shared.made else loop.accepted()
    made = loop.fresh()
    model, optimizer, _ = made
    original, called, before = optimizer.step, [], {}

    def step(*args: Any, **kwargs: Any) -> Any:
        called.append(Where.of_code(user_frame(2).f_code))
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
        largest = max((float(grad.abs().max()) for grad in grads.values()), default=0.0)
        for name, grad in grads.items():
            peak = grad.abs().flatten()
            if float(peak.max()) > 1e-4 * largest:
                before[name] = int(peak.argmax())
        kept = [(group, group["lr"]) for group in optimizer.param_groups if "lr" in group]
        values = {name: value_at(model, name, index) for name, index in before.items()}
        for group, rate in kept:
            group["lr"] = max(float(rate), 0.01) if float(rate) > 0 else rate
        try:
            return original(*args, **kwargs)
        finally:
            for group, rate in kept:
                group["lr"] = rate
            still.clear()
            still.update(name for name, value in values.items() if value_at(model, name, before[name]) == value)

    still: set[str] = set()
    optimizer.step = step
    for _ in range(3):
        loop.step(made, [batch])
        if before and len(still) < len(before):
            break
    if not called:
        yield probe.finding(
            "train_step never calls the optimizer's step(): no parameter moves",
            evidence={"updates asked for": 3},
            where=Where.of(probe.subject.train_step),
        )
    elif not before:
        raise Missing("no parameter has a gradient when the optimizer steps: see no-gradient")
    elif still:
        rate = max(rates_of(optimizer), default=0.0)
        names = [name for name, _ in model.named_parameters() if name in still]
        all_of = len(still) == len(before)
        yield probe.finding(
            f"an update moves {'no parameter' if all_of else f'all but {some(names)}'}, though "
            f"{'they have' if all_of or len(still) > 1 else 'it has'} a gradient",
            evidence={"not moved": len(still), "of": len(before), "rate": rate},
            where=called[0],
        )


def value_at(model: nn.Module, name: str, index: int) -> float:
    return float(model.get_parameter(name).detach().flatten()[index])


@check(
    "overfits-one-batch",
    severity="P1",
    family="loop",
    lesson=LESSON,
    silent="on real data a loss that falls slowly looks like a hard task",
    repair="look for what keeps the logits from the targets: labels that do not fit the inputs, bounded logits, a cut",
    after=("no-gradient", "unregistered-parameters", "random-in-eval"),
    opt_in=True,
)
def overfits_one_batch(probe: Probe) -> Iterator[Finding]:
    """On one batch of two rows the loss goes to about zero in 150 steps of AdamW.

    A copy is trained, in train mode without dropout, at two rates, and asked in eval mode. Label smoothing keeps a loss
    above zero, by less than a quarter of what it starts at.
    """
    subject = probe.subject
    batch = subject.few_rows(2)
    model = probe.copy()
    first = loss_now(probe, model, batch)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    reached = {}
    for rate in RATES:
        model.load_state_dict(start)
        reached[rate] = memorised(probe, model, batch, rate, until=0.1 * first)
        if reached[rate] < 0.25 * first:
            return
    rate = min(reached, key=reached.get)
    yield probe.finding(
        f"the loss on one batch of two rows stays at {reached[rate]:.3g} after {STEPS} steps, from {first:.3g}",
        evidence={"loss at the start": first} | {f"at a rate of {rate:g}": loss for rate, loss in reached.items()},
    )


def loss_now(probe: Probe, model: nn.Module, batch: Any) -> float:
    """The loss in eval mode. Raises Missing where the model fails on the batch."""
    try:
        with torch.no_grad():
            loss = float(probe.subject.loss_of(model.eval(), clone(batch)))
    except Missing:
        raise
    except Exception as error:
        raise Missing(f"the loss of your batch fails ({shorten(f'{type(error).__name__}: {error}', 100)})") from error
    if not 0 < loss < float("inf"):
        raise Missing(f"the loss of your batch is {loss} before any training")
    return loss


def memorised(probe: Probe, model: nn.Module, batch: Any, rate: float, until: float) -> float:
    """The lowest loss in eval mode of some training on one batch; it ends early below `until`."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise Missing("no parameter of the model is trainable")
    optimizer, best = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0), float("inf")
    seed_all(0)
    for number in range(1, STEPS + 1):
        model.train()
        optimizer.zero_grad()
        with Dropouts(off=True):
            loss = objective(probe, model, batch)
        backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if number % 10 == 0 or number == STEPS:
            best = min(best, loss_now(probe, model, batch))
            if best < until:
                break
    return best
