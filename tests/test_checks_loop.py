"""Training loops that nobody here wrote: accumulation, zeroing, the rate, the step, one batch by heart, checkpoints."""

import json

import pytest
import torch
import torch.nn.functional as F
from foreign import VOCAB, NanoGPT, TorchTransformer, pairs_batch
from torch import nn

import lab
from lab.checks.randomness import seed_all
from lab.labels import IGNORE_INDEX
from lab.subject import Subject

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 1, 1, 1]])
LABELS = torch.tensor([[6, 7, 8, 9, 10, 2], [12, 13, 2, -100, -100, -100]])
BATCH = {"input_ids": IDS, "labels": LABELS}
LOOP = ("accumulation-scale", "zero-grad", "scheduler-never-stepped", "step-changes-parameters")


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix, self.out = nn.Embedding(VOCAB, 16), nn.Linear(16, 16), nn.Linear(16, VOCAB)
        self.dropout = nn.Dropout(0.2)

    def forward(self, input_ids):
        x = self.table(input_ids)
        x = x.cumsum(1) / torch.arange(1, 1 + input_ids.size(1))[:, None]  # all that came before, in the mean
        return self.out(self.dropout(x + self.table(input_ids) + self.mix(x).tanh()))


def loss_of(model, batch, reduction="mean"):
    logits = model(batch["input_ids"])
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction=reduction)


def build(schedule="warmup", optimizer=torch.optim.AdamW, rate=1e-3):
    model = Toy()
    made = optimizer(model.parameters(), lr=rate)
    schedules = {
        "warmup": lambda: torch.optim.lr_scheduler.LambdaLR(made, lambda step: min(1.0, step / 10)),
        "step": lambda: torch.optim.lr_scheduler.StepLR(made, 30),
        "plateau": lambda: torch.optim.lr_scheduler.ReduceLROnPlateau(made),
        None: lambda: None,
    }
    return model, made, schedules[schedule]()


def targets(batch):
    return (batch["labels"] != IGNORE_INDEX).sum()


def healthy(model, optimizer, scheduler, micro_batches):
    """As a careful loop is written: clipped, and weighed by tokens."""
    optimizer.zero_grad()
    total = sum(targets(batch) for batch in micro_batches)
    for batch in micro_batches:
        model.train()
        (loss_of(model, batch) * targets(batch) / total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    if scheduler is not None:
        scheduler.step()


def zeroes_after(model, optimizer, scheduler, micro_batches):
    """The other order, with a loss that is a sum, and clipping by value."""
    for batch in micro_batches:
        loss_of(model, batch, "sum").backward()
    torch.nn.utils.clip_grad_value_(model.parameters(), 1e-4)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()


def asked(train_step, only=LOOP, batch=BATCH, **how):
    how = {"build": build, **how}
    report = lab.diagnose(Subject(Toy(), batch, train_step=train_step, loss=loss_of, **how), only=only)
    assert not report.errors, report.errors
    return report


@pytest.mark.parametrize("train_step", [healthy, zeroes_after])
def test_silent_on_a_loop_that_is_right(train_step):
    report = asked(train_step)
    assert sorted(report.passed) == sorted(LOOP) and not report.notes, report.text()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_silent_with_other_optimizers(optimizer):
    assert len(asked(healthy, build=lambda: build("warmup", optimizer, 1e-6)).passed) == 4


def test_without_build_the_model_in_use_is_copied_with_its_optimizer():
    model, optimizer, scheduler = build()
    subject = Subject(
        model, BATCH, train_step=healthy, loss=loss_of, optimizer=optimizer, scheduler=scheduler, name="in use"
    )
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    report = lab.diagnose(subject, only=LOOP)
    assert sorted(report.passed) == sorted(LOOP), report.text()
    assert all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))
    assert not optimizer.state and scheduler.last_epoch == 0 and optimizer.param_groups[0]["lr"] == 0


# accumulation-scale


def unscaled(model, optimizer, scheduler, micro_batches):
    optimizer.zero_grad()
    for batch in micro_batches:
        loss_of(model, batch).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)  # which hides it
    optimizer.step()


def means(model, optimizer, scheduler, micro_batches):
    optimizer.zero_grad()
    for batch in micro_batches:
        (loss_of(model, batch) / len(micro_batches)).backward()
    optimizer.step()


def last_alone(model, optimizer, scheduler, micro_batches):
    for batch in micro_batches:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
    optimizer.step()


def divided_twice(model, optimizer, scheduler, micro_batches):
    optimizer.zero_grad()
    for batch in micro_batches:
        (loss_of(model, batch) / len(micro_batches) ** 2).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("train_step", "severity", "message"),
    [
        (unscaled, "P2", "a gradient 2 times that of one batch"),
        (divided_twice, "P2", "a gradient 0.5 times"),
        (last_alone, "P2", "the last alone counts"),
        (means, "P3", "weigh the same whatever they hold"),
    ],
)
def test_accumulation_that_is_wrong_is_found(train_step, severity, message):
    (finding,) = asked(train_step, ["accumulation-scale"]).findings
    assert finding.severity == severity and message in finding.message, finding.message
    assert finding.where.symbol == train_step.__name__


def test_rows_of_equal_length_make_the_mean_of_means_right():
    batch = {"input_ids": IDS[:, :3], "labels": LABELS[:, :3]}
    assert asked(means, ["accumulation-scale"], batch).passed


def test_a_step_for_each_micro_batch_is_a_skip():
    def steps_each_time(model, optimizer, scheduler, micro_batches):
        for batch in micro_batches:
            healthy(model, optimizer, scheduler, [batch])

    assert "makes 2 updates" in asked(steps_each_time, ["accumulation-scale"]).skipped["accumulation-scale"]


# zero-grad


def never_zeroes(model, optimizer, scheduler, micro_batches):
    total = sum(targets(batch) for batch in micro_batches)
    for batch in micro_batches:
        (loss_of(model, batch) * targets(batch) / total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def test_gradients_that_nobody_zeroes_are_found_and_nothing_else():
    checks = ["accumulation-scale", "zero-grad", "step-changes-parameters"]
    report = asked(never_zeroes, checks, build=lambda: build(None))
    (finding,) = report.findings
    assert (finding.check, finding.severity) == ("zero-grad", "P1")
    assert finding.evidence["weight of the batch before"] == pytest.approx(1, abs=1e-3)


# scheduler-never-stepped


def never_scheduled(model, optimizer, scheduler, micro_batches):
    healthy(model, optimizer, None, micro_batches)


def test_a_scheduler_that_is_never_stepped_is_found():
    """A warmup from zero: LambdaLR has set the rate to 0, and there it stays."""
    report = asked(never_scheduled)
    (finding,) = report.by_check("scheduler-never-stepped")
    assert {f.check: f.follows for f in report.findings} == {
        "scheduler-never-stepped": "",
        "step-changes-parameters": "scheduler-never-stepped",
    }
    assert finding.severity == "P2" and "from 0 to 0.0003" in finding.message


def test_a_plan_of_rates_that_is_not_followed_is_found():
    how = {"build": lambda: build(None), "rates": [1e-4, 2e-4, 3e-4, 4e-4]}
    (finding,) = asked(healthy, ["scheduler-never-stepped"], **how).findings
    assert finding.evidence["rate"] == 1e-3 and finding.evidence["planned last"] == 4e-4


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"build": lambda: build("step")}, "holds the rate"),
        ({"build": lambda: build("plateau")}, "cannot be stepped by itself"),
        ({"build": lambda: build(None)}, "there is no scheduler"),
        ({"build": lambda: build(None), "rates": [1e-3] * 20}, "holds the rate"),
        ({"build": None}, "needs build="),
    ],
)
def test_where_the_rate_need_not_move_it_is_a_skip(how, reason):
    assert reason in asked(never_scheduled, ["scheduler-never-stepped"], **how).skipped["scheduler-never-stepped"]


# step-changes-parameters


def forgets_to_step(model, optimizer, scheduler, micro_batches):
    optimizer.zero_grad()
    loss_of(model, micro_batches[0]).backward()


def test_a_step_that_is_never_called_is_found():
    report = asked(forgets_to_step)
    (finding,) = report.findings
    assert finding.check == "step-changes-parameters" and "never calls" in finding.message
    assert "does not call the optimizer's step()" in report.skipped["zero-grad"]


def test_what_the_optimizer_lacks_does_not_move():
    def part():
        model = Toy()
        return model, torch.optim.AdamW([*model.table.parameters(), *model.mix.parameters()], lr=1e-9), None

    report = asked(healthy, ["step-changes-parameters", "optimizer-coverage"], build=part)
    assert {finding.check: finding.follows for finding in report.findings} == {
        "optimizer-coverage": "",
        "step-changes-parameters": "optimizer-coverage",
    }
    assert "all but out.weight, out.bias" in report.by_check("step-changes-parameters")[0].message


def test_a_rate_of_zero_moves_nothing_and_is_found():
    (finding,) = asked(healthy, ["step-changes-parameters"], build=lambda: build(None, rate=0.0)).findings
    assert "no parameter" in finding.message and finding.evidence["rate"] == 0


def test_a_warmup_from_zero_is_waited_for():
    assert asked(healthy, ["step-changes-parameters"]).passed


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"train_step": None}, "needs train_step="),
        ({"train_step": lambda *given: 1 / 0}, "ZeroDivisionError"),
        ({"build": lambda: 1 / 0}, "ZeroDivisionError"),
        ({"build": lambda: (Toy(), "adam", None)}, "no param_groups"),
    ],
)
@pytest.mark.parametrize("check", LOOP)
def test_a_skip_says_what_to_give(check, how, reason):
    report = asked(only=[check], **{"train_step": healthy, **how})
    assert reason in report.skipped[check] and not report.passed


def test_nothing_is_left_behind():
    """Not in torch's functions, not in the user's model, not in the random states."""
    subject = Subject(Toy(), BATCH, train_step=unscaled, loss=loss_of, build=build)
    clip, state = torch.nn.utils.clip_grad._clip_grads_with_norm_, torch.get_rng_state()
    assert lab.diagnose(subject, only=LOOP).findings
    assert torch.nn.utils.clip_grad._clip_grads_with_norm_ is clip
    assert torch.equal(torch.get_rng_state(), state)


# overfits-one-batch


def memorises(model, batch, **how):
    report = lab.diagnose(Subject(model, batch, **how), only=["overfits-one-batch"])
    assert not report.errors, report.errors
    return report


def test_it_is_asked_by_name_alone():
    report = lab.diagnose(Subject(Toy(), BATCH, loss=loss_of))
    assert "overfits-one-batch" in report.skipped and "slow" in report.skipped["overfits-one-batch"]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_healthy_models_learn_a_batch_by_heart():
    def smoothed(model, batch):
        logits = model(batch["src"], batch["tgt"]).flatten(0, 1)
        return F.cross_entropy(logits, batch["labels"].flatten(), label_smoothing=0.1)

    seed_all(0)
    assert memorises(Toy(), BATCH, loss=loss_of).passed
    assert memorises(NanoGPT(), (IDS, IDS.roll(-1, 1))).passed
    assert memorises(TorchTransformer(), pairs_batch(), loss=smoothed).passed


def test_a_model_that_cannot_is_found():
    def bounded(model, batch):
        return F.cross_entropy(torch.tanh(model(batch["input_ids"])).flatten(0, 1), batch["labels"].flatten())

    def from_shuffled_labels(model, batch):
        labels = batch["labels"].flatten()
        return F.cross_entropy(model(batch["input_ids"]).flatten(0, 1), labels[torch.randperm(len(labels))])

    for loss in (bounded, from_shuffled_labels):
        seed_all(0)
        model = Toy()
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        (finding,) = memorises(model, BATCH, loss=loss).findings
        assert finding.severity == "P1" and finding.evidence["at a rate of 0.003"] > 1
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_without_a_loss_it_is_skipped():
    assert "give loss=" in memorises(Toy(), {"input_ids": IDS}).skipped["overfits-one-batch"]


# checkpoint-has-config


class Heads(nn.Module):
    """A model whose number of heads is not among its weights."""

    def __init__(self, heads=4):
        super().__init__()
        self.table, self.attention = nn.Embedding(VOCAB, 16), nn.MultiheadAttention(16, heads, batch_first=True)

    def forward(self, input_ids):
        x = self.table(input_ids)
        return self.attention(x, x, x, need_weights=False)[0] @ self.table.weight.T


def checkpointed(path, load=None, model=None):
    model = model or Heads()
    report = lab.diagnose(
        Subject(model, {"input_ids": IDS}, checkpoint=path, load=load), only=["checkpoint-has-config"]
    )
    assert not report.errors, report.errors
    return report


def test_a_checkpoint_that_rebuilds_the_model_passes(tmp_path):
    model = Heads()
    torch.save({"config": {"heads": 4}, "model": model.state_dict()}, tmp_path / "last.pt")

    def load(path):
        found = torch.load(path)
        loaded = Heads(**found["config"])
        loaded.load_state_dict(found["model"])
        return loaded

    assert checkpointed(tmp_path / "last.pt", load, model).passed
    assert checkpointed(tmp_path / "last.pt", None, model).passed  # by its keys


@pytest.mark.parametrize(
    ("heads", "filled", "message"),
    [
        (2, True, "with the same weights: it is built with other settings"),
        (4, False, "its weights are others"),
        (3, True, "no model can be rebuilt from the checkpoint alone: AssertionError"),
    ],
)
def test_a_model_rebuilt_otherwise_is_found(tmp_path, heads, filled, message):
    model = Heads()
    torch.save(model.state_dict(), tmp_path / "last.pt")

    def load(path):
        loaded = Heads(heads)
        if filled:
            loaded.load_state_dict(torch.load(path))
        return loaded

    (finding,) = checkpointed(tmp_path / "last.pt", load, model).findings
    assert finding.severity == "P3" and message in finding.message, finding.message


def test_without_load_the_files_are_searched(tmp_path):
    model = Heads()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (finding,) = checkpointed(tmp_path / "model.pt").findings
    assert "holds weights and no config" in finding.message
    assert checkpointed(tmp_path).findings
    (tmp_path / "config.json").write_text(json.dumps({"heads": 4}))
    assert checkpointed(tmp_path / "model.pt").passed and checkpointed(tmp_path).passed


@pytest.mark.parametrize(("saved", "passes"), [({"args": {"n_head": 4}}, True), ({"epoch": 3}, False)])
def test_a_checkpoint_of_several_parts_is_read(tmp_path, saved, passes):
    torch.save({"state_dict": Heads().state_dict(), **saved}, tmp_path / "last.ckpt")
    assert bool(checkpointed(tmp_path / "last.ckpt").passed) is passes


def test_safetensors_may_hold_the_config_as_metadata(tmp_path):
    from safetensors.torch import save_file

    save_file(Heads().state_dict(), tmp_path / "a.safetensors")
    assert checkpointed(tmp_path / "a.safetensors").findings
    save_file(Heads().state_dict(), tmp_path / "b.safetensors", {"config": "{}"})
    assert checkpointed(tmp_path / "b.safetensors").passed


def test_a_load_that_fills_the_model_in_use_leaves_it_as_it_was(tmp_path):
    torch.save(Heads().state_dict(), tmp_path / "other.pt")
    model = Heads()
    kept = {name: value.clone() for name, value in model.state_dict().items()}

    def load(path):
        model.load_state_dict(torch.load(path))
        return model

    assert "must build another" in checkpointed(tmp_path / "other.pt", load, model).skipped["checkpoint-has-config"]
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_skips_of_checkpoint_has_config_say_what_to_give(tmp_path):
    assert "needs checkpoint=" in checkpointed(None).skipped["checkpoint-has-config"]
    assert "cannot be read" in checkpointed(tmp_path / "none" / "x.pt").skipped["checkpoint-has-config"]
    (tmp_path / "x.pt").write_bytes(b"no")
    assert "give load=" in checkpointed(tmp_path / "x.pt").skipped["checkpoint-has-config"]
