"""Graders of lesson 03: a context manager that gives the modes back, and a check that finds code which does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import faults
from ..config import ModelConfig
from ..transformer import Transformer
from . import grader, require


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def model_with(frozen: str | None = None, awake: str | None = None) -> Transformer:
    """All in train, but a part and all below it in eval ("" is the whole), but a part of that in train."""
    model = Transformer(ModelConfig(16, 8, 2, 1, 16, 8, pad_id=1, bos_id=0, eos_id=2))
    for part, mode in ((frozen, False), (awake, True)):
        if part is not None:
            model.get_submodule(part).train(mode)
    return model


def shared() -> nn.Module:
    common = nn.Dropout().eval()  # below two parents in train
    return nn.ModuleList([nn.ModuleList([common]), nn.ModuleList([common])])


@grader("03a", title="every submodule gets its own mode back, whatever happens")
def repair(evaluating: Callable[[nn.Module], Any]) -> None:
    """The learner's context manager, from every kind of start; `endings` tries every kind of end."""
    manager = evaluating(model := model_with())
    kind = f"`with` cannot use what your function returned ({type(manager).__name__})"
    require(hasattr(manager, "__enter__"), f"{kind}: decorate it with @contextmanager, and `yield` for the block")
    with manager:
        awake = sum(modes(model).values())
        require(not awake, f"inside the with, {awake} submodules are in train mode: call model.eval() before the yield")
    left = [name for name, training in modes(model).items() if not training]
    require(len(left) < len(modes(model)), "after the with, the model is still in eval: nothing gives the modes back")
    require(not left, f"only some modules are back in train, not {left[:1]}: modules() goes all the way down")
    for made, woken in (
        (model_with(""), "a model that came in eval left in train: give back what you found"),
        (model_with("encoder"), "the frozen encoder woke up: you called train() on everything"),
        (shared(), "a part with two parents woke up: train(mode) goes down to the parts, so assign `training` instead"),
        (model_with("", "encoder.0.dropout"), "all but one part were in eval, now more are in train: each has its own"),
    ):
        before = modes(made)
        with evaluating(made):
            pass
        after = modes(made)
        require(not any(after[name] and not before[name] for name in after), woken)
        lost = [name for name in after if before[name] and not after[name]]
        require(not lost, f"{lost[:1]} was in train below a model in eval, and is in eval now: one flag is not all")
    endings(evaluating)


def endings(evaluating: Callable[[nn.Module], Any]) -> None:
    before = modes(model := model_with("encoder"))
    with evaluating(model):
        with evaluating(model):
            pass
        require(not any(modes(model).values()), "the inner with undid the outer one: the model is awake too early")
    overwritten = "did the inner one overwrite what the outer one had noted? Keep it in a local variable"
    require(modes(model) == before, f"after two nested withs the modes are not what they were: {overwritten}")
    try:
        with evaluating(model):
            raise LookupError
    except LookupError:
        require(modes(model) == before, "an exception skips your last line: where is the finally?")
    else:
        raise AssertionError("your with swallows the exception of its block: use finally, or raise it again")

    def held():
        with evaluating(model):
            yield

    next(generator := held())
    generator.close()
    way_out = "an abandoned generator ends with GeneratorExit, which `except Exception` lets through"
    require(modes(model) == before, f"{way_out}: where is the finally?")
    with evaluating(model):
        model.train()
    require(modes(model) == before, "what the block itself switches stays switched: give back what you noted first")
    require(torch.is_grad_enabled(), "after the with gradients are off: modes and gradients are two switches")


def gives_one_flag_back(model: Transformer) -> None:
    was = model.training
    model.eval().train(was)


def raises(model: Transformer) -> None:
    model.eval()
    raise LookupError


@grader("03b", title="your check kills the fault, the half-repair and two mutants")
def check(leaves_modes_alone: Callable[[nn.Module, Callable], Any]) -> None:
    """True for the healthy generate(); False for both faults, for one flag given back, and for one part forgotten."""
    calls, ids, wrong = [], torch.tensor([[5, 2]]), "your check says True for"

    def ask(function: Callable = lambda model: model.generate(ids, 1), frozen: str | None = None) -> bool:
        before, answer = modes(model := model_with(frozen)), False
        try:
            answer = leaves_modes_alone(model, lambda given: (calls.append(given), function(given))[1])
        except LookupError:
            require(function is raises, "your check raised a LookupError of its own")
        require(isinstance(answer, bool), f"your check returned {answer!r}: return True or False")
        ending = " when the function raises: give them back in a finally" if function is raises else ": note them first"
        require(modes(model) == before, f"your check itself leaves the model in other modes than it found{ending}")
        return answer

    healthy = ask()
    require(calls, "your check never calls the function: function(model) is what it is to judge")
    with faults.get("stuck-in-eval-transformer").inject():
        stuck = ask()
    require(healthy or stuck, "your check never says True, not even for code that gives every mode back")
    require(not (healthy and stuck), f"{wrong} a generate() that leaves the model in eval")
    require(healthy, "your check has it the wrong way round: True means that the modes are what they were")
    require(ask(frozen="encoder"), "your check says False for the healthy generate() of a model with a frozen part")
    with faults.get("train-at-the-end").inject():
        every = "the frozen encoder woke up: compare every submodule, not model.training alone"
        require(not ask(frozen="encoder"), f"{wrong} train() at the end, where {every}")
        starts = "a model all in train cannot show it, so let the function start from other modes too"
        require(not ask(), f"{wrong} train() at the end: {starts}")
    mixed = "it is right for a model all in train or all in eval, so start from a mixed one too: one part in eval"
    require(not ask(gives_one_flag_back), f"{wrong} `was = model.training` ... `model.train(was)`: {mixed}")
    require(not ask(lambda model: model.decoder.eval()), f"{wrong} a function that leaves one part in eval")
    ask(raises)
