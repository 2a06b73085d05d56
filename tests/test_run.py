"""The command line trains, resumes, measures and speaks, from data to text, and its errors say what to do."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import lab
from lab import checkpoint, presets, runlog, shipped
from lab.cli import app
from lab.config import TrainConfig
from lab.evaluation import Evaluation
from lab.run import changed, open_source, parsed, slow_precision, units

SMALL = ["d_model=32", "num_heads=2", "num_layers=1", "d_ff=128", "max_seq_len=32", "warmup_steps=2", "eval_every=4"]


def call(*arguments, ok=True):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if ok:
        assert result.exception is None, result.exception
        return result.stdout
    assert result.exception is not None, result.stdout
    return f"{result.output}{result.exception}"


def sets(changes=()):
    return [part for change in [*SMALL, *changes] for part in ("--set", change)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text file of its own words, prepared."""
    folder = tmp_path_factory.mktemp("text")
    documents = [f"The number {i} follows {i - 1} — and {i * i} is its square.\n" * 4 for i in range(120)]
    (folder / "numbers.txt").write_text("\n".join(documents), encoding="utf-8")
    call("prepare", folder / "numbers.txt", "--out", folder / "prepared", "--vocab-size", 300)
    return folder / "prepared"


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "lm"
    call("train", "--data", text, "--out", out, "--steps", 8, "--batch-tokens", 64, *sets())
    return out


def test_training_leaves_a_log_and_checkpoints(run):
    records = runlog.read(run)
    assert [r["step"] for r in records if r["event"] == "step"] == list(range(1, 9))
    assert [r["step"] for r in records if r["event"] == "validation"] == [4, 8]
    assert all(r["bits_per_byte"] > 0 and "word_perplexity" not in r for r in records if r["event"] == "validation")
    assert all(r["matmul_fraction"] > 0 and r["memory"] > 1e7 for r in records if r["event"] == "step")
    assert checkpoint.find(run).about["progress"]["step"] == 8


def test_eval_repeats_the_validation_of_the_log(run):
    measured = json.loads(call("eval", "--checkpoint", run, "--last"))
    logged = [r for r in runlog.read(run) if r["event"] == "validation"][-1]
    for name in ("loss", "perplexity", "bits_per_byte", "tokens"):
        assert measured[name] == pytest.approx(logged[name], rel=1e-6), name


def test_generate_needs_the_checkpoint_alone_and_is_the_models_own(run):
    said = call("generate", "--checkpoint", run, "--prompt", "The number", "--max-new-tokens", 12)
    found = checkpoint.find(run, "best")
    model, tokenizer = found.build(), found.tokenizer()
    ids = [model.config.eos_id, *tokenizer.encode("The number").ids]
    expected = model.generate(torch.tensor([ids]), 12)[0, len(ids) :].tolist()
    expected = expected[: expected.index(model.config.eos_id)] if model.config.eos_id in expected else expected
    assert said.rstrip("\n") == tokenizer.decode(expected).rstrip("\n")


def test_sampling_is_seeded(run):
    def sampled(seed):
        how = ["--temperature", 1.0, "--top-k", 40, "--seed", seed, "--max-new-tokens", 16]
        return call("generate", "--checkpoint", run, "--prompt", "The", *how)

    assert sampled(1) == sampled(1) != sampled(2)


def test_resume_goes_on_and_ends_as_the_whole_run(text, run, tmp_path):
    """Killed after its first checkpoint, at step 4."""
    out = tmp_path / "killed"
    code = f"""
import os, signal, sys
import lab.trainer
save = lab.trainer.Trainer.save
def kill(self, best):
    save(self, best)
    os.kill(os.getpid(), signal.SIGKILL)
lab.trainer.Trainer.save = kill
sys.argv = {["lab", "train", "--data", str(text), "--out", str(out), "--steps", "8", "--batch-tokens", "64", *sets()]!r}
import lab.cli
lab.cli.main()
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert killed.returncode == -9, killed.stderr
    call("train", "--out", out, "--resume")
    whole, resumed = ([r for r in runlog.read(folder) if r["event"] == "step"] for folder in (run, out))
    assert [r["step"] for r in resumed] == [r["step"] for r in whole]
    if os.environ.get("OMP_NUM_THREADS") == "1":  # the subprocess then sums in the same order as this one
        assert [r["loss"] for r in resumed] == [r["loss"] for r in whole]


def test_pairs_train_a_translator_by_the_same_command(tmp_path):
    call(
        "train", "--data", "counting", "--out", tmp_path, "--steps", 2, "--batch-tokens", 512, *sets(["max_seq_len=64"])
    )
    found = checkpoint.find(tmp_path)
    assert found.about["kind"] == "Transformer" and found.about["data"]["name"] == "counting"
    assert isinstance(call("generate", "--checkpoint", tmp_path, "--prompt", "twenty-one"), str)
    assert json.loads(call("eval", "--checkpoint", tmp_path, "--split", "test"))["tokens"] > 0


def test_the_plan_is_announced_with_its_findings(text, tmp_path, capfd):
    from lab.run import train

    train(str(text), tmp_path, changes=[*SMALL, "steps=4", "batch_tokens=64", "d_ff=64"], progress=False)
    said = capfd.readouterr().err
    assert "parameters" in said and "[P3] d_ff is 64, 2 × d_model 32" in said


@pytest.mark.parametrize(("bf16", "said"), [(1e9, "matmuls run 8.0 times slower than fp32's"), (9e9, "")])
def test_a_precision_that_is_slower_here_is_said(monkeypatch, bf16, said):
    peaks = {torch.bfloat16: bf16, torch.float32: 8e9}
    monkeypatch.setattr("lab.run.measured_matmul_peak", lambda device, dtype, seconds: peaks[dtype])
    told = slow_precision("bf16", torch.device("cpu"))
    assert said in told and bool(told) == bool(said)
    assert slow_precision("fp32", torch.device("cpu")) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --data"),
        (["--data", "no-such-corpus"], "no-such-corpus"),
        (["--data", "TEXT", "--preset", "17m"], "unknown preset '17m'.*16m"),
        (["--data", "TEXT", "--set", "d_fff=3"], "unknown field 'd_fff'. Did you mean 'd_ff'"),
        (["--data", "TEXT", "--set", "d_ff"], "not of the form field=value"),
        (["--data", "TEXT", "--set", "d_ff=wide"], "d_ff is 512 by default; 'wide' is of another type"),
        (["--data", "TEXT", "--learning-rate", "-1"], "learning_rate is -1.0; it must be above 0"),
        (["--data", "TEXT", "--batch-tokens", "20", "--set", "max_seq_len=32"], "batch_tokens is 20, under one block"),
        (["--data", "TEXT", "--set", "max_seq_len=100000", "--batch-tokens", "100000"], "100000"),
        (["--data", "TEXT", "--device", "cuda:9"], "device 'cuda:9' is not there"),
        (["--data", "TEXT", "--parallel", "tensor"], "unknown kind of parallelism 'tensor'.*ddp, fsdp"),
        (["--data", "TEXT", "--set", "vocab_size=400"], "vocab_size is 400, and the data's is 300"),
        (["--resume"], "there is no checkpoint in"),
        (["--data", "TEXT", "--tensorboard", "board"], "pip install tensorboard"),
    ],
)
def test_bad_input_is_named(text, tmp_path, arguments, message):
    arguments = [str(text) if argument == "TEXT" else argument for argument in arguments]
    import re

    said = call("train", "--out", tmp_path / "run", "--steps", 2, *arguments, ok=False)
    assert re.search(message, said, re.DOTALL), said
    assert not (tmp_path / "run" / checkpoint.INDEX).exists()


def test_a_run_is_not_overwritten(text, run):
    before = (run / runlog.LOG).read_bytes()
    said = call("train", "--data", text, "--out", run, "--steps", 2, *sets(), ok=False)
    assert "holds a run already" in said and (run / runlog.LOG).read_bytes() == before


def test_resuming_on_other_data_or_otherwise_is_refused(run, tmp_path):
    (tmp_path / "other.txt").write_text(
        "\n\n".join(f"Nothing of {i} is here." * 9 for i in range(200)), encoding="utf-8"
    )
    call("prepare", tmp_path / "other.txt", "--out", tmp_path / "other", "--vocab-size", 300)
    assert "is not the data" in call("train", "--out", run, "--resume", "--data", tmp_path / "other", ok=False)
    assert "learning_rate" in call("train", "--out", run, "--resume", "--learning-rate", 0.5, ok=False)
    assert "tokenised otherwise" in call("eval", "--checkpoint", run, "--data", tmp_path / "other", ok=False)


def test_units():
    counts = {"tokens": 300, "words": 200, "bytes": 900}
    measured = units(counts)(Evaluation(2.0, 299))
    assert measured["perplexity"] == pytest.approx(math.exp(2))
    assert measured["word_perplexity"] == pytest.approx(math.exp(2 * 300 / 200))
    assert measured["bits_per_byte"] == pytest.approx(2 * 300 / (900 * math.log(2)))
    assert "word_perplexity" not in units({**counts, "words": None})(Evaluation(2.0, 299))


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("3e-4", 3e-4), ("true", True), ("None", None), ("bf16", "bf16"), ("-1", -1)]
)
def test_values_are_parsed_by_their_look(text, value):
    assert parsed(text) == value and type(parsed(text)) is type(value)


def test_changes_go_to_the_config_that_has_the_field():
    configs = presets.preset("tiny"), TrainConfig(5)
    model, train = changed(configs, ["d_ff=64", "learning_rate=1", "loss_chunk=16", "patience=3", "compile=true"])
    assert (model.d_ff, model.loss_chunk) == (64, 16)
    assert (train.learning_rate, train.patience, train.compile) == (1, 3, True)
    with pytest.raises(ValueError, match="compile is False by default"):
        changed(configs, ["compile=1"])


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_promises_what_it_is(name):
    """The parameters that the docstring states are those of the model."""
    preset = presets.get(name)
    model = (lab.Transformer if "translator" in name else lab.LanguageModel)(
        preset.model if "translator" not in name else preset.model.replace(pad_id=1)
    )
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in " ".join(preset.doc.split())


@pytest.mark.parametrize("name", ["16m", "50m", "117m"])
def test_the_score_that_a_preset_promises_is_in_the_table(name):
    runs = shipped.table("sizes").query("run.str.startswith(@name + '-wiki2015-')")
    doc = " ".join(presets.get(name).doc.split())
    stated, tokens = re.search(r"perplexity ([\d,]+) a token after ([\d.]+M) tokens of wiki2015", doc).groups()
    found = {f"{run.tokens / 1e6:.1f}M": f"{run.perplexity:,.0f}" for run in runs.itertuples()}
    assert found[tokens] == stated


def test_a_source_says_how_to_open_it_again(text):
    source = open_source(str(text))
    again = open_source(source.about["place"])
    assert again.about["hash"] == source.about["hash"]
    assert sum(source.lengths()) == source.tokens
