"""The learning rate at every boundary, and beside transformers' schedules."""

import warnings

import pytest
import torch

from lab.config import TrainConfig
from lab.schedule import SCHEDULES, WSD_DECAY, rate_factor
from lab.trainer import planned_rates

WARMUP, STEPS, FLOOR = 10, 110, 0.1  # 100 steps after warmup: the middle is step 60, wsd comes down from step 90 on
BOUNDARIES = {
    #            first, last warmup, first after, middle, before wsd's end, last, the end, far beyond
    "cosine": [0.1, 1.0, 1.0, 0.55, 0.185942353, 0.100222047, 0.1, 0.1],
    "linear": [0.1, 1.0, 1.0, 0.55, 0.28, 0.109, 0.1, 0.1],
    "constant": [0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "wsd": [0.1, 1.0, 1.0, 1.0, 1.0, 0.145, 0.1, 0.1],
}
AT = [0, 9, 10, 60, 90, 109, 110, 5000]


@pytest.mark.parametrize("name", BOUNDARIES)
def test_the_rate_at_every_boundary(name):
    factors = [rate_factor(step, name, WARMUP, STEPS, FLOOR) for step in AT]
    assert factors == pytest.approx(BOUNDARIES[name], abs=1e-9)


def test_every_schedule_has_its_row():
    assert list(BOUNDARIES) == list(SCHEDULES)


@pytest.mark.parametrize("name", BOUNDARIES)
def test_no_warmup_starts_at_the_peak(name):
    factors = [rate_factor(step, name, 0, 100, 0.0) for step in range(101)]
    assert factors[0] == 1 and factors[1] == pytest.approx(1, abs=0.011)
    assert factors == sorted(factors, reverse=True) and factors[100] == (1 if name == "constant" else 0)


@pytest.mark.parametrize("name", BOUNDARIES)
def test_a_run_shorter_than_its_warmup_ends_while_the_rate_rises(name):
    """100 steps of warmup, 20 in all: (step + 1) / 100, and nothing of the schedule."""
    factors = [rate_factor(step, name, 100, 20, 0.1) for step in range(20)]
    assert factors == pytest.approx([(step + 1) / 100 for step in range(20)])


@pytest.mark.parametrize("name", BOUNDARIES)
@pytest.mark.parametrize("steps", [1, 2, 10, 11])
def test_the_shortest_runs_have_a_rate(name, steps):
    factors = [rate_factor(step, name, 10, steps, 0.0) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)


def test_the_floor_is_a_share_of_the_peak():
    config = TrainConfig(STEPS + 1, learning_rate=3e-3, schedule="linear", warmup_steps=WARMUP, final_rate=0.25)
    rates = planned_rates(config)
    assert len(rates) == STEPS + 1 and max(rates) == 3e-3
    assert rates[-1] == pytest.approx(3e-3 * (0.25 + 0.75 / 101))


def theirs(make, **how) -> list[float]:
    """The factors of a schedule of transformers, step for step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer, **how)
    factors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an optimizer that never steps
        for _ in range(STEPS):
            factors.append(schedule.get_last_lr()[0])
            schedule.step()
    return factors


WSD = {
    "num_training_steps": STEPS,
    "num_decay_steps": round(WSD_DECAY * (STEPS - WARMUP)),
    "decay_type": "linear",
}


@pytest.mark.parametrize(
    ("name", "function", "how", "floor"),
    [
        ("cosine", "get_cosine_schedule_with_warmup", {"num_training_steps": STEPS}, 0.0),
        (
            "cosine",
            "get_cosine_with_min_lr_schedule_with_warmup",
            {"num_training_steps": STEPS, "min_lr_rate": FLOOR},
            FLOOR,
        ),
        ("linear", "get_linear_schedule_with_warmup", {"num_training_steps": STEPS}, 0.0),
        ("constant", "get_constant_schedule_with_warmup", {}, 0.0),
        ("wsd", "get_wsd_schedule", WSD, 0.0),
        ("wsd", "get_wsd_schedule", WSD | {"min_lr_ratio": FLOOR}, FLOOR),
    ],
)
def test_schedules_are_those_of_transformers(name, function, how, floor):
    """After warmup the same. In warmup ours is one step ahead: theirs begins with a step at rate 0, which moves nothing
    (or, for wsd, at the floor). Their linear and plain cosine have no floor."""
    transformers = pytest.importorskip("transformers")
    other = theirs(getattr(transformers, function), num_warmup_steps=WARMUP, **how)
    ours = [rate_factor(step, name, WARMUP, STEPS, floor) for step in range(STEPS)]
    assert ours[WARMUP:] == pytest.approx(other[WARMUP:], abs=1e-12)
    if "min_lr_ratio" not in how:
        assert other[0] == 0 and ours[: WARMUP - 1] == pytest.approx(other[1:WARMUP])
