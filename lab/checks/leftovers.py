"""Checks on what a pass in eval mode depends on besides its batch: chance, and what earlier passes left behind."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..calling import Missing, clone
from ..instruments import culprit, user_frame
from ..probe import LENGTH, ROWS, Probe
from ..report import Finding, Where
from .base import check
from .greedy import in_words, scaled_up, where_of_generate, write
from .numerics import ABOUT
from .randomness import Dropouts, constructions, distance, seed_all

DRAWS = {
    "randn", "randn_like", "rand", "rand_like", "randint", "randint_like", "randperm", "normal", "normal_", "uniform_",
    "bernoulli", "bernoulli_", "exponential_", "multinomial", "poisson", "gumbel_softmax", "rrelu", "rrelu_",
    "geometric_", "cauchy_", "log_normal_", "random_",
}  # fmt: skip


class Draws(TorchFunctionMode):
    """Records which line of the user's code draws random numbers from torch, and by which function."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Where, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in DRAWS:
            frame = user_frame(2)
            self.seen.append((name, Where.of_code(frame.f_code), frame.f_lineno))
        return func(*args, **(kwargs or {}))


@check(
    "noise-at-inference",
    severity="P1",
    **ABOUT,
    silent="a little noise costs a little loss, and evaluation differs from run to run by no more than seeds do",
    repair="add noise only where self.training is true",
    explains=("random-in-eval",),
)
def noise_at_inference(probe: Probe) -> Iterator[Finding]:
    """In eval mode nothing random but dropout reaches the output, and dropout has no business there either.

    random-in-eval asks whether two passes differ, whatever makes them; here all dropout is taken out and layers made
    anew in each pass are left aside, and what is left is noise that somebody adds: the line that draws it is named.
    """
    batch = probe.whole(ROWS)
    model, _ = probe.precise(batch)
    logits = []
    with constructions() as made, Dropouts(off=True), Draws() as draws:
        for seed in (1, 1, 2):
            seed_all(seed)
            logits.append(probe.logits(model, batch))
    first, same, other = logits
    scale = float(first.nan_to_num().abs().max())
    moved, kept = distance(first, other), distance(first, same)
    if moved <= max(1e-6 * scale, 10 * kept):
        return
    known = {id(parameter) for parameter in model.parameters()}
    if any(id(p) not in known for module, _ in made for p in module.parameters()):
        raise Missing("forward() makes layers of its own in each pass, which hides other noise")
    evidence: dict[str, Any] = {"two eval passes differ by": moved, "largest logit": scale}
    if draws.seen:
        name, where, line = draws.seen[0]
        yield probe.finding(
            f"noise is added in eval mode too, by {name}()",
            evidence=evidence | {"at line": line, "draws in a pass": len(draws.seen) // 3},
            where=where,
        )
        return
    seed_all(1)
    _, before = probe.trace(model, batch)
    seed_all(2)
    _, after = probe.trace(model, batch)
    name, where = culprit(model, before, after, apart)
    yield probe.finding(
        f"noise is added in eval mode too, first in {name}", evidence=evidence | {"module": name}, where=where
    )


def apart(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and distance(a, b) > 1e-6 * float(1 + a.nan_to_num().abs().max())


@check(
    "stale-state",
    severity="P1",
    **ABOUT,
    silent="the first batch is right, and tests rarely run a second one",
    repair="keep nothing on the module between calls, or make it anew at the start of each: caches, masks, positions",
    explains=("its-own-teacher", "cache-equals-full", "batched-equals-alone", "stops-at-eos", "generates-with-dropout"),
)
def stale_state(probe: Probe) -> Iterator[Finding]:
    """A pass in eval mode leaves no trace in the next: one batch gives the same output twice, after another batch of
    other sizes, and after generate().

    All passes start from the same random state, with dropout taken out, so that chance is not taken for memory.
    """
    batch, other = probe.whole(ROWS), another(probe)
    model = untouched(probe)

    def ask(what: Any) -> Tensor:
        seed_all(1)
        with Dropouts(off=True), torch.no_grad():
            return probe.subject.logits(model, clone(what))  # not probe.logits: how it fails is the question

    try:
        first = ask(batch)
    except Missing:
        raise
    except Exception as error:
        raise Missing(f"the model fails on a batch made like yours ({in_words(error)})") from error
    scale = float(first.nan_to_num().abs().max())
    for how, do in (
        ("the same batch gives another output the second time", lambda: None),
        ("a batch gives another output after another batch", partial(ask, other)),
        ("a batch gives another output after generate()", partial(generate, probe, model, batch)),
    ):
        try:
            do()
        except Missing:
            continue
        except Exception as error:
            if fails_afresh(probe, other):
                continue  # it takes no such batch, whatever came before
            yield left_behind(probe, model, f"a batch of other sizes fails after the first ({in_words(error)})", {})
            return
        try:
            again = ask(batch)
        except Exception as error:
            yield left_behind(probe, model, f"a batch fails that passed before ({in_words(error)})", {})
            return
        change = distance(first, again)
        if change > 1e-5 * scale:
            evidence = {"largest change of a logit": change, "largest logit": scale}
            yield left_behind(probe, model, how, evidence, batch)
            return
    change = after_padding(probe, batch, first)
    if change > 1e-5 * scale:
        how = "the first batch, which was padded, decides what later ones without padding give"
        yield left_behind(probe, model, how, {"largest change of a logit": change, "largest logit": scale})
        return
    yield from generates_anew(probe, model, batch, other)


def untouched(probe: Probe) -> nn.Module:
    """A copy that has seen no batch yet, with weights that let its context tell."""
    return scaled_up(probe.copy(), probe.subject.vocab_size)


def after_padding(probe: Probe, batch: Any, first: Tensor) -> float:
    """How far a batch without padding moves where a padded one of the same size was the first that the model saw."""
    real = {name: torch.ones(ROWS, LENGTH[name], dtype=torch.bool) for name in probe.subject.streams}
    for there in real.values():
        there[1:, -2:] = False
    model = untouched(probe)
    try:
        with Dropouts(off=True):
            probe.logits(model, probe.batch(real))
            seed_all(1)
            again = probe.logits(model, batch)
    except Exception:
        return 0.0  # it takes no padding
    return distance(first, again)


def another(probe: Probe) -> Any:
    """A batch of other tokens and other sizes; shorter where the model takes no longer ones."""
    stranger = Probe(probe.subject, probe.check, probe.seed + 1, probe.shared)
    try:
        return stranger.whole(ROWS + 1, {name: LENGTH[name] + 2 for name in probe.subject.streams})
    except Missing:
        return stranger.whole(ROWS + 1, {name: LENGTH[name] - 1 for name in probe.subject.streams})


def fails_afresh(probe: Probe, batch: Any) -> bool:
    """Whether a model that has seen nothing yet fails on a batch: then it is not what came before."""
    try:
        probe.logits(untouched(probe), batch)
    except Exception:
        return True
    return False


def generate(probe: Probe, model: nn.Module, batch: Any) -> Tensor:
    ids = write(probe, model, batch).ids
    model.eval()
    return ids


def left_behind(probe: Probe, model: nn.Module, message: str, evidence: dict[str, Any], batch: Any = None) -> Finding:
    """The finding, with the first module that answers otherwise than on a model that has seen nothing yet."""
    where = None
    if batch is not None:
        with Dropouts(off=True):
            _, before = probe.trace(untouched(probe), batch)
            _, after = probe.trace(model, batch)
        name, where = culprit(model, before, after, apart)
        message, evidence = f"{message}, first in {name}", evidence | {"module": name}
    return probe.finding(f"something is kept from pass to pass: {message}", evidence=evidence, where=where)


def generates_anew(probe: Probe, model: nn.Module, batch: Any, other: Any) -> Iterator[Finding]:
    """The same of generate(): what a batch makes it write does not depend on what it wrote before."""
    try:
        seed_all(1)
        first = generate(probe, model, clone(batch))
    except Missing:
        return  # it does not generate, or generation fails of itself
    try:
        generate(probe, model, other)
        seed_all(1)
        again = generate(probe, model, clone(batch))
    except Missing as error:
        yield probe.finding(
            f"something is kept from call to call: the second call fails ({error})", where=where_of_generate(probe)
        )
        return
    if not torch.equal(first, again):
        yield probe.finding(
            "something is kept from call to call: generate() writes other tokens the second time",
            evidence={"tokens that change": int((first != again).sum()) if first.shape == again.shape else len(again)},
            where=where_of_generate(probe),
        )
