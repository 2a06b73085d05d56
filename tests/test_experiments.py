"""Runs of an experiment go on where they were killed, are done once, and end in the same row as if nothing happened."""

import csv
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from lab import checkpoint, experiments, runlog
from lab.cli import app
from lab.config import TrainConfig
from lab.experiments import Data, Plan, budgets, chosen, collect, run_all, runner
from lab.experiments.collect import COLUMNS
from lab.experiments.plan import stable_steps
from lab.language_model import LanguageModel
from lab.published import Law
from lab.trainer import planned_rates

SHAPE = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 32, "max_seq_len": 16, "dropout": 0.1}
TRAIN = TrainConfig(40, schedule="wsd", warmup_steps=3, final_rate=0.0, batch_tokens=64, eval_every=10)
ISSUE = {
    *("parameters", "body_parameters", "tokens", "flops", "loss", "bits_per_byte"),
    *("seed", "corpus", "versions", "hardware", "command"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A text file of short paragraphs, each a document."""
    path = tmp_path_factory.mktemp("text") / "numbers.txt"
    lines = [f"The number {i} follows {i - 1}, and {i * i} is its square." for i in range(600)]
    path.write_text("\n\n".join(f"{a}\n{b}" for a, b in zip(lines[::2], lines[1::2], strict=True)), encoding="utf-8")
    return Data(str(path), vocab_size=300, validation_tokens=250)


def plan_of(data, name="one", model=None, train=None, **how):
    return Plan(name, SHAPE | (model or {}), TRAIN.replace(**(train or {})), data, **how)


def rows_of(out, to, experiment="test"):
    with collect(experiment, out, to)[0].open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def losses(folder):
    return [r["loss"] for r in runlog.read(folder) if r["event"] == "step"]


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """Two budgets of one training, and one by itself, run."""
    out = tmp_path_factory.mktemp("runs")
    plans = [*budgets(plan_of(data, "wsd"), [40, 20]), plan_of(data, "straight")]
    run_all("test", plans, out)
    return out, plans


def test_a_budget_that_forks_off_is_the_run_by_itself(done):
    """To the last bit, dropout included: losses, validation and weights."""
    out, plans = done
    forked, straight = (out / "test" / name for name in ("wsd-3k", "straight"))
    assert [plan.name for plan in plans[:4]] == ["wsd-stage17", "wsd-1k", "wsd-stage33", "wsd-3k"]
    assert losses(forked) == losses(straight) and len(losses(straight)) == 40
    a, b = (checkpoint.find(folder).weights() for folder in (forked, straight))
    assert all(torch.equal(a[name], b[name]) for name in b)
    rows = {row["run"]: row for row in rows_of(out, out / "csv")}
    assert rows["wsd-3k"]["loss"] == rows["straight"]["loss"] != rows["wsd-1k"]["loss"]


def test_the_steps_before_the_descent_are_those_of_a_constant_rate():
    steps = stable_steps(TRAIN.replace(steps=100))
    rates = planned_rates(TRAIN.replace(steps=100))
    assert rates[steps - 1] == TRAIN.learning_rate > rates[steps]
    assert steps == pytest.approx(3 + 0.8 * 97, abs=1)
    with pytest.raises(ValueError, match="schedule of x is 'cosine'"):
        budgets(Plan("x", SHAPE, TRAIN.replace(schedule="cosine")), [10])


def test_a_run_only_goes_on_from_one_that_trained_the_same(done, data, tmp_path):
    out, _ = done
    with pytest.raises(ValueError, match="would have trained otherwise"):
        runner.fork(out / "test" / "wsd-stage17", tmp_path / "fork", TRAIN.replace(learning_rate=1e-2))
    with pytest.raises(ValueError, match="would have trained otherwise"):  # its rate would be falling by then
        runner.fork(out / "test" / "wsd-stage33", tmp_path / "fork", TRAIN.replace(steps=35))


def test_rows_have_every_column_and_true_numbers(done, data):
    out, _ = done
    rows = {row["run"]: row for row in rows_of(out, out / "csv")}
    assert set(rows) == {"straight", "wsd-1k", "wsd-3k"}  # a stage is no run of its own
    row, folder = rows["straight"], out / "test" / "straight"
    assert set(row) >= ISSUE.union(COLUMNS) and all(row[name] != "" for name in COLUMNS)
    model = checkpoint.find(folder).build()
    assert int(row["parameters"]) == sum(p.numel() for p in model.parameters())
    assert int(row["body_parameters"]) == sum(
        p.numel() for part in (model.blocks, model.norm) for p in part.parameters()
    )
    assert int(row["tokens"]) == 40 * 64
    last = [r for r in runlog.read(folder) if r["event"] == "validation"][-1]
    assert float(row["loss"]) == pytest.approx(last["loss"], rel=1e-5)
    d, layers, vocab, t = 16, 1, 300, 16
    per_token = 6 * (layers * (4 * d * d + 2 * d * 32) + vocab * d) + 12 * layers * d * t
    assert float(row["flops"]) == pytest.approx(per_token * 40 * 64, rel=1e-3)
    assert float(row["epochs"]) == pytest.approx(40 * 64 / int(row["train_tokens"]), rel=1e-5)
    assert "--only straight" in row["command"] and "torch" in row["versions"]


def test_bits_per_byte_are_of_the_text_that_was_validated(done, data):
    """Counted here on the text itself, by the checkpoint's own tokenizer."""
    from lab.data import load_text

    out, _ = done
    found = checkpoint.find(out / "test" / "straight")
    encode = found.tokenizer().encode
    size = tokens = 0
    for text in load_text(data.corpus, "validation"):
        if tokens >= 250:
            break
        size, tokens = size + len(text.encode()), tokens + len(encode(text).ids) + 1
    row = next(row for row in rows_of(out, out / "csv") if row["run"] == "straight")
    assert float(row["bits_per_byte"]) == pytest.approx(float(row["loss"]) * tokens / size / math.log(2), rel=1e-4)


def test_collecting_again_gives_the_same_bytes(done):
    out, _ = done
    first = [path.read_bytes() for path in collect("test", out, out / "csv")]
    assert [path.read_bytes() for path in collect("test", out, out / "again")] == first
    assert first[1].count(b"\n") > 20


def test_rows_of_runs_that_were_done_elsewhere_stay(done, tmp_path):
    out, _ = done
    paths = collect("test", out, tmp_path / "csv")
    whole = [path.read_bytes() for path in paths]
    (tmp_path / "runs" / "test").mkdir(parents=True)
    (tmp_path / "runs" / "test" / "straight").symlink_to(out / "test" / "straight")
    assert [path.read_bytes() for path in collect("test", tmp_path / "runs", tmp_path / "csv")] == whole
    stale = whole[0].decode().replace("straight,", "straight,9", 1).encode()
    assert stale != whole[0]
    paths[0].write_bytes(stale)
    collect("test", tmp_path / "runs", tmp_path / "csv")
    assert paths[0].read_bytes() == whole[0]  # what is run again replaces what was there


def test_curves_average_the_steps_between_their_points(done):
    out, _ = done
    with collect("test", out, out / "csv")[1].open(encoding="utf-8", newline="") as file:
        points = [row for row in csv.DictReader(file) if row["run"] == "straight"]
    assert [row["step"] for row in points if row["validation_loss"]] == ["10", "20", "30", "40"]
    logged = losses(out / "test" / "straight")
    assert float(points[0]["training_loss"]) == pytest.approx(logged[0], rel=1e-5)
    assert sum(float(row["training_loss"]) for row in points) / 40 == pytest.approx(sum(logged) / 40, rel=1e-4)


def test_what_is_finished_is_not_done_again(done, monkeypatch):
    out, plans = done
    monkeypatch.setattr(runner, "fit", lambda *args, **how: pytest.fail("trained again"))
    run_all("test", plans, out)


def test_a_killed_run_goes_on_and_ends_in_the_same_row(done, data, tmp_path):
    """Killed in the middle of the stage, and again at its end, before the run that leaves it is there."""
    out, plans = done
    code = f"""
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import lab.trainer
from lab.config import TrainConfig
from lab.experiments import *
save, calls = lab.trainer.Trainer.save, []
def kill(self, best):
    save(self, best)
    calls.append(1)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
lab.trainer.Trainer.save = kill
plan = Plan("wsd", {SHAPE!r}, {TRAIN!r}, {data!r})
run_all("test", budgets(plan, [40]), Path({str(tmp_path)!r}))
"""
    for number, status in ((2, -9), (2, -9), (99, 0)):
        ended = subprocess.run([sys.executable, "-c", code, str(number)], capture_output=True, text=True)
        assert ended.returncode == status, ended.stderr
    resumed, whole = rows_of(tmp_path, tmp_path)[0], rows_of(out, out / "csv")[-1]
    assert resumed["run"] == whole["run"] == "wsd-3k"
    differ = {name for name in COLUMNS if resumed[name] != whole[name]} - {"seconds"}
    if os.environ.get("OMP_NUM_THREADS") == "1":  # the processes then sum in the same order as this one
        assert not differ


def test_a_folder_of_another_plan_is_refused(done, data):
    out, _ = done
    with pytest.raises(ValueError, match="straight was run by another plan: train is .*another --out"):
        run_all("test", [plan_of(data, "straight", train={"seed": 7})], out)


def test_two_processes_do_not_share_a_folder(data, tmp_path):
    with runner.alone(tmp_path / "test"), pytest.raises(BlockingIOError, match="another process runs experiments"):
        run_all("test", [plan_of(data)], tmp_path)


def test_a_budget_beyond_the_corpus_is_refused_or_counted(data, tmp_path):
    few = replace(data, train_tokens=500)
    with pytest.raises(ValueError, match=r"one trains on 2,560 tokens, and .* has 5\d\d to read 1 times"):
        run_all("test", [plan_of(few)], tmp_path)
    run_all("test", [plan_of(replace(few, max_epochs=None), train={"steps": 15})], tmp_path)
    row = rows_of(tmp_path, tmp_path)[0]
    assert 1.5 < float(row["epochs"]) < 2 and 500 <= int(row["train_tokens"]) < 600


def test_only_takes_what_a_run_goes_on_from_with_it(data):
    plans = budgets(plan_of(data, "wsd"), [20, 40, 80])
    assert [plan.name for plan in chosen(plans, ["wsd-3k"])] == ["wsd-stage17", "wsd-stage33", "wsd-3k"]
    assert chosen(plans, []) == plans
    with pytest.raises(ValueError, match="unknown run 'wsd-4k'.*Did you mean 'wsd-"):
        chosen(plans, ["wsd-4k"])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_is_a_list_that_can_be_run(name, device):
    """Each run after the one that it goes on from, and no token of a corpus read twice where that is promised."""
    plans = experiments.plans_of(name, device)
    seen = {}
    for plan in plans:
        plan.config(50257, 0)
        if plan.after:
            before = seen[plan.after]
            assert planned_rates(plan.train)[: before.train.steps] == planned_rates(before.train)
            assert before.stage and (plan.model, plan.data) == (before.model, before.data)
        seen[plan.name] = plan
    assert len(seen) == len(plans) and any(not plan.stage for plan in plans)
    assert all(plan.tokens < 28_000_000 for plan in plans if plan.data.max_epochs == 1)


def test_the_ladder_is_what_the_fits_need():
    runs = [plan for plan in experiments.plans_of("ladder") if not plan.stage]
    sizes = {plan.model["d_model"] for plan in runs}
    assert len(sizes) >= 8 and all(
        len({plan.tokens for plan in runs if plan.model["d_model"] == d}) >= 2 for d in sizes
    )
    assert {plan.train.seed for plan in runs} == {0, 1}
    held_out = {plan.model["d_model"] for plan in experiments.plans_of("prediction")}
    assert min(held_out) > max(sizes)


def test_one_thing_is_changed_at_a_time():
    plans = [plan for plan in experiments.plans_of("causes") if plan.train.seed == 0]
    base = next(plan for plan in plans if plan.about["cause"] == "base")
    for plan in plans:
        changed = {k for k, v in plan.model.items() if base.model.get(k) != v}
        changed |= {k for k, v in vars(plan.train).items() if getattr(base.train, k) != v and k != "eval_every"}
        equal_parameters = plan.about["arm"] == "2x, same parameters"
        assert len(changed) <= 1 + equal_parameters, plan.name
        assert plan.tokens == base.tokens
    seeds = [plan.train.seed for plan in experiments.plans_of("causes")]
    assert all(seeds.count(seed) == len(plans) for seed in (0, 1, 2))


def test_the_held_out_run_waits_for_its_prediction(tmp_path):
    plans = experiments.plans_of("prediction")
    path = tmp_path / "prediction.csv"
    with pytest.raises(ValueError, match="holds no prediction for d224"):
        experiments.require_registered(plans, path)
    runs = [plan.name for plan in plans if not plan.stage]
    path.write_text("run,predicted,low,high\n" + "".join(f"{run},5,4,6\n" for run in runs), encoding="utf-8")
    experiments.require_registered(plans, path)


def test_a_prediction_is_what_the_fit_of_the_ladder_expects_and_is_written_once(tmp_path):
    """The ladder is drawn from a known law, which the registered losses must then follow."""
    plans, ladder = experiments.plans_of("prediction"), tmp_path / "ladder.csv"
    law = Law(30.0, 60.0, 3.0, 0.3, 0.3)
    rows = [f"{n},{d},{6 * n * d},{law.loss(n, d)},f{n}" for n in (2e5, 5e5, 1e6, 2e6, 4e6) for d in (3e5, 1e6, 4e6)]
    with pytest.raises(FileNotFoundError, match="there is no .*ladder.csv; run `lab experiment ladder`"):
        experiments.register(plans, ladder, tmp_path / "prediction.csv")
    ladder.write_text("parameters,tokens,flops,loss,family\n" + "\n".join(rows), encoding="utf-8")
    path = experiments.register(plans, ladder, tmp_path / "prediction.csv")
    experiments.require_registered(plans, path)
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["run"] for row in found] == [plan.name for plan in plans if not plan.stage]
    for row, plan in zip(found, (plan for plan in plans if not plan.stage), strict=True):
        model = LanguageModel(plan.config(plan.data.vocab_size, 0))
        total = sum(p.numel() for p in model.parameters())
        assert int(row["parameters"]) == total and int(row["tokens"]) == plan.tokens and row["fitted"] == "15"
        assert float(row["predicted"]) == pytest.approx(law.loss(total, plan.tokens), rel=1e-3)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="holds a prediction already"):
        experiments.register(plans, ladder, path)
    assert path.read_bytes() == before


def call(*arguments):
    result = CliRunner().invoke(app, ["experiment", *map(str, arguments)])
    return f"{result.output}{result.exception or ''}"


def test_the_command_runs_lists_and_collects(data, tmp_path, monkeypatch):
    plans = [plan_of(data, "short", train={"steps": 6}), plan_of(data, "long")]
    monkeypatch.setitem(experiments.EXPERIMENTS, "mine", lambda device: plans)
    assert "no finished run in" in call("mine", "--out", tmp_path, "--collect", tmp_path / "csv")
    call("mine", "--out", tmp_path, "--only", "sh*")
    said = call("mine", "--out", tmp_path, "--list")
    assert "finished, loss" in said.splitlines()[0] and "not begun" in said.splitlines()[1]
    assert "mine_curves.csv" in call("mine", "--out", tmp_path, "--collect", tmp_path / "csv")
    assert "--register is of the experiment prediction" in call("ladder", "--out", tmp_path, "--register")
    assert "unknown experiment 'ladders'. Did you mean 'ladder'" in call("ladders", "--out", tmp_path)
