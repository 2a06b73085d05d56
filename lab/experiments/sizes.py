"""The presets 16m, 50m and 117m on the same tokens: a few of them on a CPU, whole corpora on a GPU."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from .. import presets
from ..config import ModelConfig, TrainConfig
from .plan import Data, Plan, budgets

FIXED = ("vocab_size", "eos_id", "bos_id", "pad_id")  # which the data decides
WIKI = Data("wiki2015", "gpt2")
WIKITEXT = Data("wikitext-2", "gpt2", max_epochs=None)
SIZES = ("16m", "50m", "117m")
# Steps of 2,048 tokens: 0.13M, 0.7M, 2M and 5M tokens. All sizes have the first two budgets in common.
CPU = {"16m": (64, 344, 980, 2445), "50m": (64, 344, 980), "117m": (64, 344)}
# Steps of 16,384 tokens: 2.1M, 5M and 26.9M tokens, the last just below one epoch of wiki2015.
GPU = (128, 306, 1640)
WIKITEXT_EPOCHS, WIKITEXT_STEPS = 10, 1450  # of 16,384 tokens


def sizes(device: str) -> list[Plan]:
    """On a CPU at least 5M tokens of wiki2015 for 16m, 2M for 50m and 0.7M for 117m; on a GPU all of it for each, then
    ten epochs of WikiText-2, for the review's own configuration too.

    Shorter budgets leave the longest run and come down on their own (see plan.budgets), so that sizes can be compared
    at each. On a CPU in fp32 with 2,048 tokens a step, on a GPU as the preset says.
    """
    return cpu() if device == "cpu" else gpu()


def cpu() -> list[Plan]:
    """The budgets that all sizes have in common first."""
    families = {}
    for size in SIZES:
        train = recipe(size, "wsd").replace(precision="fp32", compile=False, batch_tokens=2048, eval_every=80)
        data = replace(WIKI, validation_tokens=32_768)  # which 117m reads as long as it trains on 11 thousand
        families[size] = budgets(Plan(f"{size}-wiki2015", shape(size, dropout=0.0), train, data), CPU[size])
    return [plan for pair in (0, 2, 4, 6) for size in SIZES for plan in families[size][pair : pair + 2]]


def gpu() -> list[Plan]:
    plans = []
    for size in SIZES:
        train = recipe(size, "wsd").replace(eval_every=41)
        plans += budgets(Plan(f"{size}-wiki2015", shape(size, dropout=0.0), train, WIKI), GPU)
    for size in ("reported-16m", *SIZES):
        train = recipe(size, "cosine").replace(steps=WIKITEXT_STEPS, eval_every=WIKITEXT_STEPS // WIKITEXT_EPOCHS)
        plans.append(Plan(f"{size}-wikitext-2", shape(size), train, WIKITEXT))
    return plans


def shape(size: str, **changes: Any) -> dict[str, Any]:
    """A preset's model, with some fields changed: where no token is read twice, without dropout."""
    model = presets.get(size).model
    return {
        field.name: getattr(model, field.name) for field in fields(ModelConfig) if field.name not in FIXED
    } | changes


def recipe(size: str, schedule: str) -> TrainConfig:
    """A preset's training; a warmup of 20 steps, which the shortest budget can afford too."""
    train = presets.get(size).train.replace(schedule=schedule)
    return train.replace(warmup_steps=20, final_rate=0.0) if schedule == "wsd" else train
