"""One CSV row a finished run, and the curves beside it, made anew from the folders of the runs at any time."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import checkpoint, runlog
from .runner import RUN

POINTS = 40  # of a training curve, at most: each the mean of the steps since the one before

Row = dict[str, Any]
COLUMNS = [
    "run", "parameters", "body_parameters", "tokens", "flops", "loss", "bits_per_byte", "seed", "corpus", "versions",
    "hardware", "command", "d_model", "num_layers", "num_heads", "d_ff", "context", "dropout", "tied", "rate",
    "schedule", "warmup_steps", "steps", "batch_tokens", "layout", "train_tokens", "epochs", "perplexity",
    "training_loss", "seconds",
]  # fmt: skip
CURVE_COLUMNS = ["run", "step", "tokens", "training_loss", "validation_loss"]
UNITS = {"event", "step", "loss", "tokens"}  # of a validation record; what else is there was measured by a probe


def collect(experiment: str, out: Path, to: Path) -> tuple[Path, Path]:
    """Write `to`/NAME.csv and `to`/NAME_curves.csv of the finished runs in `out`/NAME -> their paths.

    Rows that are there already stay, but for those of the runs in `out`: an experiment may be run in parts, on several
    machines, and a part of it again. The same folders give the same bytes. A run that others go on from has no row: its
    steps are theirs. Raises ValueError where no run is finished.
    """
    folders = [folder for folder in (out / experiment).glob("*") if is_done(folder)]
    found = sorted((read_run(folder) for folder in folders), key=lambda run: natural(run[0]["run"]))
    if not found:
        raise ValueError(f"no finished run in {out / experiment}; run `lab experiment {experiment} --out {out}` first.")
    # The prediction that is tested has a file of that name already, written before its runs.
    stem = "prediction_runs" if experiment == "prediction" else experiment
    paths = to / f"{stem}.csv", to / f"{stem}_curves.csv"
    done = {row["run"] for row, _ in found}
    rows = merged(paths[0], [row for row, _ in found], done)
    curves = merged(paths[1], [point for _, points in found for point in points], done)
    own = sorted({name for row in rows for name in row} - set(COLUMNS))
    extra = sorted({name for point in curves for name in point} - set(CURVE_COLUMNS))
    to.mkdir(parents=True, exist_ok=True)
    write(paths[0], ["run", *own, *COLUMNS[1:]], rows)
    write(paths[1], [*CURVE_COLUMNS, *extra], curves)
    return paths


def merged(path: Path, rows: Sequence[Row], done: set[str]) -> list[Row]:
    """The rows and those that the CSV has of other runs than `done`, by run; the rows of a run stay in their order."""
    kept: list[Row] = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            kept = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file) if row["run"] not in done]
    return sorted([*rows, *kept], key=lambda row: natural(row["run"]))


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts d96 before d128."""
    digits = "".join(c if c.isdigit() else " " if c.isspace() else f" {c} " for c in name).split()
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in digits]


def is_done(folder: Path) -> bool:
    if not (folder / RUN).is_file() or not (folder / checkpoint.INDEX).is_file():
        return False
    about = json.loads((folder / RUN).read_text(encoding="utf-8"))
    if about["plan"]["stage"]:
        return False
    return checkpoint.find(folder).about["progress"]["step"] == about["plan"]["train"]["steps"]


def read_run(folder: Path) -> tuple[Row, list[Row]]:
    """The row and the curve of a finished run, from its run.json, log and last checkpoint."""
    about = json.loads((folder / RUN).read_text(encoding="utf-8"))
    plan, kept = about["plan"], checkpoint.find(folder).about
    model, train = plan["model"], plan["train"]
    records = runlog.read(folder)
    steps = [record for record in records if record["event"] == "step"]
    validations = {record["step"]: record for record in records if record["event"] == "validation"}
    last = validations[train["steps"]]
    points = curve(plan["name"], steps, validations)
    positions = train["steps"] * train["batch_tokens"] * train["accumulate"]
    tail = steps[-max(1, len(steps) // 20) :]
    row = {
        "run": plan["name"],
        **plan["about"],
        "parameters": about["parameters"],
        "body_parameters": about["body_parameters"],
        "tokens": steps[-1]["tokens"],
        "flops": round(about["flops_per_token"] * positions),
        "loss": last["loss"],
        "bits_per_byte": last["bits_per_byte"],
        "seed": train["seed"],
        "corpus": about["corpus"],
        "versions": " ".join(f"{name} {version}" for name, version in kept["versions"].items()),
        "hardware": about["hardware"],
        "command": about["command"],
        "d_model": model["d_model"],
        "num_layers": model["num_layers"],
        "num_heads": model["num_heads"],
        "d_ff": model["d_ff"],
        "context": model["max_seq_len"],
        "dropout": model.get("dropout", kept["model"]["dropout"]),
        "tied": kept["model"]["tie_head"],
        "rate": train["learning_rate"],
        "schedule": train["schedule"],
        "warmup_steps": train["warmup_steps"],
        "steps": train["steps"],
        "batch_tokens": train["batch_tokens"] * train["accumulate"],
        "layout": plan["data"]["layout"],
        "train_tokens": about["train_tokens"],
        "epochs": steps[-1]["tokens"] / about["train_tokens"],
        "perplexity": last["perplexity"],
        "training_loss": mean(record["loss"] for record in tail),
        "seconds": round(sum(record["seconds"] for record in steps if record["step"] > about["begun"]), 1),
    }
    row |= {name: value for name, value in last.items() if name not in UNITS and name not in row}
    return row, points


def curve(name: str, steps: Sequence[Row], validations: dict[int, Row]) -> list[Row]:
    """Points at even distances and at every validation: the mean training loss since the one before."""
    every = max(1, len(steps) // POINTS)
    points: list[Row] = []
    held: list[float] = []
    for record in steps:
        held.append(record["loss"])
        step = record["step"]
        if step % every and step not in validations:
            continue
        point = {"run": name, "step": step, "tokens": record["tokens"], "training_loss": mean(held)}
        if (validation := validations.get(step)) is not None:
            point["validation_loss"] = validation["loss"]
            point |= {k: v for k, v in validation.items() if k not in UNITS | {"perplexity", "bits_per_byte"}}
        points.append(point)
        held = []
    return points


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def write(path: Path, columns: list[str], rows: Sequence[Row]) -> None:
    """A CSV with the same bytes on every machine; numbers to six digits."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
