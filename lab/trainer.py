"""The one training loop; it knows nothing of the model but `model(**batch).loss` and `model.evaluate(batches)`."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint
from .config import TrainConfig
from .evaluation import Evaluation
from .labels import IGNORE_INDEX, count_targets
from .parallel import World, aside, fast_matmuls, get_random, moved, peak_memory, set_random
from .runlog import Record, RunLog
from .schedule import rate_factor

Batch = Mapping[str, Tensor]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class History:
    """steps: one dict a step (step, loss in nats per token, rate, tokens); evaluations: (step, loss, tokens)."""

    steps: list[Record] = field(default_factory=list)
    evaluations: list[Record] = field(default_factory=list)


@dataclass
class Progress:
    """How far a run is. batch: micro-batches of the epoch that are done; tokens: target tokens so far; bad: validations
    since the best one; scaler: the state of the loss scaler, for fp16."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    tokens: int = 0
    best: float | None = None
    bad: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)


def planned_rates(config: TrainConfig) -> list[float]:
    """The learning rate of each step."""
    shape = config.schedule, config.warmup_steps, config.steps, config.final_rate
    return [config.learning_rate * rate_factor(step, *shape) for step in range(config.steps)]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices alone: gains and biases are few, and pulling them to zero undoes the norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=fused)


def require_finite(name: str, value: float, step: int) -> None:
    """Stop where it is not: a finite loss can have gradients that are not."""
    if not abs(value) < float("inf"):
        raise FloatingPointError(f"the {name} is {value} at step {step}; lower the rate or look at that batch.")


def forever(loader: Iterable[Batch], progress: Progress, seed: int) -> Iterator[Batch]:
    """Epoch after epoch, from where `progress` stands, which is moved along.

    A loader whose batch_sampler has set_epoch(epoch, start) skips without loading; another one is read again from its
    beginning, and must come in the same order to be resumed. A DataLoader that shuffles does: what beginning an epoch
    draws from torch's generator follows from seed and epoch.
    """
    while True:
        sampler, skipped = getattr(loader, "batch_sampler", None), progress.batch
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(progress.epoch, skipped)
            skipped = 0
        with aside(torch.device("cpu")):
            torch.default_generator.manual_seed(seed + progress.epoch)
            batches = iter(loader)
            first = deque(itertools.islice(batches, skipped or not progress.batch), maxlen=1)
        for batch in itertools.chain(() if progress.batch else first, batches):
            progress.batch += 1
            yield batch
        if not progress.batch:
            raise ValueError("the training data has no batch, or is a used-up iterator; give a list or a loader.")
        progress.epoch, progress.batch = progress.epoch + 1, 0


class Trainer:
    """One run of `fit`, with whose arguments it is made."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Batch],
        config: TrainConfig,
        *,
        validation: Iterable[Batch] | None = None,
        on_step: Callable[[Record], Any] | None = None,
        out: Path | None = None,
        resume: bool = False,
        data: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        measure: Callable[[Evaluation], Mapping[str, float]] | None = None,
        world: World | None = None,
        progress: bool = False,
        tensorboard: Path | None = None,
    ) -> None:
        self.model, self.config, self.validation, self.on_step = model, config, validation, on_step
        self.out, self.tokenizer = None if out is None else Path(out), tokenizer
        self.measure = measure or (lambda result: {"perplexity": result.perplexity})
        self.world = world or World(next(model.parameters()).device)
        self.device = self.world.device
        if resume and self.out is None:
            raise ValueError("resume needs the folder of the run: give out.")
        if not resume and self.out is not None and (self.out / checkpoint.INDEX).exists():
            raise ValueError(f"{self.out} holds a run already; resume it, or give another folder.")
        torch.manual_seed(config.seed + self.world.rank)  # each rank its own dropout
        self.about = checkpoint.describe(model, config, data or {})  # before FSDP makes another class of it
        self.wrapped = self.world.wrap(model)
        self.engine = torch.compile(self.loss_of) if config.compile else self.loss_of
        self.optimizer = make_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.progress = Progress()
        if resume:
            self.restore()
        self.rates = planned_rates(config)
        self.batches = forever(loader, self.progress, config.seed)
        self.log: RunLog | None = None
        self.pending: list[tuple[Record, Tensor, Tensor]] = []
        # To read a value makes the host wait for a GPU: rarely, then. A CPU never runs ahead.
        self.read_every = 1 if self.device.type == "cpu" else 10
        self.flops: tuple[float, float] | None = None  # of a target token, and of the device a second
        self.display, self.tensorboard = progress and self.world.chief, tensorboard

    def run(self) -> History:
        history, chief = History(), self.world.chief
        folder, board = (self.out, self.tensorboard) if chief else (None, None)
        self.log = RunLog(folder, self.config.steps, self.progress.step, progress=self.display, tensorboard=board)
        self.model.train()
        self.clock = time.perf_counter()
        try:
            with fast_matmuls(self.device):
                while self.progress.step < self.config.steps and not self.out_of_patience:
                    self.step(history)
                self.flush(history)
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"out of GPU memory after {self.progress.step} steps. Halve batch_tokens ({self.config.batch_tokens}) "
                "and double accumulate (the same training), or set loss_chunk or precision bf16."
            ) from error
        finally:
            self.log.close()
        return history

    @property
    def out_of_patience(self) -> bool:
        return self.config.patience is not None and self.progress.bad >= self.config.patience

    def step(self, history: History) -> None:
        """One optimizer step, then what is due after it: reading the values, validation, a checkpoint."""
        step, rate = self.progress.step + 1, self.rates[self.progress.step]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, norm, tokens = self.update(step)
        self.progress.step, self.progress.tokens = step, self.progress.tokens + tokens
        record = {"event": "step", "step": step, "epoch": self.progress.epoch, "rate": rate, "tokens": tokens}
        self.pending.append((record, loss, norm))
        due = step % self.config.eval_every == 0 or step == self.config.steps
        if due or len(self.pending) == self.read_every:
            self.flush(history, last=due)
        if due:
            self.pause(history)

    def update(self, step: int) -> tuple[Tensor, Tensor, int]:
        """Forward, backward and update over `accumulate` micro-batches -> loss, gradient norm, target tokens.

        Each target token of all micro-batches on all ranks weighs the same: padding makes their means unequal.
        """
        batches = [next(self.batches) for _ in range(self.config.accumulate)]
        total = sum(count_targets(batch["labels"]) for batch in batches)
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for number, batch in enumerate(batches, start=1):
            mine, count = self.world.share(batch)
            if self.flops is None and self.out is not None:
                self.flops = self.count_flops(mine)
            with self.world.synchronised(self.wrapped, last=number == len(batches)):
                with self.autocast():
                    part = self.engine(moved(mine, self.device)) * (count / total)
                # The ranks' gradients are averaged, and their parts add up.
                self.scaler.scale(part * self.world.size).backward()
            parts.append(part.detach())
        loss = self.world.sum(torch.stack(parts).sum())
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if self.read_every == 1:
            self.guard(float(loss), float(norm), step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss, norm, total

    def loss_of(self, batch: Batch) -> Tensor:
        """All that is compiled: logits that came out beside the loss would get a gradient of zeros of their size."""
        return self.wrapped(**batch).loss

    def guard(self, loss: float, norm: float, step: int) -> None:
        require_finite("loss", loss, step)
        # A scaler skips such a step and halves its scale, which starts at 65536: below 1 it is of no help.
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            require_finite("gradient norm", norm, step)

    def autocast(self) -> AbstractContextManager:
        precision = self.config.precision
        return torch.autocast(self.device.type, PRECISIONS[precision], enabled=precision != "fp32")

    def count_flops(self, batch: Batch) -> tuple[float, float]:
        """FLOPs of one target token in this batch, and the FLOP/s of a large matmul here, now."""
        from .flops import flops_per_step, measured_matmul_peak

        peak = measured_matmul_peak(self.device, PRECISIONS[self.config.precision])
        # Rows are of one length: one of them tells of all, and fits where a batch without its chunks might not.
        row = moved({key: value[:1] for key, value in batch.items()}, self.device)
        with aside(self.device):  # a resumed run counts again, and shall draw the same dropout
            flops = flops_per_step(self.model, row) * len(batch["labels"])
        return flops / max(1, int((batch["labels"] != IGNORE_INDEX).sum())), peak

    def flush(self, history: History, last: bool = False) -> None:
        """Read the values of the steps since the last time, and log them."""
        if not self.pending:
            return
        values = torch.stack([torch.stack([loss, norm.to(loss.dtype)]) for _, loss, norm in self.pending]).tolist()
        now = time.perf_counter()
        seconds = (now - self.clock) / len(self.pending)
        speed = sum(record["tokens"] for record, *_ in self.pending) / (now - self.clock)
        before = self.progress.tokens - sum(record["tokens"] for record, *_ in self.pending)
        for (record, *_), (loss, norm) in zip(self.pending, values, strict=True):
            self.guard(loss, norm, record["step"])
            record |= {"loss": loss, "gradient_norm": norm, "seconds": seconds, "tokens_per_second": speed}
            fraction = speed * self.flops[0] / (self.flops[1] * self.world.size) if self.flops else None
            before += record["tokens"]
            self.log.write(record | {"tokens": before, "matmul_fraction": fraction, "memory": peak_memory(self.device)})
            history.steps.append(record)
            if self.on_step is not None and not (last and record is self.pending[-1][0]):
                self.on_step(record)
        self.pending.clear()
        self.clock = time.perf_counter()

    def pause(self, history: History) -> None:
        """Validate, keep a checkpoint, and hand the step's record on."""
        record, best = history.steps[-1], True
        if self.validation is not None:
            result = self.evaluate(self.validation)
            require_finite("validation loss", result.loss, record["step"])
            best = self.progress.best is None or result.loss < self.progress.best
            self.progress.bad = 0 if best else self.progress.bad + 1
            self.progress.best = result.loss if best else self.progress.best
            row = {"step": record["step"], "loss": result.loss, "tokens": result.tokens}
            history.evaluations.append(row)
            self.log.write({"event": "validation", **row, **self.measure(result)})
            record["validation"] = result.loss
        if self.out is not None:
            self.save(best)
        if self.on_step is not None:
            self.on_step(record)
        self.clock = time.perf_counter()

    def evaluate(self, batches: Iterable[Batch]) -> Evaluation:
        """The model's own evaluation; DDP's ranks take every so many-th batch each, FSDP's need one another for all."""
        with aside(self.device), self.autocast():
            if self.world.size == 1 or self.world.kind == "fsdp":
                return self.model.evaluate(batches)
            mine = itertools.islice(batches, self.world.rank, None, self.world.size)
            first = next(mine, None)
            part = Evaluation(0.0, 0) if first is None else self.model.evaluate(itertools.chain([first], mine))
        sums = torch.tensor([part.loss * part.tokens, part.tokens], dtype=torch.float64, device=self.device)
        loss, tokens = self.world.sum(sums).tolist()
        if not tokens:
            raise ValueError("there is no batch to evaluate on; the data is empty or its iterator is used up.")
        return Evaluation(loss / tokens, int(tokens))

    def save(self, best: bool) -> None:
        """A checkpoint of where the run is; the ranks gather what they hold, and the chief writes."""
        self.world.settle(self.model)
        weights = checkpoint.get_weights(self.model)
        state = checkpoint.get_optimizer(self.model, self.optimizer)
        for rank, random in enumerate(self.world.gather(get_random(self.device))):
            state |= {f"random/{rank}/{name}": value for name, value in random.items()}
        self.progress.scaler = self.scaler.state_dict()
        if self.world.chief:
            about = {**self.about, "progress": asdict(self.progress)}
            checkpoint.save(self.out, about, weights, state, tokenizer=self.tokenizer, best=best)
        self.world.wait()

    def restore(self) -> None:
        """Go on from the run's last checkpoint. Raises ValueError where it is of another model, data or config."""
        found = checkpoint.find(self.out)
        if self.world.chief:
            checkpoint.prune(self.out)
        for name in ("model", "train", "data"):
            was, now = found.about[name] or {}, self.about[name] or {}
            changed = [key for key in {**was, **now} if was.get(key) != now.get(key)]
            if changed:
                values = ", ".join(f"{key} {was.get(key)!r}, now {now.get(key)!r}" for key in changed)
                raise ValueError(f"{found.folder} was trained otherwise: {values}. Resume with what it began with.")
        checkpoint.load_weights(self.model, found.weights(), str(found.folder))
        state = found.state()
        checkpoint.load_optimizer(self.model, self.optimizer, state)
        self.progress = found.parsed("progress", Progress)
        self.scaler.load_state_dict(self.progress.scaler)
        prefix = f"random/{self.world.rank}/"
        random = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if random:
            set_random(random, self.device)
        else:  # more ranks than there were
            torch.manual_seed(hash((self.config.seed, self.progress.step, self.world.rank)))


def fit(model: nn.Module, loader: Iterable[Batch] | Sequence[Batch], config: TrainConfig, **how: Any) -> History:
    """Train with AdamW by the config; validate and keep a checkpoint every `config.eval_every` steps and at the end.

    validation: batches for model.evaluate(), which is trusted to give the mode back; the model is put in train mode
    once, at the start. on_step(record): called after each step, for plots. out: the folder of the run, for checkpoints
    and log.jsonl; resume=True goes on from its last one, to the last bit on a CPU. data, tokenizer: what the
    checkpoint shall say of them. measure(evaluation) -> the units to log. world: see parallel.joined. progress: a bar.

    Raises FloatingPointError naming the step where loss or gradients are not finite (on a GPU up to ten steps late;
    checkpoints are good), ValueError for a batch without a target and for a run that does not fit its checkpoint,
    MemoryError and OSError with what to change.
    """
    return Trainer(model, loader, config, **how).run()
