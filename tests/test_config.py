"""A configuration is checked when it is made, and its errors say what to do."""

import dataclasses

import pytest

from lab.config import ModelConfig, TrainConfig
from lab.presets import names, preset

ONE_OR_MORE = ["vocab_size", "d_model", "num_heads", "num_layers", "d_ff", "max_seq_len"]


@pytest.mark.parametrize("name", ONE_OR_MORE)
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_start_at_one(name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}; it must be at least 1"):
        ModelConfig(**{"vocab_size": 100, name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 10, "num_heads": 4}, "d_model 10 is not a multiple of num_heads 4"),
        ({"dropout": 1.0}, r"dropout is 1.0; it is a probability in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"norm": "Pre"}, "unknown norm 'Pre'. Did you mean 'pre'"),
        ({"positions": "rotary"}, "unknown positions 'rotary'.*learned, sinusoidal"),
        ({"activation": "swish"}, "unknown activation 'swish'.*gelu, relu"),
        ({"pad_id": 100}, r"pad_id is 100; the vocabulary has ids 0..99"),
        ({"bos_id": -1}, "bos_id is -1"),
        ({"eos_id": -100}, "eos_id is -100"),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(100, **changes)


def test_the_ends_of_each_range_are_allowed():
    config = ModelConfig(2, 1, 1, 1, 1, 1, dropout=0.0, pad_id=0, bos_id=1, eos_id=1)
    assert config.head_width == 1


def test_replace_changes_a_copy_and_checks_it():
    config = preset("tiny")
    assert config.replace(d_ff=7).d_ff == 7 and config.d_ff == 128
    with pytest.raises(ValueError, match="num_heads 3"):
        config.replace(num_heads=3)


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("tiny").d_ff = 7


def test_preset_takes_changes():
    assert preset("tiny", pad_id=0) == preset("tiny").replace(pad_id=0)


def test_an_unknown_preset_names_the_nearest_and_all():
    with pytest.raises(ValueError, match=r"unknown preset 'translater'. Did you mean 'translator'\?") as error:
        preset("translater")
    assert all(name in str(error.value) for name in names())


@pytest.mark.parametrize("name", ["bos_id", "eos_id"])
def test_padding_needs_an_id_of_its_own(name):
    with pytest.raises(ValueError, match=f"pad_id and {name} are both 0"):
        ModelConfig(4, pad_id=0, **{name: 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number, at least 1"),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"eval_every": -1}, "eval_every is -1"),
        ({"warmup_steps": -1}, "warmup_steps is -1; .* at least 0"),
        ({"patience": 0}, "patience is 0; .* at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0 and finite"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"clip_norm": 0}, "clip_norm is 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be 0 or more"),
        ({"weight_decay": float("inf")}, "weight_decay is inf; .*finite"),
        ({"final_rate": 1.1}, r"final_rate is 1.1; .*in \[0, 1\]"),
        ({"final_rate": float("nan")}, "final_rate is nan"),
        ({"beta2": 1.0}, r"beta2 is 1.0; it must be in \[0, 1\)"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'. Did you mean 'cosine'"),
        ({"precision": "float16"}, "unknown precision 'float16'.*fp32, bf16, fp16"),
    ],
)
def test_a_training_config_names_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"steps": 10} | changes)


def test_the_ends_of_each_range_of_a_training_config_are_allowed():
    config = TrainConfig(1, warmup_steps=0, weight_decay=0.0, final_rate=0.0, beta2=0.0, patience=1)
    assert config.replace(final_rate=1.0, patience=None).final_rate == 1.0
    with pytest.raises(ValueError, match="eval_every is 0"):
        config.replace(eval_every=0)
