"""Checks on the logits and on the function of them that the loss is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..calling import Missing, clone
from ..instruments import forward_of, user_frame
from ..probe import Probe
from ..report import Finding, Where
from .base import check
from .loss import ABOUT, make_place
from .taught import Lesson, Pulls, few, lesson, readable

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda z: z.softmax(-1),
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
}
LACKING = {
    "no log": (
        "the loss is the mean probability of the targets and not its logarithm: nll_loss of a softmax",
        "give nll_loss the log_softmax, or cross_entropy the logits",
    ),
    "no softmax": (
        "the loss is the mean logit of the targets, without a softmax: nll_loss of raw logits",
        "give nll_loss the log_softmax, or cross_entropy the logits",
    ),
}
EXACT = 1e-5  # what a softmax in float32 leaves of a gradient that is a cross entropy's


class Calls(TorchFunctionMode):
    """Which line of the user's code last called a function of that name, on a tensor with a last axis of that size."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.name, self.size = name, size
        self.where: Where | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        asked = getattr(func, "__name__", "").strip("_") == self.name
        if asked and isinstance(out, Tensor) and out.shape[-1:] == (self.size,):
            self.where = Where.of_code(user_frame(2).f_code)
        return out


def calling(name: str, size: int, run: Callable[[], Any]) -> Where | None:
    with torch.no_grad(), Calls(name, size) as calls:
        run()
    return calls.where


@check(
    "loss-is-cross-entropy",
    severity="P1",
    **ABOUT,
    silent="the loss falls for a while, and stays high: near ln V where probabilities go in",
    repair="give cross_entropy the raw logits: it takes the softmax itself",
)
def loss_is_cross_entropy(probe: Probe) -> Iterator[Finding]:
    """The gradient of the loss for the logits is that of a cross entropy: softmax minus the (smoothed) one-hot target.

    An activation between logits and loss breaks it, and is named. log_softmax twice is log_softmax once: no finding.
    Weights of tokens, focal losses and z-loss keep the form; other losses are skipped.
    """
    seen = lesson(probe)
    pulls = Pulls.of(seen.teaching)
    if not float(pulls.logits.std(-1).max()) > 1e-4:
        raise Missing("all logits are equal, so that every activation looks alike: give a model whose head is not zero")
    plain = pulls.residual()
    if plain < EXACT:
        return
    left = {"no softmax": pulls.residual_without("softmax")}
    if seen.teaching.loss < 0:  # no cross entropy is
        left["no log"] = pulls.residual_without("log")
    else:
        left |= {name: pulls.residual(function) for name, function in ACTIVATIONS.items()}
    name = min(left, key=left.__getitem__)
    if left[name] < min(plain / 10, 0.01):
        yield not_of_logits(probe, seen, name, {"gradient that no cross entropy explains": plain, "left": left[name]})
        return
    if pulls.residual_each() > 0.01:
        raise Missing("the loss is neither a cross entropy of the logits nor one behind an activation known here")


def not_of_logits(probe: Probe, seen: Lesson, name: str, evidence: dict[str, float]) -> Finding:
    """The finding for a loss that is a cross entropy of `name` of the logits, or that lacks a part of one."""
    left = evidence.pop("left")
    evidence |= {"loss": seen.teaching.loss, "ln V": math.log(seen.teaching.logits.size(-1))}
    if name in LACKING:
        message, repair = LACKING[name]
        where = make_place(probe.subject)
    else:
        message, repair = f"{name} stands between the logits and the cross entropy", probe.check.repair
        evidence[f"and none with {name}"] = left
        model, _ = probe.precise(seen.subject.batch)
        size = seen.teaching.logits.size(-1)
        where = calling(name, size, lambda: seen.subject.loss_of(model, clone(seen.subject.batch)))
    return probe.finding(message, evidence=evidence, where=where or make_place(probe.subject), repair=repair)


@check(
    "logits-are-logits",
    severity="P1",
    **ABOUT,
    silent="shapes, sums and argmax look right",
    repair="hand on the head's raw output; take the softmax where probabilities are read",
    explains=("loss-is-cross-entropy", "initial-loss"),
)
def logits_are_logits(probe: Probe) -> Iterator[Finding]:
    """What the model hands on as logits are no probabilities, and not clipped at 0.

    Logarithms of probabilities are good logits. Probabilities are fine where the loss takes their logarithm.
    """
    subject = readable(probe)
    if "target" not in subject.streams:
        raise Missing("the batch has no ids by a usual name: give streams={'target': (key, mask key)}")
    batch = few(subject)
    model, _ = probe.precise(batch)
    logits = probe.logits(model, batch).double()
    vocab = logits.size(-1)
    values = logits[logits.isfinite().all(-1)]
    if not values.numel() or not float(values.abs().max()) > 0:
        raise Missing("all logits are zero or not finite, so nothing can be told: give a model whose head is not zero")
    if float(values.min()) < 0 or values.numel() < 100:
        return
    sums = values.sum(-1)
    zeros = float((values == 0).double().mean())
    if float((sums - 1).abs().max()) < 1e-3:
        what, name = "probabilities: each row sums to 1", "softmax"
    elif zeros > 0.05:
        what, name = f"clipped at 0: {zeros:.0%} of them are exactly 0 and none is negative", "relu"
    elif float(values.max()) < 1:
        what, name = "between 0 and 1: they have gone through a sigmoid", "sigmoid"
    else:
        return
    severity = consequence(probe, name)
    if not severity:
        return
    yield probe.finding(
        f"what the model hands on as logits is {what}" + ("; its loss is made of others" if severity == "note" else ""),
        severity,
        evidence={"lowest": float(values.min()), "highest": float(values.max()), "exactly 0": zeros, "V": vocab},
        where=calling(name, vocab, lambda: subject.logits(model, clone(batch))) or forward_of(subject.model, ""),
    )


def consequence(probe: Probe, name: str) -> str:
    """The severity of logits that are none: by what the loss is made of. Empty where they serve it well."""
    try:
        seen = lesson(probe)
    except Missing:
        return "P2"  # how the loss takes them is not known
    model, _ = probe.precise(seen.subject.batch)
    given, used = probe.logits(model, seen.subject.batch).double(), seen.teaching.logits.double()
    if given.shape != used.shape or not torch.allclose(given, used, rtol=1e-4, atol=1e-6):
        return "note"  # it is made of others
    # Of probabilities it may take the logarithm, and then it is no cross entropy of them as logits.
    return "" if name == "softmax" and Pulls.of(seen.teaching).residual() > 0.01 else "P1"


@check(
    "initial-loss",
    severity="P3",
    **ABOUT,
    silent="the first hundreds of steps bring the logits down; the curve looks steep and healthy",
    repair="initialise embeddings and head with a deviation of about 0.02, and end in a norm before the head",
)
def initial_loss(probe: Probe) -> Iterator[Finding]:
    """At initialisation the loss is not far above ln V, that of guessing evenly: under 1.5 ln V + 0.5.

    Asked of a model fresh from build(), else of this one where its norms still have the gains that they began with. The
    cross entropy is computed here, so that a loss that is summed or scaled counts the same.
    """
    seen = lesson(probe)
    teaching = seen.teaching
    if probe.subject.build is not None:
        model = fresh(probe)
        teaching = probe.teaching(seen.subject.batch, model)
    elif not untrained(probe.subject.model):
        raise Missing("needs a model at initialisation: give build=lambda: (model, optimizer, scheduler)")
    pulls = Pulls.of(teaching)
    nll = -pulls.logits.log_softmax(-1).gather(-1, pulls.target[:, None])
    loss, even = float(nll.mean()), math.log(pulls.logits.size(-1))
    if loss < 1.5 * even + 0.5:
        return
    yield probe.finding(
        f"at initialisation the loss is {loss:.3g}, far above ln V = {even:.3g}, that of guessing evenly",
        evidence={"loss": loss, "ln V": even, "deviation of the logits": float(pulls.logits.std(-1).mean())},
        where=Where.of(type(probe.subject.model).__init__),
    )


def fresh(probe: Probe) -> nn.Module:
    """A model from build(), in eval mode on the CPU. Raises Missing where it fails."""
    probe.at_risk()  # by a build that gives the model in use
    try:
        model, *_ = probe.subject.build()
        return model.cpu().eval()
    except Exception as error:
        raise Missing(f"build() fails ({type(error).__name__}: {error})") from error


def untrained(model: nn.Module) -> bool:
    """Whether the gain of each norm is still one number throughout; a step of training makes them differ."""
    names = ("weight", "gamma", "scale", ".g")
    gains = [p for name, p in model.named_parameters() if name.endswith(names) and p.dim() == 1 and p.numel() > 1]
    return bool(gains) and all(bool((gain == gain[0]).all()) for gain in gains)
