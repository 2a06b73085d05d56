"""`evaluating` gives every submodule its own mode back, whatever happens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lab.mode import evaluating


def tree() -> nn.Module:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
    return nn.Sequential(nn.ModuleList([inner, nn.Dropout(0.1)]), nn.ModuleDict({"a": nn.LayerNorm(2), "b": inner}))


SIZE = len(list(tree().modules()))
PATTERNS = st.lists(st.booleans(), min_size=SIZE, max_size=SIZE)


def in_modes(pattern: list[bool]) -> nn.Module:
    model = tree()
    for module, training in zip(model.modules(), pattern, strict=True):
        module.training = training
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@given(PATTERNS)
def test_everything_is_in_eval_inside_and_as_before_after(pattern):
    model = in_modes(pattern)
    with evaluating(model) as inside:
        assert inside is model
        assert not any(modes(model))
    assert modes(model) == pattern


@given(PATTERNS)
def test_after_an_exception(pattern):
    model = in_modes(pattern)
    with pytest.raises(KeyError, match="mine"), evaluating(model):
        raise KeyError("mine")
    assert modes(model) == pattern


@given(PATTERNS)
def test_nested(pattern):
    model = in_modes(pattern)
    with evaluating(model):
        with evaluating(model):
            pass
        assert not any(modes(model)), "the inner one must not wake the outer one's model"
    assert modes(model) == pattern


@given(PATTERNS, st.integers(0, SIZE - 1))
def test_nested_in_a_part(pattern, part):
    model = in_modes(pattern)
    with evaluating(list(model.modules())[part]), evaluating(model):
        pass
    assert modes(model) == pattern


@given(PATTERNS)
def test_whatever_is_switched_inside(pattern):
    model = in_modes(pattern)
    with evaluating(model):
        model.train()
    assert modes(model) == pattern


def held_across_a_yield(model):
    with evaluating(model):
        yield 1
        yield 2


@given(PATTERNS, st.sampled_from(["close", "abandon", "throw", "exhaust"]))
def test_a_generator_that_holds_it(pattern, ending):
    model = in_modes(pattern)
    generator = held_across_a_yield(model)
    assert modes(model) == pattern, "nothing happens before the first step"
    next(generator)
    assert not any(modes(model))
    if ending == "close":
        generator.close()
    elif ending == "abandon":
        del generator
    elif ending == "throw":
        with pytest.raises(KeyError):
            generator.throw(KeyError)
    else:
        list(generator)
    assert modes(model) == pattern


class Stubborn(nn.Module):
    """A part that refuses to change its mode."""

    def train(self, mode: bool = True) -> nn.Module:
        raise RuntimeError("not me")


def test_a_part_that_refuses_eval_leaves_the_others_as_they_were():
    model = nn.Sequential(nn.Dropout(0.1), Stubborn(), nn.Dropout(0.1))
    with pytest.raises(RuntimeError, match="not me"), evaluating(model):
        pass
    assert all(modes(model))


@pytest.mark.parametrize("enabled", [True, False])
def test_gradients_are_none_of_its_business(enabled):
    model = tree()
    with torch.set_grad_enabled(enabled):
        with evaluating(model):
            assert torch.is_grad_enabled() is enabled
        assert torch.is_grad_enabled() is enabled
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
