"""The loop does AdamW's arithmetic, learns, trusts evaluate() with its mode, and stops on what it cannot train on."""

import copy
import math
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from train_tiny import (
    Foreign,
    Stop,
    batch,
    hard_batches,
    language_model,
    loader,
    losses,
    pairs,
    poisoned,
    stop_after,
    texts,
    translator,
    with_poison,
)

import lab
from lab import IGNORE_INDEX, TrainConfig, checkpoint, faults, labels, matrix
from lab.evaluation import Evaluation
from lab.trainer import fit

ROOT = Path(__file__).parent.parent
BATCH = labels.collate_pairs([([5, 6, 7], [8, 9, 10]), ([11, 12], [13])], **matrix.SPECIAL)


def model(**changes):
    torch.manual_seed(0)
    return lab.Transformer(matrix.config(**changes))


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def reference(model, steps: list[list[dict]], config: TrainConfig) -> list[float]:
    """The training of a double model over steps of micro-batches, by the formulas; returns the losses."""
    parameters = list(model.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    losses = []
    model.train()
    for t, micro in enumerate(steps, start=1):
        total = sum(int((b["labels"] != IGNORE_INDEX).sum()) for b in micro)
        loss = 0.0
        for b in micro:
            inputs = {name: value for name, value in b.items() if name != "labels"}
            logits = model(**inputs).logits
            smoothed = {"ignore_index": IGNORE_INDEX, "label_smoothing": model.config.label_smoothing}
            loss = loss + F.cross_entropy(logits.flatten(0, 1), b["labels"].flatten(), reduction="sum", **smoothed)
        loss = loss / total
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        gradients = [g * min(1.0, config.clip_norm / (norm + 1e-6)) for g in gradients]
        # Linear warmup, then a straight line to a tenth at the end.
        if t <= config.warmup_steps:
            rate = config.learning_rate * t / config.warmup_steps
        else:
            done = (t - 1 - config.warmup_steps) / (config.steps - config.warmup_steps)
            rate = config.learning_rate * (0.1 + 0.9 * (1 - done))
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                if p.dim() >= 2:
                    p -= rate * config.weight_decay * p
                m.copy_(0.9 * m + 0.1 * g)
                v.copy_(config.beta2 * v + (1 - config.beta2) * g**2)
                p -= rate * (m / (1 - 0.9**t)) / ((v / (1 - config.beta2**t)).sqrt() + 1e-8)
    return losses


RECIPE = {"schedule": "linear", "warmup_steps": 2, "weight_decay": 0.3, "beta2": 0.95, "clip_norm": 0.7}


@pytest.mark.parametrize("make", [language_model, translator])
@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_a_training_follows_the_formulas_in_float64(make, tie_head, label_smoothing):
    micro = hard_batches(pairs if make is translator else batch)
    trained = make(dropout=0.0, tie_head=tie_head, label_smoothing=label_smoothing).double()
    by_hand = copy.deepcopy(trained)
    config = TrainConfig(5, learning_rate=1e-2, accumulate=2, **RECIPE)
    history = fit(trained, micro, config)
    steps = [[micro[(2 * s) % 4], micro[(2 * s + 1) % 4]] for s in range(5)]
    assert losses(history) == pytest.approx(reference(by_hand, steps, config), rel=1e-9)
    assert torch.allclose(weights(trained), weights(by_hand), rtol=1e-7, atol=1e-9)
    assert history.steps[0]["gradient_norm"] > RECIPE["clip_norm"]  # else the clipping did nothing


def test_float32_stays_near_the_float64_reference():
    trained, micro = language_model(dropout=0.0), hard_batches()
    by_hand = copy.deepcopy(trained).double()
    config = TrainConfig(4, learning_rate=1e-2, **RECIPE)
    assert losses(fit(trained, micro, config)) == pytest.approx(
        reference(by_hand, [[b] for b in micro], config), rel=1e-6
    )
    assert torch.allclose(weights(trained).double(), weights(by_hand), atol=1e-5)


def test_a_training_with_dropout_is_a_plain_loop_to_the_last_bit():
    """Twenty steps over three epochs, against torch's own optimizer, clipping and schedule."""
    trained, batches = language_model(dropout=0.2), loader("list")
    plain = copy.deepcopy(trained)
    history = fit(trained, batches, TrainConfig(20, warmup_steps=4, weight_decay=0.1, seed=3), validation=batches[:2])

    torch.manual_seed(3)
    groups = [
        {"params": [p for p in plain.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in plain.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)

    def factor(step):
        return (step + 1) / 4 if step < 4 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 4) / 16))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    expected = []
    plain.train()
    for step in range(20):
        loss = plain(**batches[step % len(batches)]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        expected.append(loss.item())
    assert losses(history) == expected
    assert torch.equal(weights(trained), weights(plain))


def test_accumulation_is_one_big_batch():
    """Four micro-batches with 1 to 31 targets; the mean of their means is another loss, and another training."""
    micro = hard_batches()
    rows = {"input_ids": [], "labels": []}
    width = max(b["labels"].size(1) for b in micro)
    for b in micro:
        for name, fill in (("input_ids", 0), ("labels", IGNORE_INDEX)):
            rows[name].append(F.pad(b[name], (0, width - b[name].size(1)), value=fill))
    big = {name: torch.cat(parts) for name, parts in rows.items()}
    config = TrainConfig(6, warmup_steps=2, learning_rate=1e-2)
    whole, parts = language_model(dropout=0.0).double(), language_model(dropout=0.0).double()
    means = [whole(**b).loss.item() for b in micro]
    one = fit(whole, [big], config)
    many = fit(parts, micro, config.replace(accumulate=4))
    assert losses(many) == pytest.approx(losses(one), rel=1e-10)
    assert torch.allclose(weights(parts), weights(whole), atol=1e-9)
    assert [row["tokens"] for row in many.steps] == [row["tokens"] for row in one.steps]
    assert abs(sum(means) / 4 - losses(one)[0]) > 1e-3  # the plain mean fails here


def test_it_learns_a_batch_by_heart():
    history = fit(model(dropout=0.0), [BATCH], TrainConfig(120, learning_rate=3e-3, warmup_steps=5))
    assert history.steps[-1]["loss"] < 0.1 * history.steps[0]["loss"]


def test_the_seed_decides_dropout():
    a, b, c = (losses(fit(model(), [BATCH], TrainConfig(4, seed=seed))) for seed in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_validation_changes_nothing(precision):
    """Not even one that draws random numbers: a DataLoader takes one whenever it is begun."""
    validation = DataLoader(
        texts(6), batch_size=2, collate_fn=lambda rows: labels.collate_texts(rows, pad_id=0, bos_id=1, eos_id=2)
    )
    config = TrainConfig(6, eval_every=2, precision=precision)
    plain = fit(language_model(), loader("list"), config)
    validated = fit(language_model(), loader("list"), config, validation=validation)
    assert losses(plain) == losses(validated)
    assert [row["step"] for row in validated.evaluations] == [2, 4, 6]
    assert plain.evaluations == [] and "validation" not in plain.steps[1]
    assert validated.steps[1]["validation"] == validated.evaluations[0]["loss"]


def test_validation_is_the_models_own_evaluation():
    trained = language_model()
    history = fit(trained, loader("list"), TrainConfig(3, eval_every=3), validation=hard_batches())
    result = trained.evaluate(hard_batches())
    assert history.evaluations == [{"step": 3, "loss": result.loss, "tokens": result.tokens}]


def test_a_stuck_evaluate_changes_the_training_after_it():
    config = TrainConfig(6, eval_every=3)
    healthy = fit(model(), [BATCH], config, validation=[BATCH])
    with faults.get("stuck-in-eval-transformer").inject():
        stuck = fit(model(), [BATCH], config, validation=[BATCH])
    assert losses(healthy)[:3] == losses(stuck)[:3] and losses(healthy)[3] != losses(stuck)[3]


def test_bf16_is_near_fp32_in_training_and_in_validation():
    config = TrainConfig(8, learning_rate=3e-3, warmup_steps=2, eval_every=4)
    full = fit(language_model(dropout=0.0), loader("list"), config, validation=hard_batches())
    seen = []
    trained = language_model(dropout=0.0)
    trained.blocks[0].feed_forward.register_forward_hook(
        lambda module, _, out: seen.append((module.training, out.dtype))
    )
    half = fit(trained, loader("list"), config.replace(precision="bf16"), validation=hard_batches())
    assert losses(half) == pytest.approx(losses(full), rel=0.01) and losses(half) != losses(full)
    assert set(seen) == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert all(parameter.dtype == torch.float32 for parameter in trained.parameters())


def test_fp16_skips_a_step_whose_gradient_overflows_and_halves_its_scale():
    from lab.trainer import Trainer

    batches = loader("list")[:4]
    batches[1] = with_poison(batches[1], 1e36)  # finite, but not after scaling
    trained = poisoned()
    before = {}
    trainer = Trainer(
        trained,
        batches,
        TrainConfig(4, warmup_steps=1, precision="fp16"),
        on_step=lambda record: before.update({record["step"]: (weights(trained), trainer.scaler.get_scale())}),
    )
    history = trainer.run()
    assert before[1][1] == 65536 and before[2][1] == 32768
    assert torch.equal(before[1][0], before[2][0]) and not torch.equal(before[2][0], before[3][0])
    assert not math.isfinite(history.steps[1]["gradient_norm"]) and weights(trained).isfinite().all()


def test_fp16_that_never_finds_a_scale_stops():
    with pytest.raises(FloatingPointError, match="gradient norm is (inf|nan) at step 1[78]"):
        fit(poisoned(), [with_poison(batch(2), -1.0)], TrainConfig(40, precision="fp16"))


def test_a_frozen_part_stays_as_it_is():
    trained = language_model()
    trained.blocks[0].requires_grad_(False)
    before = copy.deepcopy(trained.blocks[0].state_dict())
    fit(trained, loader("list"), TrainConfig(3, warmup_steps=1, weight_decay=1.0))
    assert all(torch.equal(value, before[name]) for name, value in trained.blocks[0].state_dict().items())


def test_a_model_that_nobody_here_wrote_is_trained():
    history = fit(Foreign(), loader("list"), TrainConfig(40, learning_rate=1e-2, warmup_steps=2), validation=[batch(3)])
    assert losses(history)[-1] < 0.95 * losses(history)[0] and history.evaluations


def test_a_loader_that_shuffles_gives_each_row_once_an_epoch_and_another_order_in_the_next():
    seen = []

    def collate(rows):
        seen.append(rows)
        return labels.collate_texts([[3 + row] for row in rows], pad_id=0, bos_id=1, eos_id=2)

    fit(language_model(), DataLoader(range(6), batch_size=2, shuffle=True, collate_fn=collate), TrainConfig(6))
    epochs = [sum(seen[:3], []), sum(seen[3:6], [])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(6)) and epochs[0] != epochs[1]


# What cannot be trained on


def test_a_batch_without_a_target_stops_with_its_reason():
    ignored = {**BATCH, "labels": torch.full_like(BATCH["labels"], IGNORE_INDEX)}
    with pytest.raises(ValueError, match="every label.*-100"):
        fit(model(), [ignored], TrainConfig(1))


@pytest.mark.parametrize("empty", [[], iter([BATCH])])
def test_data_that_is_empty_or_used_up_stops_with_its_reason(empty):
    with pytest.raises(ValueError, match="training data has no batch, or is a used-up iterator"):
        fit(model(), empty, TrainConfig(2))


@pytest.mark.parametrize("validation", [[], iter([BATCH])])
def test_validation_that_is_empty_or_used_up_stops_with_its_reason(validation):
    with pytest.raises(ValueError, match="no batch to evaluate on"):
        fit(model(), [BATCH], TrainConfig(2, eval_every=1), validation=validation)


def test_a_loader_shorter_than_a_step_is_read_again():
    history = fit(model(), [BATCH], TrainConfig(2, accumulate=3))
    assert [row["tokens"] for row in history.steps] == [18, 18]
    assert [row["epoch"] for row in history.steps] == [2, 5]


def test_gradients_that_are_not_finite_stop_before_the_weights_are_lost():
    """An empty source that no label looks at: the loss is finite, its gradient is not."""
    trained = model(dropout=0.0)
    batch = {key: value.clone() for key, value in BATCH.items()}
    batch["input_ids"][1], batch["labels"][1] = matrix.SPECIAL["pad_id"], IGNORE_INDEX
    with (
        faults.get("minus-infinity").inject(),
        pytest.raises(FloatingPointError, match="gradient norm is nan at step 1"),
    ):
        fit(trained, [batch], TrainConfig(3))
    assert all(parameter.isfinite().all() for parameter in trained.parameters())
    fit(trained, [batch], TrainConfig(3))


@pytest.mark.parametrize(
    ("poison", "what"), [(math.nan, "loss is nan"), (-1.0, "gradient norm is nan"), (math.inf, "loss is inf")]
)
def test_what_is_not_finite_stops_with_its_step_and_leaves_the_weights_of_the_step_before(poison, what):
    batches = loader("list")[:4]
    good, bad = poisoned(), poisoned()
    fit(good, batches, TrainConfig(3, schedule="constant"))
    with pytest.raises(FloatingPointError, match=f"{what} at step 4"):
        fit(bad, [*batches[:3], with_poison(batches[3], poison)], TrainConfig(9, schedule="constant"))
    assert torch.equal(weights(good), weights(bad))


def test_a_validation_that_is_not_finite_stops_with_its_step():
    with pytest.raises(FloatingPointError, match="validation loss is nan at step 2"):
        fit(poisoned(), [batch(2)], TrainConfig(6, eval_every=2), validation=[with_poison(batch(2), math.nan)])


class Scripted(lab.LanguageModel):
    """Its validation losses are given."""

    script: list[float]

    def evaluate(self, batches):
        return Evaluation(self.script.pop(0), 10)


def scripted(*script: float) -> Scripted:
    torch.manual_seed(0)
    made = Scripted(language_model().config)
    made.script = list(script)
    return made


@pytest.mark.parametrize(
    ("script", "patience", "steps"),
    [
        ([3.0, 2.0, 2.5, 2.2, 1.0, 9.0], None, 12),
        ([3.0, 2.0, 2.5, 1.9, 2.0, 9.0], 2, 12),
        ([3.0, 2.0, 2.5, 2.0, 1.0, 0.5], 2, 8),  # as good as the best is no new best
        ([3.0, 4.0, 0.0], 1, 4),
    ],
)
def test_patience_counts_validations_without_a_new_best(script, patience, steps):
    config = TrainConfig(12, eval_every=2, patience=patience)
    history = fit(scripted(*script), [batch(2)], config, validation=[batch(2)])
    assert len(history.steps) == steps


class Hungry(lab.LanguageModel):
    """Runs out of memory in its third forward pass, or when it is evaluated."""

    calls = 0

    def forward(self, *args, **how):
        self.calls += self.training
        if self.calls == 3 or not self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")
        return super().forward(*args, **how)


@pytest.mark.parametrize(("how", "after"), [({}, 2), ({"validation": [batch(2)]}, 1)])
def test_out_of_memory_is_one_sentence_with_what_to_change(how, after):
    hungry = Hungry(language_model().config)
    with pytest.raises(MemoryError, match=rf"out of GPU memory after {after} steps. Halve batch_tokens .64.") as error:
        fit(hungry, [batch(2)], TrainConfig(5, batch_tokens=64, eval_every=1), **how)
    assert "\n" not in str(error.value) and "Tried to allocate" in str(error.value.__cause__)


# What it needs

FORBIDDING = """
import sys
from importlib.metadata import distribution, packages_distributions
from packaging.requirements import Requirement

allowed, todo = set(), ["torch", "numpy", "tqdm", "safetensors", "tokenizers", "typer"]
while todo:
    name = todo.pop().lower().replace("_", "-")
    if name in allowed:
        continue
    allowed.add(name)
    try:
        requires = [Requirement(text) for text in distribution(name).requires or []]
    except ImportError:  # one of another system
        continue
    todo += [r.name for r in requires if r.marker is None or r.marker.evaluate({"extra": ""})]
owners = {m: {d.lower().replace("_", "-") for d in ds} for m, ds in packages_distributions().items()}
for name in ("datasets", "pandas", "matplotlib", "ipywidgets", "transformers", "IPython"):
    assert not owners.get(name, set()) & allowed, name

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *args):
        top = name.partition(".")[0]
        if top != "lab" and owners.get(top) and not owners[top] & allowed:
            return None
        return self.finder.find_spec(name, *args)

sys.meta_path[:] = map(Without, sys.meta_path)
import lab.trainer, lab.checkpoint, lab.data, lab.cli
import lab
from lab import ModelConfig, TrainConfig, LanguageModel, fit
import torch
ids = torch.randint(0, 9, (2, 5))
fit(LanguageModel(ModelConfig(9, 8, 2, 1, 8, 8)), [{"input_ids": ids, "labels": ids}], TrainConfig(1))
"""


def test_it_trains_with_torch_numpy_tqdm_safetensors_tokenizers_and_typer_alone():
    """And what these require: to the process no other distribution is there."""
    done = subprocess.run([sys.executable, "-c", FORBIDDING], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


# Compiled, and on a GPU


def test_a_compiled_model_gives_the_plain_losses_and_validations():
    """Captured by torch.compile for two shapes; its backend "eager" spares the test the C++ compiler."""
    config = TrainConfig(4, warmup_steps=1, eval_every=4)
    plain, compiled = (language_model(dropout=0.0, num_layers=1) for _ in range(2))
    expected = fit(plain, hard_batches()[:2], config, validation=[batch(3)])
    with patch.object(torch, "compile", partial(torch.compile, backend="eager")):
        history = fit(compiled, hard_batches()[:2], config.replace(compile=True), validation=[batch(3)])
    assert losses(history) == losses(expected) and history.evaluations == expected.evaluations


@pytest.mark.slow
def test_the_compiled_training_of_the_smallest_model_has_the_plain_losses():
    config = TrainConfig(3, warmup_steps=1)
    plain, compiled = (losses(fit(Foreign(), [batch(4)], config.replace(compile=on))) for on in (False, True))
    assert compiled == pytest.approx(plain, rel=1e-5) and compiled != [plain[0]] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", [False, True])
def test_a_gpu_trains_as_the_cpu_does(compile, tmp_path):
    config = TrainConfig(12, learning_rate=3e-3, warmup_steps=2, eval_every=6, precision="bf16", compile=compile)
    here = fit(language_model(dropout=0.0), loader("list"), config.replace(compile=False), validation=[batch(4)])
    there = fit(language_model(dropout=0.0).cuda(), loader("list"), config, validation=[batch(4)], out=tmp_path)
    assert losses(there) == pytest.approx(losses(here), rel=0.01)
    assert there.evaluations[-1]["loss"] == pytest.approx(here.evaluations[-1]["loss"], rel=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_goes_on_there_and_on_a_cpu(tmp_path):
    """With dropout: the GPU's generator is kept, too. On the CPU the dropout is another, and the losses are near."""
    config = TrainConfig(12, learning_rate=3e-3, warmup_steps=2, eval_every=6, precision="bf16")
    whole = fit(language_model(dropout=0.3).cuda(), loader("list"), config)
    with pytest.raises(Stop):
        fit(language_model(dropout=0.3).cuda(), loader("list"), config, out=tmp_path / "run", on_step=stop_after(6))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    resumed = fit(language_model(dropout=0.3).cuda(), loader("list"), config, out=tmp_path / "run", resume=True)
    assert losses(resumed) == pytest.approx(losses(whole)[6:], rel=1e-4)
    here = fit(language_model(dropout=0.3), loader("list"), config, out=tmp_path / "copy", resume=True)
    assert losses(here) == pytest.approx(losses(whole)[6:], rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_nan_on_a_gpu_stops_within_ten_steps_and_the_checkpoints_are_good(tmp_path):
    batches = loader("list")
    batches[5] = with_poison(batches[5], math.nan)
    with pytest.raises(FloatingPointError, match="loss is nan at step 6"):
        fit(poisoned().cuda(), batches, TrainConfig(20, eval_every=4), out=tmp_path)
    found = checkpoint.find(tmp_path)
    assert found.about["progress"]["step"] == 4 and all(value.isfinite().all() for value in found.weights().values())
