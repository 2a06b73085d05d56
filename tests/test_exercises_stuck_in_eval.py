"""Lesson 03: its solutions pass, and each typical mistake is called by its name."""

from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from torch import nn

from lab.exercises.stuck_in_eval import check, modes, repair


@contextmanager
def solution(model):
    noted = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in noted:
            module.training = training


@contextmanager
def never_evaluates(model):
    yield model


@contextmanager
def never_returns(model):
    model.eval()
    yield


@contextmanager
def flag_only(model):
    was = model.training
    model.eval()
    yield
    model.training = was


@contextmanager
def direct_children(model):
    noted = [(module, module.training) for module in [model, *model.children()]]
    model.eval()
    yield
    for module, training in noted:
        module.training = training


@contextmanager
def train_at_the_end(model):
    model.eval()
    yield
    model.train()


@contextmanager
def back_if_it_was_train(model):
    was = model.training
    model.eval()
    try:
        yield
    finally:
        if was:
            model.train()


@contextmanager
def wakes_only_its_own(model):
    awake = [module for module in model.modules() if module.training] if model.training else []
    model.eval()
    try:
        yield
    finally:
        for module in awake:
            module.training = True


@contextmanager
def recursive_train(model):
    noted = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in noted:
            module.train(training)


@contextmanager
def notes_on_the_model(model):
    model.noted = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in model.noted:
            module.training = training


@contextmanager
def notes_once(model):
    if not hasattr(model, "noted"):
        model.noted = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in model.noted:
            module.training = training


@contextmanager
def no_finally(model):
    noted = [(module, module.training) for module in model.modules()]
    model.eval()
    yield
    for module, training in noted:
        module.training = training


@contextmanager
def swallows(model):
    noted = [(module, module.training) for module in model.modules()]
    model.eval()
    with suppress(Exception):
        yield
    for module, training in noted:
        module.training = training


@contextmanager
def except_exception(model):
    noted = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    except Exception:
        for module, training in noted:
            module.training = training
        raise
    for module, training in noted:
        module.training = training


@contextmanager
def only_if_still_in_eval(model):
    with solution(model):
        noted = None
        yield
        noted = {module for module in model.modules() if module.training}
    for module in noted:
        module.training = True


@contextmanager
def gradients_off(model):
    with solution(model):
        torch.set_grad_enabled(False)
        yield


REPAIRS: list[tuple[str, Callable[..., Any]]] = [
    ("NoneType", lambda model: None),
    ("decorate it with @contextmanager", lambda model: model.eval()),
    ("call model.eval() before the yield", never_evaluates),
    ("nothing gives the modes back", never_returns),
    ("only some modules are back", flag_only),
    ("modules() goes all the way down", direct_children),
    ("came in eval left in train", train_at_the_end),
    ("the frozen encoder woke up", back_if_it_was_train),
    ("one flag is not all", wakes_only_its_own),
    ("a part with two parents woke up", recursive_train),
    ("local variable", notes_on_the_model),
    ("the inner with undid the outer one", notes_once),
    ("where is the finally?", no_finally),
    ("swallows the exception", swallows),
    ("GeneratorExit", except_exception),
    ("the block itself switches", only_if_still_in_eval),
    ("two switches", gradients_off),
]


def right(model: nn.Module, function: Callable[[nn.Module], Any]) -> bool:
    came = [(module, module.training) for module in model.modules()]
    first = next(model.children())
    try:
        for part, mode in ((model, True), (model, False), (first, True), (model, True), (first, False)):
            part.train(mode)
            before = modes(model)
            function(model)
            if modes(model) != before:
                return False
        return True
    finally:
        for module, training in came:
            module.training = training


def as_it_comes(model, function):
    before = modes(model)
    with solution(model):
        for name, module in model.named_modules():
            module.training = before[name]
        function(model)
        return modes(model) == before


def outermost_flag(model, function):
    with solution(model):
        model.train()
        function(model)
        return model.training


def from_train_and_eval(model, function):
    with solution(model):
        for mode in (True, False):
            model.train(mode)
            function(model)
            if set(modes(model).values()) != {mode}:
                return False
    return as_it_comes(model, function)


def leaves_them(model, function):
    before = modes(model)
    function(model)
    return modes(model) == before


def expects_train(model, function):
    function(model)
    with solution(model):
        return all(modes(model).values())


def lost_on_a_raise(model, function):
    came = modes(model)
    answer = right(model, lambda model: None)
    for part, mode in ((model, True), (model, False), (model, True), (next(model.children()), False)):
        part.train(mode)
        before = modes(model)
        function(model)
        answer = answer and modes(model) == before
    for name, module in model.named_modules():
        module.training = came[name]
    return answer


def one_part_unseen(model, function):
    """Looks at the encoder alone."""
    with solution(model):
        for mode in (True, False):
            model.train(mode)
            model.encoder.train(not mode)
            function(model)
            if any(module.training is mode for module in model.encoder.modules()):
                return False
    return True


CHECKS: list[tuple[str, Callable[..., Any]]] = [
    ("return True or False", lambda model, function: function(model)),
    ("never calls the function", lambda model, function: True),
    ("never says True", lambda model, function: right(model, function) and False),
    ("says True for a generate() that leaves", lambda model, function: right(model, function) or True),
    ("other modes than it found", leaves_them),
    ("the wrong way round", lambda model, function: not right(model, function)),
    ("not model.training alone", outermost_flag),
    ("start from other modes too", as_it_comes),
    ("start from a mixed one", from_train_and_eval),
    ("one part in eval", one_part_unseen),
    ("when the function raises", lost_on_a_raise),
]


def test_the_repair_passes() -> None:
    repair(solution)


@pytest.mark.parametrize(("text", "answer"), REPAIRS, ids=[text for text, _ in REPAIRS])
def test_a_wrong_repair_is_named(text: str, answer: Callable[..., Any]) -> None:
    try:
        with pytest.raises(AssertionError) as raised:
            repair(answer)
    finally:
        torch.set_grad_enabled(True)
    assert text in str(raised.value)


def test_the_check_passes() -> None:
    check(right)


@pytest.mark.parametrize(("text", "answer"), CHECKS, ids=[text for text, _ in CHECKS])
def test_a_wrong_check_is_named(text: str, answer: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError) as raised:
        check(answer)
    assert text in str(raised.value)
