"""`lab train --preflight`: it stops what cannot work, says how to go on, and changes nothing of what can."""

import pytest
import torch
from typer.testing import CliRunner

from lab import faults, presets, runlog
from lab.cli import app
from lab.language_model import LanguageModel
from lab.preflight import few_rows, preflight, told

SMALL = ["d_model=32", "num_heads=2", "num_layers=1", "d_ff=128", "max_seq_len=32", "warmup_steps=2", "eval_every=4"]


def call(*arguments):
    changes = [part for change in SMALL for part in ("--set", change)]
    return CliRunner().invoke(app, ["train", *map(str, arguments), "--steps", "4", "--batch-tokens", "64", *changes])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    documents = [f"The number {i} follows {i - 1}, and {i * i} is its square.\n" * 4 for i in range(120)]
    (folder / "numbers.txt").write_text("\n".join(documents), encoding="utf-8")
    out = folder / "prepared"
    result = CliRunner().invoke(app, ["prepare", str(folder / "numbers.txt"), "--out", str(out), "--vocab-size", "300"])
    assert result.exception is None
    return out


def losses(out):
    return [record["loss"] for record in runlog.read(out) if "loss" in record]


def test_the_training_is_the_same_with_and_without_to_the_last_bit(text, tmp_path):
    plain = call("--data", text, "--out", tmp_path / "plain")
    asked = call("--data", text, "--out", tmp_path / "asked", "--preflight")
    assert plain.exit_code == asked.exit_code == 0, asked.output
    assert losses(tmp_path / "plain") == losses(tmp_path / "asked") != []
    assert "Preflight" in asked.stderr and "Preflight" not in plain.stderr
    # What the plan lacks is said once, with and without.
    advice = [line for line in plain.stderr.splitlines() if line.startswith("[P3]")]
    assert advice and all(asked.stderr.splitlines().count(line) == 1 for line in advice)


@pytest.mark.parametrize("fault", ["shifted-twice", "dropout-without-a-switch", "softmax-on-logits"])
def test_a_training_that_cannot_work_is_stopped_before_its_first_step(text, tmp_path, fault):
    with faults.get(fault).inject():
        result = call("--data", text, "--out", tmp_path / "out", "--preflight")
    assert result.exit_code == 1, result.output
    assert "[P1]" in result.stderr and "repair:" in result.stderr
    assert "Nothing was trained" in result.stderr and "without --preflight" in result.stderr
    assert not (tmp_path / "out").exists()


def model_and_batch(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "d_model": 32, "num_heads": 2, "num_layers": 1, "d_ff": 128, "max_seq_len": 32}
    model = LanguageModel(presets.tiny()[0].replace(**shape, pad_id=None, **changes))
    ids = torch.randint(3, 40, (6, 33))
    return model, {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}


def test_with_a_loss_in_chunks_the_same_checks_are_asked():
    """The model gives no logits beside such a loss."""
    whole, chunked = (preflight(*model_and_batch(loss_chunk=chunk), {}) for chunk in (None, 5))
    assert not chunked.findings and not chunked.errors, chunked.text()
    assert chunked.passed == whole.passed and "target-alignment" in chunked.passed


def test_the_config_is_given_back_whatever_happens():
    model, batch = model_and_batch(loss_chunk=5)
    config = model.config
    preflight(model, batch, {})
    assert model.config is config
    with pytest.raises(ValueError):
        preflight(model, batch, {"rates": []})
    assert model.config is config


def test_a_few_rows_hold_the_shortest_and_the_longest():
    labels = torch.full((7, 9), 5)
    for row, length in enumerate((4, 9, 6, 2, 5, 7, 8)):
        labels[row, length:] = -100
    ids = torch.arange(63).reshape(7, 9)
    few = few_rows({"input_ids": ids, "decoder_input_ids": ids, "labels": labels})
    lengths = (few["labels"] != -100).sum(1).tolist()
    assert len(lengths) == 4 and min(lengths) == 2 and max(lengths) == 9
    assert few["labels"].data_ptr() != labels.data_ptr()


def test_of_one_row_there_is_one():
    assert len(few_rows({"input_ids": torch.ones(1, 5), "labels": torch.ones(1, 5)})["labels"]) == 1


def test_errors_of_the_tool_are_told():
    report = preflight(*model_and_batch(), {})
    report.errors["a-check"] = "KeyError"
    assert "ERROR in a-check" in told(report, 1.0) and "0 findings" in told(report, 1.0)
