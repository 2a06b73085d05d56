"""A configuration is checked when it is made, and its errors say what to do."""

import dataclasses

import pytest

from lab.config import PRESETS, ModelConfig, preset

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
    assert preset("tiny", pad_id=0) == PRESETS["tiny"].replace(pad_id=0)


def test_an_unknown_preset_names_the_nearest_and_all():
    with pytest.raises(ValueError, match=r"unknown preset 'translater'. Did you mean 'translator'\?") as error:
        preset("translater")
    assert all(name in str(error.value) for name in PRESETS)


@pytest.mark.parametrize("name", ["bos_id", "eos_id"])
def test_padding_needs_an_id_of_its_own(name):
    with pytest.raises(ValueError, match=f"pad_id and {name} are both 0"):
        ModelConfig(4, pad_id=0, **{name: 0})
