"""What one run of an experiment is: a model, a training, its data, and the run that it goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from ..config import ModelConfig, TrainConfig, unknown
from ..trainer import planned_rates


@dataclass(frozen=True)
class Data:
    """What a run reads.

    tokenizer: "bpe" of vocab_size ids, trained on the corpus, or "gpt2".
    layout: "articles", the stream of documents cut into blocks; "rows", lines of text that each end in an EOS, one
    after the other and cut into blocks; "padded", the same lines, each cut to the context (or to `cut` tokens) and
    padded to it.
    eos: "ignored" takes the label of every EOS away, as a collation does that takes EOS for padding.
    train_tokens: read only so many tokens of the training split, in whole documents; None for all. The layouts of rows
    need a number. validation_tokens: the same of the validation split. max_epochs: refuse to read the data more often;
    None lets it be, and the column `epochs` says how often.
    """

    corpus: str = "wiki2015"
    tokenizer: Literal["bpe", "gpt2"] = "bpe"
    vocab_size: int = 4096
    layout: Literal["articles", "rows", "padded"] = "articles"
    eos: Literal["learned", "ignored"] = "learned"
    cut: int | None = None
    train_tokens: int | None = None
    validation_tokens: int = 65_536
    max_epochs: float | None = 1.0

    def __post_init__(self) -> None:
        choices = {
            "layout": ("articles", "rows", "padded"),
            "eos": ("learned", "ignored"),
            "tokenizer": ("bpe", "gpt2"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), list(known))
        if self.layout != "articles" and self.train_tokens is None:
            raise ValueError(f"train_tokens is None; the layout {self.layout!r} needs a number of tokens.")
        if self.layout != "padded" and (self.cut is not None or self.eos == "ignored"):
            raise ValueError(f"layout is {self.layout!r}; rows are cut, and EOS is ignored, in the layout 'padded'.")


@dataclass(frozen=True)
class Plan:
    """One run; `name` is its folder and its row.

    model: fields of a ModelConfig beside those that the data decides (vocab_size, eos_id).
    about: columns of its own, such as which cause is changed and how.
    after: the run from whose end this one goes on; the rates up to there must be the same (see `stable`).
    stage: a run that others go on from, with a constant rate; it has no row.
    probe: what is measured beside the loss at each validation, a name in probes.PROBES. fault: a fault injected while
    it trains; such a run begins anew where it was killed, since a checkpoint holds no modes.
    """

    name: str
    model: dict[str, Any]
    train: TrainConfig
    data: Data = Data()
    about: dict[str, Any] = field(default_factory=dict)
    after: str | None = None
    stage: bool = False
    probe: str | None = None
    fault: str | None = None

    @property
    def tokens(self) -> int:
        """Positions that the whole run trains on, those of the runs before it included."""
        return self.train.steps * self.train.batch_tokens * self.train.accumulate

    def config(self, vocab_size: int, eos_id: int) -> ModelConfig:
        return ModelConfig(vocab_size, eos_id=eos_id, **self.model)

    def described(self) -> dict[str, Any]:
        return asdict(self)


def stable_steps(config: TrainConfig) -> int:
    """The steps of a "wsd" training before its rate comes down: a run with a constant rate shares them exactly."""
    rates = planned_rates(config)
    constant = planned_rates(config.replace(schedule="constant"))
    return next((step for step, pair in enumerate(zip(rates, constant, strict=True)) if pair[0] != pair[1]), len(rates))


def budgets(plan: Plan, steps: Sequence[int]) -> list[Plan]:
    """The same training at several lengths, each as if run alone, for little more than the price of the longest.

    A run with schedule "wsd" has a constant rate for four fifths of its steps, and there its length does not matter:
    what two lengths share is the same to the last bit. So one run with a constant rate goes from fork to fork, and at
    each a run leaves it to come down (Hu et al. 2024; Hägele et al. 2024). The loss at a budget is that at the end of
    its own descent. Runs of one family share a beginning and so a part of their noise: an interval that resamples
    them takes whole families (the column `family`), not rows.

    plan: its schedule must be "wsd"; its steps are replaced. -> for each length a stage and a run, in order.
    """
    if plan.train.schedule != "wsd":
        raise ValueError(f"schedule of {plan.name} is {plan.train.schedule!r}; only 'wsd' runs share their beginning.")
    plans: list[Plan] = []
    before = plan.after
    for length in sorted(steps):
        train = plan.train.replace(steps=length)
        stage = f"{plan.name}-stage{stable_steps(train)}"
        constant = train.replace(schedule="constant", steps=stable_steps(train))
        about = {**plan.about, "family": plan.name}
        shared = {"model": plan.model, "data": plan.data, "about": about, "probe": plan.probe, "fault": plan.fault}
        plans.append(Plan(stage, train=constant, after=before, stage=True, **shared))
        plans.append(Plan(f"{plan.name}-{thousands(train)}k", train=train, after=stage, **shared))
        before = stage
    return plans


def thousands(config: TrainConfig) -> int:
    return round(config.steps * config.batch_tokens * config.accumulate / 1000)


def chosen(plans: Sequence[Plan], only: Sequence[str]) -> list[Plan]:
    """The plans whose names match one of the patterns (`d64-*`), and those that they go on from, in order.

    No pattern: all. Raises ValueError for one that matches none.
    """
    if not only:
        return list(plans)
    by_name = {plan.name: plan for plan in plans}
    wanted: set[str] = set()
    for pattern in only:
        found = [name for name in by_name if fnmatchcase(name, pattern)]
        if not found:
            raise unknown("run", pattern, list(by_name))
        for name in found:
            here: str | None = name
            while here is not None:
                wanted.add(here)
                here = by_name[here].after
    return [plan for plan in plans if plan.name in wanted]
