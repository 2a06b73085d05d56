"""One cause at a time: the same small model, tokens and steps, three seeds, and one thing changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config import TrainConfig
from .ladder import rate, shape
from .plan import Data, Plan

STEPS = 1024
SEEDS = (0, 1, 2)
# 113 thousand parameters without embeddings, 524 thousand positions, the context of the ladder.
MODEL = shape(48, 4, 2)
TRAIN = TrainConfig(
    STEPS, learning_rate=rate(48), schedule="cosine", warmup_steps=round(0.05 * STEPS), final_rate=0.1,
    weight_decay=0.1, beta2=0.95, batch_tokens=512, eval_every=256,
)  # fmt: skip
ARTICLES = Data(validation_tokens=32_768)
# Lines, each ended by an EOS: what a collation that knows no packing reads.
ROWS = replace(ARTICLES, layout="rows", train_tokens=1_000_000)
PADDED = replace(ROWS, layout="padded")
# So little that dropout matters: half a million positions are thirteen epochs.
FEW = replace(ARTICLES, train_tokens=40_000, max_epochs=None)


def arms() -> list[dict[str, Any]]:
    """Every arm once: `cause` and `arm` name it; model, train, data, probe and fault are what it changes."""
    found: list[dict[str, Any]] = []

    def add(cause: str, arm: str, **changes: Any) -> None:
        found.append({"cause": cause, "arm": arm, **changes})

    add("base", "base")
    # Two layers more give what a narrower feed-forward layer takes: 6 x 8 d² = 4 x 12 d².
    add("d_ff", "2x, same width", model={"d_ff": 96})
    add("d_ff", "2x, same parameters", model={"d_ff": 96, "num_layers": 6})
    for context in (64, 128, 256, 512):
        length = {"max_seq_len": context}
        add("context", f"{context} packed", model=length, data=ROWS, probe="alone")
        add("context", f"{context} padded", model=length, data=PADDED, probe="alone")
    for arm, steps in (("none", 0), ("1%", round(0.01 * STEPS)), ("2000 steps", 2000)):
        add("warmup", arm, train={"warmup_steps": steps})
    for value in (3e-4, 6e-4, 1.5e-3, 6e-3, 12e-3):
        add("rate", f"{value:g}", train={"learning_rate": value})
    add("head", "untied", model={"tie_head": False})
    often = {"eval_every": STEPS // 8}
    few = {"data": FEW, "probe": "samples", "train": often}
    add("dropout", "0", **few)
    add("dropout", "0.2", model={"dropout": 0.2}, **few)
    # The first validation generates a sample, and the model never comes back.
    add("dropout", "0.2, stuck in eval", model={"dropout": 0.2}, fault="stuck-in-eval-language-model", **few)
    ends = {"probe": "endings", "train": often}
    add("eos", "learned", data=PADDED, **ends)
    add("eos", "ignored", data=replace(PADDED, eos="ignored"), **ends)
    add("eos", "cut off", data=replace(PADDED, cut=32), **ends)
    return found


def causes() -> list[Plan]:
    """26 arms by three seeds, one seed after the other.

    Each arm spends what the base does: 1,024 steps of 512 positions. An arm that pads sees fewer tokens for it, which
    its column `tokens` counts. `context` and `eos` read lines in place of articles, so compare them among themselves
    (`rows_loss` is the loss of every line read alone, `loss` that of the lines as one stream), `dropout` with its own
    three, and all others with the base.
    """
    plans = []
    for seed in SEEDS:
        for arm in arms():
            plans.append(
                Plan(
                    f"{arm['cause']}-{slug(arm['arm'])}-seed{seed}",
                    MODEL | arm.get("model", {}),
                    TRAIN.replace(**{"seed": seed, **arm.get("train", {})}),
                    arm.get("data", ARTICLES),
                    {"cause": arm["cause"], "arm": arm["arm"]},
                    probe=arm.get("probe"),
                    fault=arm.get("fault"),
                )
            )
    return plans


def slug(text: str) -> str:
    return "-".join(text.replace(",", "").replace("%", "pc").split())
