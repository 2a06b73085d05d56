"""What a training leaves behind to read: a line of JSON a step, a progress bar, TensorBoard where it is there."""

from __future__ import annotations

import json
import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

LOG = "log.jsonl"
Record = dict[str, Any]


def read(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a log, or of the log in a run's folder. A last line that a kill cut short is left out."""
    path = Path(path)
    path = path / LOG if path.is_dir() else path
    records = []
    for number, line in enumerate(lines := path.read_text(encoding="utf-8").splitlines()):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines) - 1:
                raise ValueError(f"{path} line {number + 1} is no JSON ({error}); was the file edited?") from error
    return records


class RunLog:
    """Takes every record of a run. folder: where log.jsonl goes, or None. step: what a resumed run goes on from.

    A record of event "step" has step, epoch, tokens (so far), loss (nats a target token), rate, gradient_norm, seconds,
    tokens_per_second, matmul_fraction (of the peak measured at the start, or None) and memory (peak, bytes). One of
    event "validation" has step, loss, tokens, perplexity and, where the data says them, word_perplexity and
    bits_per_byte. What is not finite is null. Raises OSError naming the file where it cannot be written.
    """

    def __init__(
        self, folder: Path | None, steps: int, step: int = 0, *, progress: bool = False, tensorboard: Path | None = None
    ) -> None:
        self.file = None
        self.board = None if tensorboard is None else summary_writer(tensorboard, step)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            kept = [r for r in read(folder) if r["step"] <= step] if (folder / LOG).exists() and step else []
            part = folder / f".{LOG}.part"
            part.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
            os.replace(part, folder / LOG)
            self.file = (folder / LOG).open("a", encoding="utf-8")
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=not progress, file=sys.stderr)

    def write(self, record: Record) -> None:
        record = {name: finite(value) if isinstance(value, float) else value for name, value in record.items()}
        if self.file is not None:
            try:
                self.file.write(json.dumps(record, allow_nan=False) + "\n")
                self.file.flush()
            except OSError as error:
                raise OSError(
                    f"{self.file.name} cannot be written ({error}); make room, then go on with --resume."
                ) from error
        if self.board is not None:
            numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
            for name, value in numbers.items():
                self.board.add_scalar(f"{record['event']}/{name}", value, record["step"])
        if record["event"] == "step":
            self.bar.update(1)
            self.bar.set_postfix_str(
                f"loss {record['loss']:.3f}, {record['tokens_per_second']:,.0f} tokens/s", refresh=False
            )
        elif not self.bar.disable:
            self.bar.write(summary(record), file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()
        if self.file is not None:
            with suppress(OSError):  # what could not be written before, and was said
                self.file.close()


def summary(record: Record) -> str:
    """One line of a validation record."""
    parts = [f"step {record['step']}: validation loss {record['loss']:.4f}"]
    units = {
        "perplexity": "perplexity {:.2f} a token",
        "word_perplexity": "{:.2f} a word",
        "bits_per_byte": "{:.3f} bits a byte",
    }
    parts += [text.format(record[name]) for name, text in units.items() if record.get(name) is not None]
    return ", ".join(parts)


def summary_writer(folder: Path, step: int) -> Any:
    """What a killed run wrote after the step that it goes on from is dropped."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"--tensorboard {folder} needs a package that is not here; run: pip install tensorboard"
        ) from error
    return SummaryWriter(folder, purge_step=step + 1 if step else None)


def finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
