"""The ladder: sizes by token budgets on one corpus, the rates that it trains with, and the run that tests its fit."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import TrainConfig
from .plan import Plan, budgets, thousands

CONTEXT = 128
# So few tokens a step because steps are what short budgets lack: at 262 thousand tokens, width 64, 512 steps of 512
# ended 0.17 nats below 256 steps of 1,024.
TRAIN = TrainConfig(
    1024, schedule="wsd", warmup_steps=64, final_rate=0.0, weight_decay=0.1, beta2=0.95, batch_tokens=512,
    eval_every=512,
)  # fmt: skip
# d_model -> layers, heads, and the longest budget in steps; 51 thousand to 3.1 million parameters without embeddings.
# The longest budgets cost about the same, 5 to 13 TFLOP: the best size for that much lies among the smaller ones.
SIZES = {
    32: (4, 2, 8192),
    48: (4, 2, 8192),
    64: (4, 2, 4096),
    80: (5, 4, 4096),
    96: (6, 4, 2048),
    128: (6, 4, 2048),
    160: (7, 5, 1024),
    192: (7, 6, 1024),
}
HELD_OUT = {224: (7, 7, 2048)}  # 4.2 million, a third larger than any that the fit sees
BUDGETS = (512, 1024, 2048, 4096, 8192)


def rate(d_model: int) -> float:
    """The peak rate for a width: 0.003 up to 64, above as the inverse of the width (Yang et al. 2022, table 3).

    `rates` tries its half, itself and its double (262 thousand tokens, seed 0): 6.391, 6.244, 6.306 nats at width 32,
    6.163, 6.083, 6.358 at 64, 6.149, 6.067, 6.305 at 128.
    """
    return float(f"{0.003 * min(1, 64 / d_model):.2g}")


def shape(d_model: int, layers: int, heads: int) -> dict[str, object]:
    return {
        "d_model": d_model,
        "num_layers": layers,
        "num_heads": heads,
        "d_ff": 4 * d_model,
        "max_seq_len": CONTEXT,
        "dropout": 0.0,  # no token is read twice
    }


def family(d_model: int, layers: int, heads: int, seed: int, steps: Sequence[int]) -> list[Plan]:
    """One size at these budgets, shortest first, each stage before the runs that leave it."""
    train = TRAIN.replace(learning_rate=rate(d_model), seed=seed)
    return budgets(Plan(f"d{d_model}-seed{seed}", shape(d_model, layers, heads), train), steps)


def ladder() -> list[Plan]:
    """Eight sizes, two to five budgets each: 0.26M to 4.2M tokens of wiki2015, all below one epoch.

    The second seed leaves out each size's longest budget. By seed, then by budget, then by size: what is there when it
    is stopped is a smaller ladder.
    """
    plans: list[Plan] = []
    for seed in (0, 1):
        families = [
            family(d, layers, heads, seed, [steps for steps in BUDGETS if steps <= longest >> seed])
            for d, (layers, heads, longest) in SIZES.items()
        ]
        # A family is stage, run, stage, run, ...
        for pair in range(0, 2 * len(BUDGETS), 2):
            plans += [plan for runs in families for plan in runs[pair : pair + 2]]
    return plans


def rates() -> list[Plan]:
    """The rule for the peak rate against its half and its double: at three widths on the shortest budget, and at the
    narrowest on four times that."""
    plans = []
    for d_model, steps in ((32, 512), (64, 512), (128, 512), (32, 2048)):
        layers, heads, _ = SIZES[d_model]
        for factor in (0.5, 1, 2):
            train = TRAIN.replace(steps=steps, learning_rate=rate(d_model) * factor)
            name = f"d{d_model}-{thousands(train)}k-rate{train.learning_rate:g}"
            plans.append(Plan(name, shape(d_model, layers, heads), train))
    return plans


def prediction() -> list[Plan]:
    """The size above the ladder, at two budgets that the ladder has too; refused until its loss is predicted."""
    return [
        plan
        for d, (layers, heads, longest) in HELD_OUT.items()
        for plan in family(d, layers, heads, 0, [longest // 2, longest])
    ]
