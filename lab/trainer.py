"""The one training loop; it knows nothing of the model but `model(**batch).loss` and `model.evaluate(batches)`."""

from __future__ import annotations

import itertools
import time
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
from .parallel import World, fast_matmuls, moved, peak_memory
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
    since the best one."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    tokens: int = 0
    best: float | None = None
    bad: int = 0


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


def forever(loader: Iterable[Batch], progress: Progress) -> Iterator[Batch]:
    """Epoch after epoch, from where `progress` stands, which is moved along.

    A loader whose batch_sampler has set_epoch(epoch, start) gives each epoch another order and skips without loading;
    another one is read again from its beginning, and must come in the same order to be resumed.
    """
    while True:
        sampler, first = getattr(loader, "batch_sampler", None), progress.batch
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(progress.epoch, first)
            first = 0
        for batch in itertools.islice(loader, first, None):
            progress.batch += 1
            yield batch
        if not progress.batch:
            raise ValueError("the training data has no batch; give more of it, or smaller batches.")
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
        self.out, self.data, self.tokenizer = None if out is None else Path(out), dict(data or {}), tokenizer
        self.measure = measure or (lambda result: {"perplexity": result.perplexity})
        self.world = world or World(next(model.parameters()).device)
        self.device = self.world.device
        if resume and self.out is None:
            raise ValueError("resume needs the folder of the run: give out.")
        if self.out is not None and not resume and (self.out / checkpoint.INDEX).exists():
            raise ValueError(f"{self.out} holds a run already; resume it, or give another folder.")
        torch.manual_seed(config.seed + self.world.rank)  # each rank its own dropout
        self.wrapped = self.world.wrap(model)
        self.engine = torch.compile(self.wrapped) if config.compile else self.wrapped
        self.optimizer = make_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.progress = Progress()
        if resume:
            self.restore()
        self.rates = planned_rates(config)
        self.batches = forever(loader, self.progress)
        self.log: RunLog | None = None
        self.pending: list[tuple[Record, Tensor, Tensor]] = []
        # To read a value makes the host wait for a GPU: rarely, then. A CPU never runs ahead.
        self.read_every = 1 if self.device.type == "cpu" else 10
        self.flops: tuple[float, float] | None = None  # of a target token, and of the device a second
        self.display, self.tensorboard = progress and self.world.chief, tensorboard

    def run(self) -> History:
        history, chief = History(), self.world.chief
        self.log = RunLog(
            self.out if chief else None,
            self.config.steps,
            self.progress.step,
            progress=self.display,
            tensorboard=self.tensorboard if chief else None,
        )
        self.model.train()
        self.clock = time.perf_counter()
        try:
            with fast_matmuls(self.device):
                while self.progress.step < self.config.steps and not self.out_of_patience:
                    self.step(history)
                self.flush(history)
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
        try:
            loss, norm, tokens = self.update(step)
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"out of GPU memory at step {step}, with {self.config.batch_tokens} tokens in a micro-batch. Halve "
                "batch_tokens and double accumulate (the same training), or set loss_chunk or precision bf16."
            ) from error
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
        loss = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches, start=1):
            mine = self.world.share(batch)
            weight = int((mine["labels"] != IGNORE_INDEX).sum()) / total
            if self.flops is None and self.out is not None:
                self.flops = self.count_flops(mine)
            with self.world.synchronised(self.wrapped, last=number == len(batches)):
                with self.autocast():
                    part = self.engine(**moved(mine, self.device)).loss * weight
                # The ranks' gradients are averaged, and their parts add up.
                self.scaler.scale(part * self.world.size).backward()
            loss += part.detach()
        loss = self.world.sum(loss)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if self.read_every == 1:
            self.guard(float(loss), float(norm), step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss, norm, total

    def guard(self, loss: float, norm: float, step: int) -> None:
        require_finite("loss", loss, step)
        if not self.scaler.is_enabled():  # which skips such a step, and lowers its scale
            require_finite("gradient norm", norm, step)

    def autocast(self) -> AbstractContextManager:
        precision = self.config.precision
        return torch.autocast(self.device.type, PRECISIONS[precision], enabled=precision != "fp32")

    def count_flops(self, batch: Batch) -> tuple[float, float]:
        """FLOPs of one target token in this batch, and the FLOP/s of a large matmul here, now."""
        from .flops import flops_per_step, measured_matmul_peak

        targets = max(1, int((batch["labels"] != IGNORE_INDEX).sum()))
        peak = measured_matmul_peak(self.device, PRECISIONS[self.config.precision])
        return flops_per_step(self.model, moved(batch, self.device)) / targets, peak

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
        apart = self.world.size > 1 and self.world.kind == "ddp"
        mine = iter(itertools.islice(batches, self.world.rank, None, self.world.size) if apart else batches)
        first = next(mine, None) if apart else None
        if apart and first is None:
            result = Evaluation(0.0, 0)
        else:
            with self.autocast():
                result = self.model.evaluate(itertools.chain([first], mine) if apart else mine)
        if not apart:
            return result
        loss, tokens = self.world.sum(
            torch.tensor([result.loss * result.tokens, result.tokens], dtype=torch.float64, device=self.device)
        ).tolist()
        return Evaluation(loss / tokens, int(tokens))

    def save(self, best: bool) -> None:
        """A checkpoint of where the run is; the ranks gather what they hold, and the chief writes."""
        self.world.settle(self.model)
        weights = checkpoint.get_weights(self.model)
        state = checkpoint.get_optimizer(self.model, self.optimizer)
        for rank, random in enumerate(self.world.gather(checkpoint.get_random(self.device))):
            state |= {f"random/{rank}/{name}": value for name, value in random.items()}
        if self.world.chief:
            done = {**asdict(self.progress), "scaler": self.scaler.state_dict()}
            about = checkpoint.describe(self.model, self.config, self.data, done)
            checkpoint.save(self.out, about, weights, state, tokenizer=self.tokenizer, best=best)
        self.world.wait()

    def restore(self) -> None:
        """Go on from the run's last checkpoint. Raises ValueError where it is of another model, data or config."""
        found = checkpoint.find(self.out)
        for name, here in (("train", asdict(self.config)), ("data", self.data)):
            changed = sorted(k for k in {*here, *found.about[name]} if here.get(k) != found.about[name].get(k))
            if changed:
                was = ", ".join(f"{k} {found.about[name].get(k)!r}, now {here.get(k)!r}" for k in changed)
                raise ValueError(f"{found.folder} was trained otherwise: {was}. Resume with what it began with.")
        checkpoint.load_weights(self.model, found.weights(), str(found.folder))
        state = found.state()
        checkpoint.load_optimizer(self.model, self.optimizer, state)
        done = dict(found.about["progress"])
        self.scaler.load_state_dict(done.pop("scaler"))
        self.progress = Progress(**done)
        prefix = f"random/{self.world.rank}/"
        random = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if random:
            checkpoint.set_random(random, self.device)
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
