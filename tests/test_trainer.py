"""The loop learns, trusts evaluate() with its mode, and stops on what it cannot train on."""

import pytest
import torch

import lab
from lab import IGNORE_INDEX, TrainConfig, faults, labels, matrix
from lab.schedule import warmup_cosine
from lab.trainer import find_device, fit

BATCH = labels.collate_pairs([([5, 6, 7], [8, 9, 10]), ([11, 12], [13])], **matrix.SPECIAL)


def model(**changes):
    torch.manual_seed(0)
    return lab.Transformer(matrix.config(**changes))


def test_it_learns_a_batch_by_heart():
    history = fit(model(dropout=0.0), [BATCH], TrainConfig(120, learning_rate=3e-3, warmup_steps=5))
    assert history.steps[-1]["loss"] < 0.1 * history.steps[0]["loss"]


def test_same_seed_same_losses_and_validation_changes_nothing():
    plain = fit(model(), [BATCH], TrainConfig(6))
    validated = fit(model(), [BATCH], TrainConfig(6, eval_every=2), validation=[BATCH])
    assert [row["loss"] for row in plain.steps] == [row["loss"] for row in validated.steps]
    assert [row["step"] for row in validated.evaluations] == [2, 4, 6]


def test_a_stuck_evaluate_changes_the_training_after_it():
    config = TrainConfig(6, eval_every=3)
    healthy = fit(model(), [BATCH], config, validation=[BATCH])
    with faults.get("stuck-in-eval-transformer").inject():
        stuck = fit(model(), [BATCH], config, validation=[BATCH])
    losses = [[row["loss"] for row in history.steps] for history in (healthy, stuck)]
    assert losses[0][:3] == losses[1][:3] and losses[0][3] != losses[1][3]


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.1), (8, 0.9), (9, 1.0), (10, 1.0), (60, 0.55), (110, 0.1), (500, 0.1)]
)
def test_schedule_at_its_boundaries(step, factor):
    assert warmup_cosine(step, warmup_steps=10, steps=110, floor=0.1) == pytest.approx(factor)


def test_a_batch_without_a_target_stops_with_its_reason():
    ignored = {**BATCH, "labels": torch.full_like(BATCH["labels"], IGNORE_INDEX)}
    with pytest.raises(ValueError, match="every label.*-100"):
        fit(model(), [ignored], TrainConfig(1))


def test_gradients_that_are_not_finite_stop_before_the_weights_are_lost():
    """An empty source that no label looks at: the loss is finite, its gradient is not."""
    trained = model(dropout=0.0)
    batch = {key: value.clone() for key, value in BATCH.items()}
    batch["input_ids"][1], batch["labels"][1] = matrix.SPECIAL["pad_id"], IGNORE_INDEX
    with (
        faults.get("minus-infinity").inject(),
        pytest.raises(FloatingPointError, match="gradient norm is nan at step 1"),
    ):
        fit(trained, [batch], TrainConfig(3))
    assert all(parameter.isfinite().all() for parameter in trained.parameters())
    fit(trained, [batch], TrainConfig(3))


def test_a_loss_that_is_not_finite_stops_with_its_step():
    broken = model()
    with torch.no_grad():
        broken.decoder_norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="nan at step 1"):
        fit(broken, [BATCH], TrainConfig(3))


@pytest.mark.parametrize("field", ["steps", "warmup_steps", "eval_every", "learning_rate", "clip_norm"])
def test_a_config_refuses_what_is_not_positive(field):
    with pytest.raises(ValueError, match=f"{field} is 0"):
        TrainConfig(**{"steps": 1, field: 0})


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="device 'cuda:99' is not there.*use cpu"):
        find_device("cuda:99")
    with pytest.raises(ValueError, match="device 'gpu' is not there.*use cpu"):
        find_device("gpu")
