"""A table of runs as `lab experiment causes --collect` writes it, with losses that the test decides."""

from collections.abc import Callable, Collection

import pandas as pd

from lab.experiments.causes import causes

BITS = 0.4  # per byte, of a nat per token


def table(
    loss: Callable[[str, str, int], float] = lambda cause, arm, seed: 6 + 0.01 * seed,
    seeds: Collection[int] = (0, 1, 2),
) -> pd.DataFrame:
    """loss(cause, arm, seed): of every arm; rows read alone are half a nat above."""
    rows = []
    for plan in causes():
        cause, arm, seed = plan.about["cause"], plan.about["arm"], plan.train.seed
        if seed not in seeds:
            continue
        value = loss(cause, arm, seed)
        rows.append(
            {
                "run": plan.name,
                "arm": arm,
                "cause": cause,
                "rows_loss": value + 0.5 if cause in ("context", "eos") else None,
                "parameters": 315_936,
                "body_parameters": 113_184,
                "tokens": plan.tokens // (2 if plan.data.layout == "padded" else 1),
                "loss": value,
                "bits_per_byte": value * BITS,
                "seed": seed,
                "corpus": "wiki2015 bpe-4096 0123",
                "context": plan.model["max_seq_len"],
                "rate": plan.train.learning_rate,
                "warmup_steps": plan.train.warmup_steps,
                "steps": plan.train.steps,
                "batch_tokens": plan.train.batch_tokens,
                "layout": plan.data.layout,
            }
        )
    return pd.DataFrame(rows)


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """Three points a run, which come down to its loss."""
    points = [(run, 512 * step, loss + 2 - step / 512) for run, loss in frame[["run", "loss"]].itertuples(index=False)
              for step in (512, 768, 1024)]  # fmt: skip
    return pd.DataFrame(points, columns=["run", "tokens", "training_loss"])
