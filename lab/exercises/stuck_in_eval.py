"""Graders of lesson 03: a context manager that gives the modes back, and a check that finds code which does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from .. import faults
from ..config import ModelConfig
from ..transformer import Transformer
from . import grader

CONFIG = ModelConfig(16, 8, 2, 1, 16, 8, pad_id=1, bos_id=0, eos_id=2)


def require(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


class Interrupted(Exception):  # noqa: N818 - raised on purpose
    """Raised in the middle of a with."""


class Shared(nn.Module):
    """Two parents with one part in common, which is in eval below a parent in train."""

    def __init__(self) -> None:
        super().__init__()
        common = nn.Dropout(0.1)
        self.first, self.second = nn.Sequential(common, nn.Dropout(0.1)), nn.Sequential(common, nn.Dropout(0.1))
        common.eval()


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def frozen() -> Transformer:
    """In train, the encoder in eval: the usual way to freeze a part."""
    model = Transformer(CONFIG)
    model.encoder.eval()
    return model


def deep() -> Transformer:
    """In eval, one dropout far down in train: the usual way to sample from dropout."""
    model = Transformer(CONFIG).eval()
    model.encoder[0].dropout.train()
    return model


def held(manager: Callable[[nn.Module], AbstractContextManager], model: nn.Module) -> Iterator[int]:
    with manager(model):
        yield 1
        yield 2


@grader("03a", title="every submodule gets its own mode back, whatever happens")
def repair(evaluating: Callable[[nn.Module], AbstractContextManager]) -> None:
    """The learner's context manager, from every kind of start and to every kind of end."""
    model = Transformer(CONFIG)
    manager = evaluating(model)
    require(
        hasattr(manager, "__enter__") and not isinstance(manager, nn.Module),
        f"`with` cannot use what your function returned ({type(manager).__name__}): decorate it with @contextmanager, "
        f"and `yield` where the block is to run",
    )
    with manager:
        awake = sum(modes(model).values())
        require(not awake, f"inside the with, {awake} submodules are in train mode: call model.eval() before the yield")
    left = [name for name, training in modes(model).items() if not training]
    require(len(left) < len(modes(model)), "after the with, the model is still in eval: nothing gives the modes back")
    require(
        not left,
        f"after the with, only some modules are back in train and {len(left)} are not, {left[:1]} first: "
        f"`training` is a flag of each module, and modules() goes all the way down",
    )
    model = Transformer(CONFIG).eval()
    with evaluating(model):
        pass
    require(not any(modes(model).values()), "a model that came in eval left in train: give back what you found")
    for make, woken in (
        (frozen, "the frozen encoder woke up: you called train() on everything"),
        (deep, "all submodules were in eval and now some are in train: give each its own mode"),
        (Shared, "a part with two parents woke up: train(mode) goes down to the parts, so assign `training` instead"),
    ):
        model = make()
        before = modes(model)
        with evaluating(model):
            pass
        after = modes(model)
        require(not any(after[name] and not before[name] for name in after), woken)
        lost = [name for name in after if before[name] and not after[name]]
        require(
            not lost,
            f"{lost[:1]} was in train below a model in eval, and is in eval now: the model's own flag does not speak "
            f"for its parts",
        )
    nested(evaluating)
    endings(evaluating)


def nested(evaluating: Callable[[nn.Module], AbstractContextManager]) -> None:
    model = frozen()
    before = modes(model)
    with evaluating(model):
        with evaluating(model):
            pass
        require(not any(modes(model).values()), "the inner with undid the outer one: the model is awake too early")
    require(
        modes(model) == before,
        "after two nested withs the modes are not what they were: did the inner one overwrite what the outer one had "
        "noted? Keep it in a local variable",
    )


def endings(evaluating: Callable[[nn.Module], AbstractContextManager]) -> None:
    model = frozen()
    before = modes(model)
    try:
        with evaluating(model):
            raise Interrupted
    except Interrupted:
        pass
    else:
        raise AssertionError("your with swallows the exception of its block: use finally, or raise it again")
    require(modes(model) == before, "an exception skips your last line: where is the finally?")
    generator = held(evaluating, model)
    next(generator)
    generator.close()
    require(
        modes(model) == before,
        "a generator that its caller abandons ends with GeneratorExit, which `except Exception` lets through: "
        "where is the finally?",
    )
    with evaluating(model):
        model.train()
    require(modes(model) == before, "what the block itself switches stays switched: give back what you noted first")
    require(torch.is_grad_enabled(), "after the with gradients are off: modes and gradients are two switches")


def root_only(model: Transformer) -> None:
    was = model.training
    model.eval()
    try:
        model.continuation(torch.tensor([[5, 2]]), 1)
    finally:
        model.train(was)


def one_part(model: Transformer) -> None:
    model.decoder.eval()


def raises(model: Transformer) -> None:
    model.eval()
    raise Interrupted


def generate(model: Transformer) -> None:
    model.generate(torch.tensor([[5, 2]]), 1)


@grader("03b", title="your check kills the fault, the half-repair and two mutants")
def check(leaves_modes_alone: Callable[[nn.Module, Callable], Any]) -> None:
    """True for the healthy generate(); False for both faults and for what restores only the outermost mode."""
    calls = 0

    def verdict(function: Callable, make: Callable[[], Transformer] = lambda: Transformer(CONFIG)) -> bool:
        model = make()
        before = modes(model)

        def counted(given: Transformer) -> Any:
            nonlocal calls
            calls += 1
            return function(model if given is None else given)

        try:
            answer = leaves_modes_alone(model, counted)
        except Interrupted:
            answer = False
        require(isinstance(answer, bool), f"your check returned {answer!r}: return True or False")
        ending = " when the function raises" if function is raises else ""
        require(
            modes(model) == before,
            f"your check itself leaves the model in other modes than it found{ending}: note them first, give them back "
            f"in a finally",
        )
        return answer

    fault, half = faults.get("stuck-in-eval-transformer"), faults.get("train-at-the-end")
    healthy = verdict(generate)
    require(calls, "your check never calls the function: function(model) is what it is to judge")
    with fault.inject():
        stuck = verdict(generate)
    require(healthy or stuck, "your check never says True, not even for code that gives every mode back")
    require(not (healthy and stuck), "your check says True for a generate() that leaves the model in eval")
    require(
        healthy and not stuck, "your check has it the wrong way round: True means that the modes are what they were"
    )
    require(verdict(generate, frozen), "your check says False for the healthy generate() of a model with a frozen part")
    with half.inject():
        require(
            not verdict(generate, frozen),
            "your check says True for train() at the end, although the encoder of this model was frozen and woke up: "
            "compare every submodule, and not model.training alone",
        )
        require(
            not verdict(generate),
            "your check says True for train() at the end: a model that is all in train cannot show it, so let the "
            "function start from other modes too",
        )
    require(
        not verdict(root_only),
        "your check says True for `was = model.training` ... `model.train(was)`: it is right for a model all in train "
        "and for one all in eval, so let the function start from a mixed one: one part in eval",
    )
    require(not verdict(one_part), "your check says True for a function that leaves one part in eval")
    verdict(raises)
