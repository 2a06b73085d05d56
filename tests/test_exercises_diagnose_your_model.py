"""Lesson 08: its solutions pass, and each typical mistake is called by its name."""

import pytest
import torch

import lab
from lab.exercises.diagnose_your_model import relation, wiring


def scores(model, ids):
    return model(ids, torch.zeros_like(ids, dtype=torch.bool))[1]


def wired(**changes):
    how = {
        "forward": lambda model, batch: model(batch["story"], batch["hidden"])[1],
        "streams": {"target": ("story", "hidden")},
        "pad_id": 0,
        **changes,
    }
    return lambda model, batch: lab.Subject(model, batch, **how)


def test_the_wiring_passes():
    wiring(wired())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda model, batch: lab.diagnose(model, batch), "your function returned a Report"),
        (wired(forward=None), "your logits have 16 columns"),
        (wired(streams=None), "attends-to-pads is skipped"),
        (
            lambda model, batch: wired()(type(model)(), batch),
            "does not fire on a model that has this fault: use the model that you are given",
        ),
    ],
    ids=["a report", "the features", "no streams", "its own model"],
)
def test_wrong_wirings_are_named(answer, message):
    with pytest.raises(AssertionError, match=message):
        wiring(answer)


def solution(model, ids, tolerance=1e-5, positions=slice(None), every=True):
    with lab.evaluating(model), torch.no_grad():
        before = scores(model, ids)
        for j in range(1 if every else ids.size(1) - 1, ids.size(1)):
            changed = ids.clone()
            changed[:, j] = ids[:, j] % 30 + 1
            if (scores(model, changed) - before)[:, :j][:, positions].abs().max() > tolerance:
                return True
    return False


def in_train(model, ids):
    before, changed = scores(model, ids), ids.clone()
    changed[:, -1] = 20
    return bool(((scores(model, changed) - before)[:, :-1].abs() > 1e-5).any())


def leaves_eval(model, ids):
    model.eval()
    return solution(model, ids)


def test_the_relation_passes():
    relation(solution)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda model, ids: None, "your check returned None"),
        (lambda model, ids: True, "fires on the healthy model"),
        (lambda model, ids: False, "without any causal mask passes"),
        (in_train, "in train mode your check fires"),
        (leaves_eval, "leaves the model in eval"),
        (lambda model, ids: solution(model, ids, positions=slice(0, 1)), "position 4 is told"),
        (lambda model, ids: solution(model, ids, positions=slice(0, 1), every=False), "a mask that is one late passes"),
        (lambda model, ids: solution(model, ids, positions=slice(-1, None)), "position 0 is told"),
        (lambda model, ids: solution(model, ids, tolerance=0.05), "by a thousandth of a word"),
    ],
    ids=[
        "nothing",
        "always",
        "never",
        "dropout",
        "eval",
        "the first only",
        "the last token only",
        "the nearest only",
        "coarse",
    ],
)
def test_wrong_relations_are_named(answer, message):
    with pytest.raises(AssertionError, match=message):
        relation(answer)
