"""Checks on dropout and chance: none in eval mode, some in train mode, and none while a model generates."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..calling import Missing, clone
from ..instruments import culprit, user_frame
from ..probe import Probe
from ..report import Finding, Where
from .base import check

# Where each function has its rate and its switch among its arguments: (place, name); no switch is always on.
DROPOUTS = {
    function: ((1, "p", 0.5), (2, "training", True))
    for function in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.feature_alpha_dropout, F.alpha_dropout)
} | {
    torch.dropout: ((1, "p", 0.5), (2, "train", True)),
    torch.dropout_: ((1, "p", 0.5), (2, "train", True)),
    F.scaled_dot_product_attention: ((4, "dropout_p", 0.0), None),
    F.multi_head_attention_forward: ((10, "dropout_p", 0.0), (13, "training", True)),
}


@dataclass
class Drop:
    """One use of dropout: its rate, whether it is switched on, the module that asked for it, and the user's code."""

    rate: float
    on: bool
    module: nn.Module | None
    where: Where
    line: int


class Dropouts(TorchFunctionMode):
    """Records every use of dropout, in modules and in functions; with off=True none has an effect."""

    def __init__(self, off: bool = False) -> None:
        super().__init__()
        self.off = off
        self.seen: list[Drop] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in DROPOUTS:
            return func(*args, **kwargs)
        (place, name, usual), switch = DROPOUTS[func]
        rate = args[place] if len(args) > place else kwargs.get(name, usual)
        on = True
        if switch is not None:
            on = args[switch[0]] if len(args) > switch[0] else kwargs.get(switch[1], switch[2])
        frame = user_frame(2)
        self.seen.append(Drop(float(rate), bool(on), module_of(), Where.of_code(frame.f_code), frame.f_lineno))
        if self.off:
            if len(args) > place:
                args = (*args[:place], 0.0, *args[place + 1 :])
            else:
                kwargs[name] = 0.0
        return func(*args, **kwargs)

    def active(self) -> list[Drop]:
        return [drop for drop in self.seen if drop.on and drop.rate > 0]


def module_of() -> nn.Module | None:
    """The module whose method is the nearest on the stack."""
    frame = sys._getframe(2)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            return owner
        frame = frame.f_back
    return None


def seed_all(seed: int) -> None:
    """torch's generators, NumPy's and Python's; a diagnosis puts their states back."""
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)


@contextmanager
def constructions() -> Iterator[list[tuple[nn.Module, Where]]]:
    """The modules that are made inside, and the code that makes each: the nearest of the user's that is no __init__."""
    made, original = [], nn.Module.__init__

    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        frame = user_frame(2)
        while frame.f_back is not None and frame.f_code.co_name == "__init__":
            frame = frame.f_back
        made.append((self, Where.of_code(frame.f_code)))
        original(self, *args, **kwargs)

    nn.Module.__init__ = init
    try:
        yield made
    finally:
        nn.Module.__init__ = original


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference; what is not finite counts as equal to itself."""
    return float((a.nan_to_num() - b.nan_to_num()).abs().max()) if a.shape == b.shape else float("inf")


@check(
    "random-in-eval",
    severity="P1",
    family="modes",
    lesson="03_stuck_in_eval",
    silent="the loss still falls; evaluation is a little worse than it need be, and differs from run to run",
    repair="give F.dropout training=self.training, and make every layer once, in __init__",
    explains=("its-own-teacher", "cache-equals-full", "batched-equals-alone", "generates-with-dropout"),
)
def random_in_eval(probe: Probe) -> Iterator[Finding]:
    """Two passes in eval mode over one batch are equal, whatever the state of the random generators.

    `F.dropout(x, p)` is on by default, also in eval mode. A layer that is made inside `forward` has new weights in each
    pass and never learns. A model that keeps something from pass to pass differs at equal seeds too: that is not
    chance, and not reported here.
    """
    batch = probe.whole()
    model, _ = probe.precise(batch)
    logits = []
    with constructions() as made:
        for seed in (1, 1, 2):
            seed_all(seed)
            logits.append(probe.logits(model, batch))
    first, same, other = logits
    known = {id(parameter) for parameter in model.parameters()}  # a ModuleList's slice is a new list of old ones
    built = [(module, where) for module, where in made if any(id(p) not in known for p in module.parameters())]
    scale = float(first.nan_to_num().abs().max())
    moved, kept = distance(first, other), distance(first, same)
    if moved <= max(1e-6 * scale, 10 * kept):
        if built:
            yield probe.finding(
                f"forward() makes a {type(built[0][0]).__name__} of its own in each pass: its parameters never learn",
                "note",
                evidence={"modules made in three passes": len(built)},
                where=built[0][1],
            )
        return
    evidence: dict[str, Any] = {"two eval passes differ by": moved, "largest logit": scale}
    if built:
        yield probe.finding(
            f"forward() makes new layers in each pass ({type(built[-1][0]).__name__}), with new random weights that "
            f"nothing trains: two passes in eval mode differ",
            evidence=evidence | {"modules made in three passes": len(built)},
            where=built[-1][1],
            repair="make the layers once, in __init__, and call them in forward",
        )
        return
    seed_all(1)
    with Dropouts() as dropouts:
        _, before = probe.trace(model, batch)
    active = dropouts.active()
    if active:
        drop = active[0]
        hidden = drop.module is not None and drop.module.training
        how = "eval() does not reach the module that applies it" if hidden else "it is applied whatever the mode"
        yield probe.finding(
            f"dropout is on in eval mode: {how}",
            evidence=evidence | {"rate": drop.rate, "at line": drop.line, "uses in a pass": len(active)},
            where=drop.where,
            repair="register the module, so that eval() reaches it" if hidden else probe.check.repair,
        )
        return
    seed_all(2)
    _, after = probe.trace(model, batch)
    name, where = culprit(
        model, before, after, lambda a, b: a.shape == b.shape and distance(a, b) > 1e-6 * float(1 + a.abs().max())
    )
    yield probe.finding(
        f"two passes in eval mode over one batch differ: something random is at work, first in {name}",
        evidence=evidence | {"module": name},
        where=where,
    )


def configured(model: nn.Module) -> dict[str, float]:
    """The dropout rates above 0 that modules have, or, where no module has any, the model's config names."""
    rates = {}
    for name, module in model.named_modules():
        rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", None)
        if isinstance(rate, float) and 0 < rate < 1:
            rates[name] = rate
    if rates:
        return rates
    config = getattr(model, "config", None)
    fields = vars(config) if hasattr(config, "__dict__") else {}
    # Of layers left out whole, and of heads for another task, which this model may not have.
    others = ("classif", "cls", "summary", "layerdrop", "layer_drop", "path", "router", "expert")
    names = [name for name in fields if "drop" in name and not any(other in name for other in others)]
    return {
        f"config.{name}": fields[name] for name in names if isinstance(fields[name], float) and 0 < fields[name] < 1
    }


@check(
    "dropout-dead",
    severity="P3",
    family="modes",
    lesson="03_stuck_in_eval",
    silent="the training loss even looks better; only the validation loss turns up sooner",
    repair="apply dropout where the rate is configured, with training=self.training",
    after=("random-in-eval",),
)
def dropout_dead(probe: Probe) -> Iterator[Finding]:
    """Where dropout is configured, two passes in train mode differ, and no dropout is switched off in train mode.

    A module that the user keeps in eval mode on purpose, by a train() of its own, may have its dropout off.
    """
    batch = probe.whole()
    model, _ = probe.precise(batch)
    rates = configured(model)
    if not rates:
        raise Missing("the model has no dropout: no module and no config names a rate above 0")
    try:
        model.train()
        seed_all(1)
        with Dropouts() as dropouts:
            first = probe.logits(model, batch)
        seed_all(2)
        second = probe.logits(model, batch)
        awake = model.training
        dead = [d for d in dropouts.seen if not d.on and d.rate > 0 and d.module is not None and d.module.training]
    except Missing:
        raise
    except Exception as error:
        raise Missing(f"a pass in train mode fails ({shorten(f'{type(error).__name__}: {error}', 100)})") from error
    finally:
        model.eval()
    name, rate = next(iter(rates.items()))
    evidence: dict[str, Any] = {"rates configured": len(rates), "the first, in": name or "the model", "rate": rate}
    if dead:
        yield probe.finding(
            f"dropout of rate {dead[0].rate:g} is switched off in train mode",
            evidence=evidence | {"at line": dead[0].line, "uses in a pass": len(dead)},
            where=dead[0].where,
            repair="give F.dropout training=self.training",
        )
    elif distance(first, second) == 0:
        how = "train() does not switch the model to train mode" if not awake else "none is applied"
        yield probe.finding(
            f"dropout is configured, and two passes in train mode are identical: {how}",
            evidence=evidence | {"uses in a pass": len(dropouts.active())},
            where=Where.of(type(model).train if not awake else type(model).__init__),
        )


def tokens_of(result: Any) -> Any:
    """What generate gave, to be compared: nested lists of ids."""
    if hasattr(result, "__next__"):
        result = list(itertools.islice(result, 8))
    result = getattr(result, "sequences", result)
    if isinstance(result, Tensor):
        return result.tolist()
    return [tokens_of(item) for item in result] if isinstance(result, list | tuple) else result


@check(
    "generates-with-dropout",
    severity="P3",
    family="modes",
    lesson="03_stuck_in_eval",
    silent="the text is only somewhat worse, and nobody compares it with that of eval mode",
    repair="run it in eval mode and give each submodule its own mode back (lab.mode.evaluating), or call eval() before",
    after=("random-in-eval",),
)
def generates_with_dropout(probe: Probe) -> Iterator[Finding]:
    """Greedy generate() on a model in train mode uses no dropout, and gives the tokens that it gives in eval mode.

    A generate() that never switches modes leaves them as they were, and so passes for well-behaved.
    """
    subject = probe.subject
    if not subject.can_generate():
        raise Missing("needs generate=lambda model, batch: ids, greedy")
    if subject.batch is None:
        raise Missing("needs a batch: give batch=")
    model = probe.own()
    training = model.training

    def generated(training: bool, seed: int) -> tuple[Any, list[Drop]]:
        model.train(training)
        seed_all(seed)
        with Dropouts() as dropouts, torch.no_grad():
            return tokens_of(subject.generated(model, clone(batch))), dropouts.active()

    batch = clone(subject.few_rows(), next((p.device for p in model.parameters()), "cpu"))
    try:
        expected = generated(False, 1)[0]
        runs = [generated(True, seed) for seed in (1, 2)]
        alive = any(drops for _, drops in runs)
        if not alive:
            if generated(False, 2)[0] != expected:
                raise Missing("two calls in eval mode differ: give a generate= that is greedy")
            model.train()
            with Dropouts() as dropouts, torch.no_grad():
                subject.logits(model, clone(batch))
            alive = bool(dropouts.active())
    except Missing:
        raise
    except Exception as error:
        raise Missing(f"generate raises {type(error).__name__}: {shorten(str(error), 100)}") from error
    used = [drops for _, drops in runs if drops]
    changed = sum(tokens != expected for tokens, _ in runs)
    if used or changed:
        evidence = {"of two calls other tokens in": changed}
        if used:
            evidence |= {"uses of dropout in a call": len(used[0]), "rate": used[0][0].rate}
        own = getattr(type(model), "generate", None)
        yield probe.finding(
            "generate() of a model in train mode leaves dropout on: it never switches to eval"
            + ("" if training else "; yours is in eval mode, and a call in the middle of a training would wake this"),
            None if training else "note",
            evidence=evidence,
            where=Where.of(own if own is not None else subject.generate),
        )
    elif not alive:
        raise Missing("no dropout is on in train mode, so none can be left on")
