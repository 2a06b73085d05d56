"""The log is JSON to the last whole line, says what it says it does, and a resumed run goes on in it."""

import errno
import json
import math
import sys
from types import ModuleType

import pytest
import torch
from train_tiny import FLOPS, Stop, batch, language_model, loader, poisoned, stop_after, with_poison

from lab import runlog
from lab.config import TrainConfig
from lab.evaluation import Evaluation
from lab.labels import IGNORE_INDEX
from lab.trainer import Trainer, fit

CONFIG = TrainConfig(4, warmup_steps=2, eval_every=2, accumulate=2)
STEP = {
    "event", "step", "epoch", "tokens", "loss", "rate", "gradient_norm", "seconds", "tokens_per_second",
    "matmul_fraction", "memory",
}  # fmt: skip


@pytest.fixture
def no_flops(monkeypatch):
    monkeypatch.setattr(Trainer, "count_flops", lambda self, batch: FLOPS)


def strict(path):
    """Every line, by a parser that takes no NaN and no Infinity: they are not JSON."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_run_leaves_the_fields_that_are_documented(tmp_path):
    measure = {"perplexity": 7.0, "bits_per_byte": 2.0}
    history = fit(
        language_model(), loader("list"), CONFIG, validation=[batch(4)], out=tmp_path, measure=lambda _: measure
    )
    records = strict(tmp_path / "log.jsonl")
    assert records == runlog.read(tmp_path) == runlog.read(tmp_path / "log.jsonl")
    assert [r["event"] for r in records] == ["step", "step", "validation", "step", "step", "validation"]
    steps = [r for r in records if r["event"] == "step"]
    assert all(set(r) == STEP for r in steps)
    real = [int((b["labels"] != IGNORE_INDEX).sum()) for b in loader("list")]
    batches = [(0, 1), (2, 3), (4, 5), (6, 0)]  # of seven
    tokens = [sum(real[i] for i in step) for step in batches]
    assert [r["tokens"] for r in steps] == [sum(tokens[: i + 1]) for i in range(4)]  # so far
    assert [row["tokens"] for row in history.steps] == tokens  # of each step
    assert [r["loss"] for r in steps] == [row["loss"] for row in history.steps]
    assert [r["rate"] for r in steps] == pytest.approx([5e-4, 1e-3, 1e-3, 5.5e-4])
    assert [r["epoch"] for r in steps] == [0, 0, 0, 1]
    assert all(r["tokens_per_second"] == pytest.approx(n / r["seconds"]) for r, n in zip(steps, tokens, strict=True))
    evaluation = history.evaluations[0]
    assert records[2] == {"event": "validation", **evaluation, **measure}


def test_the_fraction_of_the_peak_is_that_of_the_matmuls_of_the_model(tmp_path, monkeypatch):
    """6 FLOPs a position and a weight, and those of attention; padding costs as much, and only targets are counted."""
    from lab import flops

    monkeypatch.setattr(flops, "measured_matmul_peak", lambda *_: 1e9)
    data = batch(5)
    fit(language_model(), [data], TrainConfig(2), out=tmp_path)
    config, (rows, width) = language_model().config, data["labels"].shape
    weights = config.num_layers * (4 * config.d_model**2 + 2 * config.d_model * config.d_ff)
    weights += config.d_model * config.vocab_size
    attention = config.num_layers * 2 * width * config.d_model  # scores and their product with the values
    total = 6 * rows * width * (weights + attention)
    real = int((data["labels"] != IGNORE_INDEX).sum())
    for record in runlog.read(tmp_path):
        assert record["matmul_fraction"] == pytest.approx(record["tokens_per_second"] * total / real / 1e9)


def test_counting_changes_nothing(tmp_path):
    """FLOPs are counted in the first step, and again in the first one after a resume."""
    config = TrainConfig(4, warmup_steps=1, eval_every=2)
    without = fit(language_model(), loader("list"), config)
    counted = fit(language_model(), loader("list"), config, out=tmp_path / "a")
    assert [row["loss"] for row in counted.steps] == [row["loss"] for row in without.steps]
    with pytest.raises(Stop):
        fit(language_model(), loader("list"), config, out=tmp_path / "b", on_step=stop_after(3))
    resumed = fit(language_model(), loader("list"), config, out=tmp_path / "b", resume=True)
    assert [row["loss"] for row in resumed.steps] == [row["loss"] for row in without.steps][2:]


@pytest.mark.usefixtures("no_flops")
def test_what_is_not_finite_is_null(tmp_path):
    """A perplexity past the largest float, and the gradient norm of a step that fp16 skips."""
    batches = [batch(2), with_poison(batch(2), 1e36)]
    config = TrainConfig(2, precision="fp16")
    fit(poisoned(), batches, config, validation=[with_poison(batch(2), 1e4)], out=tmp_path)
    *_, step, validation = strict(tmp_path / "log.jsonl")
    assert step["gradient_norm"] is None and step["loss"] > 1e30
    assert validation["perplexity"] is None and validation["loss"] > 700
    assert Evaluation(validation["loss"], 1).perplexity == math.inf


@pytest.mark.usefixtures("no_flops")
def test_a_run_goes_on_in_its_log_and_drops_what_came_after_its_checkpoint(tmp_path):
    with pytest.raises(Stop):
        fit(language_model(), loader("list"), CONFIG, validation=[batch(2)], out=tmp_path, on_step=stop_after(3))
    path = tmp_path / "log.jsonl"
    first = strict(path)
    assert [r["step"] for r in first] == [1, 2, 2, 3]
    with path.open("a") as file:
        file.write('{"event": "step", "st')  # a kill in the middle of a line
    assert runlog.read(path) == first
    fit(language_model(), loader("list"), CONFIG, validation=[batch(2)], out=tmp_path, resume=True)
    second = strict(path)
    assert second[:3] == first[:3] and [r["step"] for r in second] == [1, 2, 2, 3, 4, 4]
    assert second[3]["tokens"] == first[3]["tokens"] and second[3]["loss"] == first[3]["loss"]


def test_a_log_that_is_damaged_in_its_middle_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="log.jsonl line 2 is no JSON"):
        runlog.read(tmp_path)


def test_a_log_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    log = runlog.RunLog(tmp_path, 3)

    def full(text):
        raise OSError(errno.ENOSPC, "No space left on device")

    log.file.close()
    log.file = type("Full", (), {"name": log.file.name, "write": staticmethod(full), "close": lambda self: full("")})()
    record = {"event": "step", "step": 1, "loss": 1.0, "tokens_per_second": 1.0}
    with pytest.raises(OSError, match=r"log.jsonl cannot be written .*No space left.*make room.*--resume"):
        log.write(record)
    log.close()


@pytest.mark.usefixtures("no_flops")
def test_a_new_run_does_not_go_on_in_an_old_log(tmp_path):
    """One that was killed before its first checkpoint."""
    (tmp_path / "log.jsonl").write_text('{"event": "step", "step": 1}\n')
    fit(language_model(), loader("list"), TrainConfig(1), out=tmp_path)
    assert len(runlog.read(tmp_path)) == 1 and "loss" in runlog.read(tmp_path)[0]


@pytest.mark.usefixtures("no_flops")
def test_the_bar_says_how_far_it_is_and_what_the_validation_gave(capsys):
    measure = {"perplexity": 41.25, "word_perplexity": 90.0, "bits_per_byte": 1.5}
    fit(language_model(), [batch(2)], CONFIG, validation=[batch(2)], progress=True, measure=lambda _: measure)
    said = capsys.readouterr().err
    assert "4/4" in said and "tokens/s" in said
    assert "step 2: validation loss" in said and "perplexity 41.25 a token, 90.00 a word, 1.500 bits a byte" in said
    fit(language_model(), [batch(2)], CONFIG, validation=[batch(2)])
    assert capsys.readouterr().err == ""


class Board:
    """What torch.utils.tensorboard.SummaryWriter is asked."""

    made: list["Board"] = []

    def __init__(self, folder, purge_step=None):
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, {}, False
        self.made.append(self)

    def add_scalar(self, name, value, step):
        assert not self.closed
        self.scalars[name, step] = value

    def close(self):
        self.closed = True


@pytest.mark.usefixtures("no_flops")
def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Board
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    how = {"validation": [batch(2)], "out": tmp_path / "run", "tensorboard": tmp_path / "board"}
    with pytest.raises(Stop):
        fit(language_model(), loader("list"), CONFIG, on_step=stop_after(3), **how)
    fit(language_model(), loader("list"), CONFIG, resume=True, **how)
    first, second = Board.made
    assert (first.folder, first.purge_step, second.purge_step) == (tmp_path / "board", None, 3)
    assert first.closed and second.closed
    written = {
        (f"{r['event']}/{name}", r["step"]): value
        for r in runlog.read(tmp_path / "run")
        for name, value in r.items()
        if name not in ("event", "step")
    }
    shown = first.scalars | second.scalars
    assert shown == written and ("validation/perplexity", 4) in shown and ("step/loss", 1) in shown


def test_tensorboard_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ImportError, match="--tensorboard .* needs a package that is not here; run: pip install tensorboard"
    ):
        fit(language_model(), [batch(2)], CONFIG, tensorboard=tmp_path)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(language_model(), [batch(2)], CONFIG, validation=[batch(2)])
    assert not list(tmp_path.iterdir()) and torch.is_grad_enabled()
