"""Named sizes and recipes; each docstring says what it costs and what to expect of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .config import ModelConfig, TrainConfig, unknown

GPT2_VOCABULARY = 50257


@dataclass(frozen=True)
class Preset:
    """A model, the recipe that trains it, and what its docstring promises."""

    model: ModelConfig
    train: TrainConfig
    doc: str


Maker = Callable[[], tuple[ModelConfig, TrainConfig]]
_MAKERS: dict[str, Maker] = {}


def register(name: str) -> Callable[[Maker], Maker]:
    def keep(make: Maker) -> Maker:
        _MAKERS[name] = make
        return make

    return keep


def names() -> list[str]:
    return list(_MAKERS)


def get(name: str) -> Preset:
    """The preset of that name. Raises ValueError naming those there are."""
    if name not in _MAKERS:
        raise unknown("preset", name, names())
    model, train = _MAKERS[name]()
    return Preset(model, train, _MAKERS[name].__doc__ or "")


def preset(name: str, **changes: Any) -> ModelConfig:
    """The model of a preset with some fields changed. Raises ValueError naming the presets there are."""
    return get(name).model.replace(**changes)


@register("tiny")
def tiny() -> tuple[ModelConfig, TrainConfig]:
    """A toy for tests."""
    model = ModelConfig(512, d_model=32, num_heads=2, num_layers=2, d_ff=128, max_seq_len=64)
    return model, TrainConfig(200, learning_rate=3e-3, warmup_steps=20, eval_every=50)


@register("translator")
def translator() -> tuple[ModelConfig, TrainConfig]:
    """The demo's."""
    model = ModelConfig(2000, d_model=128, num_heads=4, num_layers=2, d_ff=512, max_seq_len=64)
    return model, TrainConfig(600, learning_rate=1e-3, warmup_steps=120, eval_every=60)


@register("reported-16m")
def reported_16m() -> tuple[ModelConfig, TrainConfig]:
    """The review's configuration as it was: d_ff only twice d_model, rows of 256, no warmup, rate 3e-4."""
    model = ModelConfig(GPT2_VOCABULARY, d_model=256, num_heads=4, num_layers=4, d_ff=512, max_seq_len=256)
    return model, TrainConfig(12000, learning_rate=3e-4, warmup_steps=0, weight_decay=0.1, beta2=0.95)


@register("16m")
def repaired_16m() -> tuple[ModelConfig, TrainConfig]:
    """The same, repaired."""
    model = ModelConfig(GPT2_VOCABULARY, d_model=256, num_heads=4, num_layers=4, d_ff=1024, max_seq_len=256)
    return model, TrainConfig(12000, learning_rate=1e-3, warmup_steps=240, weight_decay=0.1, beta2=0.95)


@register("50m")
def option_a() -> tuple[ModelConfig, TrainConfig]:
    """The review's Option A."""
    model = ModelConfig(GPT2_VOCABULARY, d_model=512, num_heads=8, num_layers=6, d_ff=2048, max_seq_len=512)
    return model, TrainConfig(12000, learning_rate=6e-4, warmup_steps=240, weight_decay=0.1, beta2=0.95)


@register("117m")
def option_c() -> tuple[ModelConfig, TrainConfig]:
    """The review's Option C: GPT-2 small."""
    model = ModelConfig(GPT2_VOCABULARY, d_model=768, num_heads=12, num_layers=12, d_ff=3072, max_seq_len=1024)
    return model, TrainConfig(12000, learning_rate=6e-4, warmup_steps=240, weight_decay=0.1, beta2=0.95)
