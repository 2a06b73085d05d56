"""Small trainings for tests to start in processes of their own: to kill and resume, and on two ranks by torchrun."""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils.data import DataLoader, Sampler

from lab import checkpoint, labels, parallel
from lab.config import ModelConfig, TrainConfig
from lab.language_model import LanguageModel
from lab.trainer import Trainer, fit
from lab.transformer import Transformer

SPECIAL = {"pad_id": 0, "bos_id": 1, "eos_id": 2}
SHAPE = {"vocab_size": 40, "d_model": 16, "num_heads": 2, "num_layers": 2, "d_ff": 32, "max_seq_len": 16}
FLOPS = (1e6, 1e9)  # of a token, and of the device: counting them takes longer than these trainings


def language_model(**changes) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(**SHAPE | SPECIAL | changes))


def translator(**changes) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(**SHAPE | SPECIAL | changes))


def texts(rows: int, seed: int = 0) -> list[list[int]]:
    """Rows of 1 to 14 ids, so that batches hold unequal padding."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 15, (rows,), generator=draw).tolist()
    return [torch.randint(3, 40, (length,), generator=draw).tolist() for length in lengths]


def batch(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return labels.collate_texts(texts(rows, seed), **SPECIAL)


class Epochs(Sampler):
    """Batches in an order that the epoch decides, from a start on."""

    def __init__(self, rows: int, size: int) -> None:
        self.rows, self.size = rows, size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.epoch, self.start = epoch, start

    def __iter__(self):
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.epoch)).split(self.size)
        yield from (indices.tolist() for indices in order[self.start :])


def loader(kind: str = "sampler", rows: int = 21) -> DataLoader | list:
    """Seven batches of three rows; kind: by a sampler with set_epoch, a DataLoader that shuffles, or a list."""
    collate = lambda rows: labels.collate_texts(rows, **SPECIAL)  # noqa: E731
    if kind == "sampler":
        return DataLoader(texts(rows), batch_sampler=Epochs(rows, 3), collate_fn=collate)
    if kind == "shuffle":
        return DataLoader(texts(rows), batch_size=3, shuffle=True, collate_fn=collate)
    return [batch(3, seed) for seed in range(rows // 3)]


def losses(history) -> list[float]:
    return [row["loss"] for row in history.steps]


class Stop(Exception):
    """Ends a training from on_step."""


def stop_after(step: int):
    def on_step(record):
        if record["step"] == step:
            raise Stop

    return on_step


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def interrupted(point: int | None, half: bool = False, how=kill):
    """Call `how` in place of the call number `point` to the file system, or (half) with half of its file written."""
    calls = 0

    def watch(real, writes=False):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == point and not half:
                how()
            out = real(*args, **kwargs)
            if calls == point and writes:
                path = args[1] if real is save_file else args[0]
                os.truncate(path, path.stat().st_size // 2)
                how()
            return out

        return call

    save_file = checkpoint.save_file
    with (
        patch.object(checkpoint, "save_file", watch(save_file, writes=True)),
        patch.object(Path, "write_text", watch(Path.write_text, writes=True)),
        patch.object(Path, "mkdir", watch(Path.mkdir)),
        patch.object(os, "fsync", watch(os.fsync)),
        patch.object(os, "rename", watch(os.rename)),
        patch.object(os, "replace", watch(os.replace)),
        patch.object(shutil, "rmtree", watch(shutil.rmtree) if how is kill else shutil.rmtree),
    ):
        yield lambda: calls


def train(
    out: str,
    resume: bool = False,
    data: str = "sampler",
    point: int | None = None,
    half: bool = False,
    slow: float = 0.0,
    slow_save: float = 0.0,
    limit: int | None = None,
    **config,
):
    """Twelve steps with dropout, a validation and a checkpoint every third.

    point, half: where `interrupted` kills, counted over the checkpoints. slow, slow_save: seconds that a step, and a
    file of a checkpoint, takes longer. limit: the most bytes that a file may have, for the operating system. Leaves
    beside `out` how many calls each save had made at its end, and what an OSError said, after which the status is 1.
    """
    torch.set_num_threads(1)
    if limit is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    save, flush = checkpoint.save, checkpoint.flush

    def counted_save(*args, **kwargs):
        with interrupted(None if point is None else point - counted_save.calls, half) as calls:
            path = save(*args, **kwargs)
        counted_save.calls += calls()
        with open(f"{out}.calls", "a", encoding="utf-8") as file:
            file.write(f"{counted_save.calls}\n")
        return path

    counted_save.calls = 0
    with (
        patch.object(checkpoint, "save", counted_save),
        patch.object(checkpoint, "flush", lambda path: (time.sleep(slow_save), flush(path))),
        patch.object(Trainer, "count_flops", lambda self, batch: FLOPS),
    ):
        try:
            return fit(
                language_model(),
                loader(data),
                TrainConfig(**{"steps": 12, "warmup_steps": 3, "eval_every": 3} | config),
                validation=[batch(4, seed=100), batch(3, seed=101)],
                out=Path(out),
                resume=resume,
                data={"hash": "abc"},
                tokenizer='{"not": "read"}',
                on_step=lambda record: time.sleep(slow),
            )
        except OSError as error:
            Path(f"{out}.error").write_text(str(error), encoding="utf-8")
            raise SystemExit(1) from error


class Poisoned(LanguageModel):
    """A batch's "poison" (B,) is a factor of its loss; a -1 makes NaN of the gradient alone."""

    def forward(self, input_ids, labels=None, poison=None, **how):
        out = super().forward(input_ids, labels, **how)
        if poison is not None:
            zero = self.norm.weight.sum() * 0
            out.loss = out.loss * poison.clamp(min=1).mean() + (zero.sqrt() if (poison < 0).any() else zero)
        return out


def poisoned(**changes) -> Poisoned:
    torch.manual_seed(0)
    return Poisoned(ModelConfig(**SHAPE | SPECIAL | {"dropout": 0.0} | changes))


def with_poison(batch: dict, value: float, row: int = 0) -> dict:
    poison = torch.ones(len(batch["labels"]))
    poison[row] = value
    return {**batch, "poison": poison}


class Experts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = torch.nn.ModuleList([torch.nn.Linear(16, 16) for _ in range(2)])

    def forward(self, x):
        return self.experts[0](x) * self.experts[1](x).sigmoid()


class Foreign(torch.nn.Module):
    """Without a config, with layers in layers, and with a loss that is NaN where there is no target."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(40, 16)
        self.layers = torch.nn.ModuleList([Experts(), torch.nn.Dropout(0.0), torch.nn.Linear(16, 40)])

    def forward(self, input_ids, labels):
        x = self.table(input_ids)
        for layer in self.layers:
            x = layer(x.tanh())
        loss = torch.nn.functional.cross_entropy(x.flatten(0, 1), labels.flatten())
        return ForeignOutput(loss)

    def evaluate(self, batches):
        from lab.evaluation import mean_loss

        return mean_loss(self, batches)


class ForeignOutput(dict):
    def __init__(self, loss) -> None:
        super().__init__(loss=loss)
        self.loss = loss


def pairs(rows: int, seed: int) -> dict[str, torch.Tensor]:
    return labels.collate_pairs(list(zip(texts(rows, seed), texts(rows, seed + 50), strict=True)), **SPECIAL)


def hard_batches(make=batch) -> list[dict[str, torch.Tensor]]:
    """Rows of unequal padding: an odd number, fewer than two, an even one, and three of which only the first counts."""
    few = make(3, 7)
    few["labels"][1:] = labels.IGNORE_INDEX
    return [make(5, 1), make(1, 2), make(4, 3), few]


MODELS = {"language_model": language_model, "translator": translator, "poisoned": poisoned, "foreign": Foreign}


def case(
    model: str = "language_model",
    world: parallel.World | None = None,
    stop: int | None = None,
    poison: float | None = None,
    dropout: float = 0.0,
    out: str | None = None,
    resume: bool = False,
    shape: dict | None = None,
    fail: int | None = None,
    **config,
) -> dict:
    """Six steps over the hard batches -> losses, validations, the error, and where the first dropout put its zeros.

    stop: the step after which it ends. poison: of a row that rank 1 of two has, in the third step. fail: the rank that
    fails in the second.
    """
    torch.set_num_threads(1)
    built = MODELS[model](**({} if model == "foreign" else {"dropout": dropout} | (shape or {})))
    make = pairs if model == "translator" else batch
    batches = hard_batches(make)
    if poison is not None:
        batches[2] = with_poison(batches[2], poison, row=1)  # which rank 1 of two holds
    zeros = []
    for module in built.modules():
        if isinstance(module, torch.nn.Dropout) and dropout and not zeros:
            module.register_forward_hook(lambda _, args, out: zeros.append((out == 0).flatten().tolist()))
            break
    said, history = None, None
    records = []

    def on_step(record):
        records.append(record)
        if record["step"] == stop:
            raise Stop
        if fail is not None and world.rank == fail:
            raise RuntimeError(f"rank {fail} fails on purpose")

    with patch.object(Trainer, "count_flops", lambda self, batch: FLOPS):
        try:
            history = fit(
                built,
                batches,
                TrainConfig(**{"steps": 6, "warmup_steps": 2, "eval_every": 3} | config),
                validation=[make(3, 8), make(2, 9), make(1, 10)],
                on_step=on_step,
                out=None if out is None else Path(out),
                resume=resume,
                world=world,
            )
        except (Stop, FloatingPointError) as error:
            said = f"{type(error).__name__}: {error}"
    return {
        "losses": [row["loss"] for row in records],
        "norms": [row["gradient_norm"] for row in records],
        "validations": [[row["loss"], row["tokens"]] for row in history.evaluations] if history else None,
        "error": said,
        "zeros": zeros[:1],
    }


def main(path: str) -> None:
    """Under torchrun: each named case of a JSON file, on this rank; the results beside it, a file a rank."""
    cases = json.loads(Path(path).read_text(encoding="utf-8"))
    with parallel.joined("cpu") as world:
        for name, spec in cases.items():
            kind = spec.pop("kind", "ddp")
            result = case(world=replace(world, kind=kind), **spec)
            Path(f"{path}.{name}.{world.rank}").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
