"""What the runs of an experiment read: rows with their EOS, cut and padded, and what the probes say of it."""

import pytest
import torch

from lab import runlog
from lab.config import ModelConfig, TrainConfig
from lab.experiments import Data, Plan, run_all
from lab.experiments.batches import open_prepared, padded, read, text_rows, windows
from lab.experiments.probes import alone, endings
from lab.labels import IGNORE_INDEX
from lab.language_model import LanguageModel

SHAPE = {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 32, "max_seq_len": 32, "dropout": 0.0}
TRAIN = TrainConfig(12, warmup_steps=2, batch_tokens=128, eval_every=4)
EOS = 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "numbers.txt"
    lines = [f"The number {i} follows {i - 1}, and {i * i} is its square." for i in range(600)]
    path.write_text("\n\n".join(f"{a}\n{b}" for a, b in zip(lines[::2], lines[1::2], strict=True)), encoding="utf-8")
    return str(path)


def rows_data(corpus, layout="padded", **how):
    return Data(corpus, vocab_size=300, layout=layout, train_tokens=4000, validation_tokens=600, **how)


def test_padded_rows_end_in_eos_unless_they_are_cut():
    batch = padded([[5, 6, 7], [8] * 9], context=6, eos_id=EOS)
    x = IGNORE_INDEX
    assert batch["labels"].tolist() == [[5, 6, 7, EOS, x, x], [8] * 6]
    assert batch["input_ids"].tolist() == [[EOS, 5, 6, 7, EOS, EOS], [EOS, *[8] * 5]]
    assert padded([[5, 6, 7]], context=6, eos_id=EOS, eos="ignored")["labels"].tolist() == [[5, 6, 7, x, x, x]]
    assert padded([[5, 6, 7]], context=6, eos_id=EOS, cut=2)["labels"].tolist() == [[5, 6, x, x, x, x]]


def test_padding_changes_no_loss():
    """No mask is needed behind a causal one: the row alone has the loss that it has in its padded batch."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(20, eos_id=EOS, **SHAPE)).eval()
    batch = padded([[5, 6, 7]], context=32, eos_id=EOS)
    short = padded([[5, 6, 7]], context=4, eos_id=EOS)
    assert model(**batch).loss.item() == pytest.approx(model(**short).loss.item(), rel=1e-5)


def test_windows_predict_every_token_of_every_row_once():
    rows = [[5] * 3, [], list(range(3, 19)), [7] * 7]
    batches = windows(rows, 8, EOS)
    pairs = []
    for batch in batches:
        for inputs, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            real = labels != IGNORE_INDEX
            assert labels.numel() <= 8
            pairs += list(zip(inputs[real].tolist(), labels[real].tolist(), strict=True))
    expected = [pair for row in rows for pair in zip([EOS, *row], [*row, EOS], strict=True)]
    assert sorted(pairs) == sorted(expected)


def test_rows_are_the_lines_of_the_text(corpus):
    prepared = open_prepared(rows_data(corpus))
    rows, size = text_rows(prepared, "validation", 600)
    lines = [prepared.tokenizer.decode(row) for row in rows]
    assert all(line.startswith("The number ") and line.endswith("is its square.") for line in lines)
    assert size == sum(len(line.encode()) for line in lines)
    assert prepared.eos_id not in {token for row in rows for token in row}


@pytest.mark.parametrize("layout", ["rows", "padded"])
def test_packed_and_padded_rows_are_validated_on_the_same_tokens(corpus, layout):
    plan = Plan("x", SHAPE, TRAIN, rows_data(corpus, layout))
    reading = read(plan, open_prepared(plan.data))
    labels = torch.cat([batch["labels"].flatten() for batch in reading.validation]).tolist()
    assert labels == [token for row in reading.rows for token in (*row, reading.prepared.eos_id)]
    assert len(labels) == reading.count
    batch = next(iter(reading.train))
    assert batch["input_ids"].shape == (4, 32)
    assert bool((batch["labels"] == IGNORE_INDEX).any()) == (layout == "padded")


class Fixed(LanguageModel):
    """Gives EOS a probability of 3/4 after token 7, and of 1/4 after any other; the rest to token 5."""

    def forward(self, input_ids, labels=None, **how):
        out = super().forward(input_ids, **how)
        ids = input_ids[:, -1:] if how.get("last_only") else input_ids
        p = torch.where(ids == 7, 0.75, 0.25)
        logits = torch.full_like(out.logits, -torch.inf)
        logits[..., EOS], logits[..., 5] = p.log(), (1 - p).log()
        out.logits = logits
        return out


class Rows:
    rows = [[5, 6, 7], [8, 7], [7, 9, 7], [3] * 40]


def test_the_probability_of_eos_is_read_where_rows_end():
    """The last row is longer than the context and left out. Elsewhere: once of six times after a 7."""
    found = endings(Fixed(ModelConfig(20, eos_id=EOS, **SHAPE)), Rows)
    assert found["eos_at_end"] == pytest.approx(0.75)
    assert found["eos_elsewhere"] == pytest.approx((0.75 + 7 * 0.25) / 8)
    assert found["ended"] == 1.0 and 1 < found["generated_tokens"] < 6  # geometric: 3 tokens in the mean


def test_a_model_that_never_ends_fills_the_context(corpus):
    plan = Plan("x", SHAPE, TRAIN, rows_data(corpus))
    reading = read(plan, open_prepared(plan.data))
    model = LanguageModel(plan.config(reading.prepared.vocab_size, reading.prepared.eos_id))
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.copy_(-10 * model.embedder.token.weight[reading.prepared.eos_id])
        model.embedder.token.weight[reading.prepared.eos_id] *= 100
    found = endings(model, reading)
    assert found["ended"] == 0 and found["generated_tokens"] == 31 and found["eos_at_end"] < 1e-3
    assert model.training and alone(model, reading)["rows_loss"] > 0


def test_a_sample_after_validation_leaves_the_broken_model_in_eval(corpus, tmp_path):
    data = Data(corpus, vocab_size=300, validation_tokens=300, max_epochs=None)
    how = {"probe": "samples", "model": SHAPE | {"dropout": 0.3}, "train": TRAIN, "data": data}
    plans = [Plan("healthy", **how), Plan("stuck", **how, fault="stuck-in-eval-language-model")]
    run_all("test", plans, tmp_path)
    logs = {plan.name: runlog.read(tmp_path / "test" / plan.name) for plan in plans}
    awake = {name: [r["awake"] for r in log if r["event"] == "validation"] for name, log in logs.items()}
    assert awake == {"healthy": [1.0, 1.0, 1.0], "stuck": [0.0, 0.0, 0.0]}
    steps = {name: [r["loss"] for r in log if r["event"] == "step"] for name, log in logs.items()}
    assert steps["healthy"][:4] == steps["stuck"][:4]  # the fault shows after the first validation
    assert steps["healthy"][4:] != steps["stuck"][4:]
    broken = tmp_path / "test" / "stuck"
    (broken / "checkpoints.json").unlink()  # killed, it begins anew
    run_all("test", plans, tmp_path)
    assert [r["loss"] for r in runlog.read(broken) if r["event"] == "step"] == steps["stuck"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"layout": "rowz"}, "unknown layout 'rowz'. Did you mean 'rows'"),
        ({"layout": "rows"}, "train_tokens is None; the layout 'rows' needs a number"),
        ({"eos": "ignored"}, "layout is 'articles'; rows are cut"),
    ],
)
def test_bad_data_is_named(how, message):
    with pytest.raises(ValueError, match=message):
        Data(**how)


def test_a_batch_smaller_than_the_context_is_named(corpus):
    plan = Plan("x", SHAPE, TRAIN.replace(batch_tokens=16), rows_data(corpus))
    with pytest.raises(ValueError, match="batch_tokens of x is 16, under its context of 32"):
        read(plan, open_prepared(plan.data))
