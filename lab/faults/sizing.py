"""Faults in the plan of a training: no warmup, or too much; a model of the wrong shape or size."""

from __future__ import annotations

from ..config import ModelConfig, TrainConfig
from .base import fault

LESSON = "06_why_perplexity_70"
WARMUP = {"of": "lab.schedule:warmup", "caught_by": "no-warmup", "lesson": LESSON, "on": "language model"}
PRESET = {"of": "lab.presets:tiny", "lesson": LESSON, "on": "language model"}


@fault("no-warmup", **WARMUP)
def no_warmup(step: int, warmup_steps: int) -> float:
    """the rate jumps straight to its peak, before AdamW has seen how large gradients are"""
    return 1.0


@fault("warmup-of-4000", **WARMUP, half_repair=True)
def warmup_of_4000(step: int, warmup_steps: int) -> float:
    """4,000 steps of warmup, as in the paper's run of 100,000: a short run is over before it gets to its rate"""
    return min(1.0, (step + 1) / 4000)


@fault("thin-feed-forward", **PRESET, caught_by="feed-forward-ratio")
def thin() -> tuple[ModelConfig, TrainConfig]:
    """d_ff is 2 x d_model, half of the paper's"""
    model = ModelConfig(512, d_model=32, num_heads=2, num_layers=2, d_ff=64, max_seq_len=64)
    return model, TrainConfig(200, learning_rate=3e-3, warmup_steps=20, eval_every=50)


@fault("short-context", **PRESET, caught_by="context-too-short")
def short() -> tuple[ModelConfig, TrainConfig]:
    """max_seq_len is a quarter of the longest row, and what stands beyond it is cut off"""
    model = ModelConfig(512, d_model=32, num_heads=2, num_layers=2, d_ff=128, max_seq_len=16)
    return model, TrainConfig(200, learning_rate=3e-3, warmup_steps=20, eval_every=50)


@fault("oversized-model", **PRESET, caught_by="too-little-data")
def oversized() -> tuple[ModelConfig, TrainConfig]:
    """eight times as wide, for the same data: it has less than two tokens for each parameter"""
    model = ModelConfig(512, d_model=256, num_heads=2, num_layers=2, d_ff=1024, max_seq_len=64)
    return model, TrainConfig(200, learning_rate=3e-3, warmup_steps=20, eval_every=50)


@fault("undersized-model", **PRESET, caught_by="too-small-for-the-data")
def undersized() -> tuple[ModelConfig, TrainConfig]:
    """half as wide and half as deep: more of the same data can teach it little"""
    model = ModelConfig(512, d_model=16, num_heads=2, num_layers=1, d_ff=64, max_seq_len=64)
    return model, TrainConfig(200, learning_rate=3e-3, warmup_steps=20, eval_every=50)
