"""A checkpoint is whole or absent, rebuilds its model alone, refuses what is not its own, and executes nothing."""

import errno
import json
import pickle
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_trainer import scripted
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from train_tiny import (
    FLOPS,
    Foreign,
    Stop,
    batch,
    interrupted,
    language_model,
    loader,
    losses,
    poisoned,
    stop_after,
    translator,
    with_poison,
)

from lab import checkpoint
from lab.config import TrainConfig
from lab.parallel import get_random, set_random
from lab.trainer import Trainer, fit

CONFIG = TrainConfig(4, warmup_steps=1, eval_every=2)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_flops(monkeypatch):
    monkeypatch.setattr(Trainer, "count_flops", lambda self, batch: FLOPS)


def tokenizer(size: int = 40) -> Tokenizer:
    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size - 1)} | {"<eos>": size - 1}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<eos>"])
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps, with a tokenizer."""
    out = tmp_path_factory.mktemp("trained") / "run"
    model = language_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "count_flops", lambda self, batch: FLOPS)
        fit(model, loader(), CONFIG, out=out, data={"hash": "abc"}, tokenizer=tokenizer().to_str())
    return out, model


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, to damage."""
    return shutil.copytree(trained[0], tmp_path / "run")


# What a checkpoint holds


@pytest.mark.parametrize(
    "make",
    [
        lambda: language_model(),
        lambda: language_model(tie_head=False, norm="post", activation="relu"),
        lambda: language_model(positions="sinusoidal", dropout=0.0, pad_id=None),
        lambda: translator(positions="sinusoidal"),
        lambda: translator(tie_head=False),
    ],
)
def test_a_model_is_rebuilt_from_its_checkpoint_alone(make, tmp_path):
    model = make()
    weights = checkpoint.get_weights(model)
    about = checkpoint.describe(model, CONFIG, {}) | {"progress": {"step": 7}}
    checkpoint.save(tmp_path, about, weights, {})
    built = checkpoint.find(tmp_path).build()
    assert type(built) is type(model) and built.config == model.config and not built.training
    ids = {"input_ids": batch(3)["input_ids"]}
    if "Transformer" in type(model).__name__:
        ids["decoder_input_ids"] = ids["input_ids"].flip(1)
    assert torch.equal(built(**ids).logits, model.eval()(**ids).logits)
    # A tied head is stored once and is one tensor again; sinusoids are made, not stored.
    assert ("head.weight" in weights) == (not model.config.tie_head)
    assert (built.head.weight is built.embedder.token.weight) == model.config.tie_head
    assert not any("table" in name for name in weights)


def test_checkpoint_json_says_what_was_trained_on_what_and_with_what(trained):
    about = checkpoint.find(trained[0]).about
    assert about["kind"] == "LanguageModel" and about["model"]["d_model"] == 16 and about["train"]["steps"] == 4
    assert about["data"] == {"hash": "abc"} and about["versions"]["torch"] == torch.__version__
    assert about["progress"]["step"] == 4 and about["progress"]["tokens"] > 20
    assert checkpoint.find(trained[0]).train == CONFIG
    assert set(about["files"]) == {"model.safetensors", "state.safetensors", "tokenizer.json"}


def test_the_tokenizer_is_kept_and_encodes_the_text_of_special_tokens_as_text(trained):
    kept = checkpoint.find(trained[0]).tokenizer()
    assert kept.to_str() == tokenizer().to_str()
    assert kept.encode_special_tokens and kept.encode("w5 <eos>").ids == [5, 39]
    plain = tokenizer()
    assert not plain.encode_special_tokens  # the default, under which a text can smuggle in a special token


def test_a_checkpoint_without_a_tokenizer_says_so(tmp_path):
    fit(language_model(), loader(), CONFIG.replace(steps=1), out=tmp_path)
    with pytest.raises(ValueError, match=r"step-00000001 holds no tokenizer"):
        checkpoint.find(tmp_path).tokenizer()


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(tmp_path):
    fit(language_model(), loader(), CONFIG.replace(steps=1), out=tmp_path, tokenizer=tokenizer(41).to_str())
    with pytest.raises(ValueError, match=r"tokenizer.json has 41 ids and the model 40 rows"):
        checkpoint.find(tmp_path).tokenizer()


def test_a_model_that_nobody_here_wrote_is_not_built_but_its_weights_load(tmp_path):
    model, fresh = Foreign(), Foreign()
    fit(model, loader("list"), CONFIG, out=tmp_path)
    found = checkpoint.find(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds a Foreign; .*LanguageModel or Transformer.*load_weights\(model, weights\)"
    ):
        found.build()
    assert not torch.equal(fresh.table.weight, model.table.weight)
    checkpoint.load_weights(fresh, found.weights())
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))


def test_tensors_that_share_memory_are_kept(tmp_path):
    """Views of one tensor, and a buffer under two names: the file format refuses both."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            table = torch.arange(6.0)
            self.a, self.b = nn.Parameter(table[:3]), nn.Parameter(table[3:])
            self.register_buffer("mean", torch.ones(2))
            self.register_buffer("same", self.mean)

    model, fresh = Shared(), Shared()
    with torch.no_grad():
        model.a.mul_(10), model.mean.mul_(5)
    about = checkpoint.describe(model, CONFIG, {}) | {"progress": {"step": 1}}
    checkpoint.save(tmp_path, about, checkpoint.get_weights(model), {})
    checkpoint.load_weights(fresh, checkpoint.find(tmp_path).weights())
    assert fresh.a.tolist() == [0, 10, 20] and fresh.b.tolist() == [3, 4, 5] and fresh.same.tolist() == [5, 5]


def test_all_random_states_come_back():
    random.seed(3), np.random.seed(3), torch.manual_seed(3), np.random.normal(), random.gauss(0, 1)
    states = get_random(CPU)

    def draw():
        return random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(1).item()

    first = draw()
    assert draw() != first
    set_random(states, CPU)
    assert draw() == first


# Which checkpoints are kept


@pytest.mark.parametrize(
    ("script", "kept"),
    [
        ([3.0, 2.0, 1.0], {"last": 6, "best": 6}),
        ([1.0, 2.0, 3.0], {"last": 6, "best": 2}),
        ([3.0, 1.0, 2.0], {"last": 6, "best": 4}),
    ],
)
def test_the_last_and_the_best_are_kept_and_no_other(script, kept, tmp_path):
    fit(scripted(*script), [batch(2)], TrainConfig(6, eval_every=2), validation=[batch(2)], out=tmp_path)
    for which, step in kept.items():
        assert checkpoint.find(tmp_path, which).about["progress"]["step"] == step
    assert {path.name for path in tmp_path.glob("*step*")} == {f"step-{step:08d}" for step in kept.values()}


def test_without_validation_the_last_is_the_best(trained):
    assert checkpoint.find(trained[0], "best").folder == checkpoint.find(trained[0], "last").folder


@pytest.mark.parametrize("stop", [3, 4, 5, 6])
def test_best_and_patience_go_on_after_a_resume(stop, tmp_path):
    """3, 2, 2.5, 2.2 with a patience of two: stops after eight steps with the second validation as the best."""
    config = TrainConfig(20, eval_every=2, patience=2)
    how = {"validation": [batch(2)], "out": tmp_path}
    script = [3.0, 2.0, 2.5, 2.2, 0.1, 0.1]
    with pytest.raises(Stop):
        fit(scripted(*script), [batch(2)], config, on_step=stop_after(stop), **how)
    history = fit(scripted(*script[stop // 2 :]), [batch(2)], config, resume=True, **how)
    assert history.steps[-1]["step"] == 8
    assert checkpoint.find(tmp_path, "best").about["progress"]["step"] == 4
    assert fit(scripted(), [batch(2)], config, resume=True, **how).steps == []  # it stays at its end


def test_a_users_own_folders_are_left_alone(tmp_path):
    for name in ("step-by-step", "step-1", ".step-notes.part", "step-00000009.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000001").mkdir()  # what a kill between rename and checkpoints.json leaves
    (tmp_path / ".step-00000002.part").mkdir()
    fit(language_model(), loader(), CONFIG, out=tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {"checkpoints.json", "log.jsonl"}
    assert left == {"step-by-step", "step-1", ".step-notes.part", "step-00000009.bak", "step-00000004"}


# Failures while it is written


def test_a_disk_that_is_full_at_any_call_leaves_what_was_there(tmp_path):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    def save(step):
        about = checkpoint.describe(model, CONFIG, {}) | {"progress": {"step": step}}
        checkpoint.save(tmp_path, about, checkpoint.get_weights(model), get_random(CPU), tokenizer="{}")

    model = language_model()
    save(1)
    with interrupted(None, how=full) as count:
        save(2)
    assert (calls := count()) > 12
    for step, (point, half) in enumerate(((p, h) for p in range(1, calls + 1) for h in (False, True)), start=3):
        before, failed = checkpoint.find(tmp_path).folder.name, None
        with interrupted(point, half, how=full):
            try:
                save(step)
            except OSError as error:
                failed = str(error)
        if failed is None:
            assert half  # and the call was no write: nothing was half done
        else:
            for part in (
                f"checkpoint of step {step} ",
                f"written in {tmp_path} (",
                "No space",
                "make room",
                "--resume",
            ):
                assert part in failed
            # The last call waits for the disk to have a checkpoints.json that is there already.
            assert checkpoint.find(tmp_path).folder.name == before or point == calls
        found = checkpoint.find(tmp_path)
        assert found.weights().keys() == checkpoint.get_weights(model).keys() and found.state()
        assert not list(tmp_path.glob(".step-*.part"))


@pytest.mark.skipif(not hasattr(errno, "ENOTDIR"), reason="this system has no such error")
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        fit(language_model(), loader(), CONFIG, out=tmp_path / "file" / "run")


# What is read


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def pickled(path):
    torch.save({"model": torch.ones(3)}, path)


def another_models(path):
    save_file({"transformer.wte.weight": torch.ones(50, 16), "transformer.wpe.weight": torch.ones(8, 16)}, path)


def read_all(out):
    found = checkpoint.find(out)
    return found.build(), found.state(), found.tokenizer()


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors", "tokenizer.json"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, r"has \d+ bytes and was written with \d+"),
        (empty, "has 0 bytes"),
        (flip, "is damaged: its sha256 is not"),
        (lambda path: path.unlink(), "is missing"),
        (pickled, r"has \d+ bytes and was written with \d+"),
        (another_models, r"has \d+ bytes and was written with \d+"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(run, file, damage, reason):
    read_all(run)
    path = checkpoint.find(run).folder / file
    damage(path)
    with pytest.raises(ValueError, match=f"{path} {reason}.*take another"):
        read_all(run)


def test_a_file_that_is_no_safetensors_is_named_though_it_is_what_was_written(run):
    found = checkpoint.find(run)
    pickled(found.folder / "model.safetensors")
    found.about["files"]["model.safetensors"] = facts(found.folder / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is no safetensors file"):
        found.weights()


def test_a_file_of_another_model_is_named_though_it_is_what_was_written(run):
    found = checkpoint.find(run)
    another_models(found.folder / "model.safetensors")
    edited(run, files=lambda files: files | {"model.safetensors": facts(found.folder / "model.safetensors")})
    message = r"model.safetensors is of another model: it lacks \S+, \S+, \S+ \(28 in all\) and has transformer.wpe"
    with pytest.raises(ValueError, match=message):
        checkpoint.find(run).build()


def facts(path):
    return {"bytes": path.stat().st_size, "sha256": checkpoint.digest(path)}


def edited(run, **changes):
    """checkpoint.json with other fields; a function is given the old one."""
    path = checkpoint.find(run).folder / "checkpoint.json"
    about = json.loads(path.read_text())
    for name, change in changes.items():
        about[name] = change(about[name]) if callable(change) else change
    path.write_text(json.dumps(about))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "checkpoint.json has format 99; this version reads 1"),
        ({"format": None}, "has format None"),
        ({"files": None}, "checkpoint.json lacks a proper files"),
        ({"model": "big", "progress": 3}, "lacks a proper model, progress"),
        ({"files": {}}, "model.safetensors is missing"),
        ({"files": {"model.safetensors": 7}}, "model.safetensors is missing"),
        ({"files": {"model.safetensors": {}}}, "was written with None"),
        ({"kind": "Mamba"}, "holds a Mamba"),
        ({"model": lambda m: m | {"rope": True}}, "checkpoint.json: .* cannot read its 'model' .*rope"),
        ({"model": lambda m: m | {"d_model": 15}}, "checkpoint.json: .* 'model' .*d_model 15 is not a multiple"),
        (
            {"model": lambda m: m | {"vocab_size": 41}},
            r"model.safetensors is of another model: embedder.token.weight is \(40, 16\) there and \(41, 16\)",
        ),
        (
            {"model": lambda m: m | {"num_layers": 3}},
            r"of another model: it lacks blocks.2.\S+ .*\(12 in all\) and has nothing",
        ),
        ({"model": lambda m: m | {"num_layers": 1}}, "it lacks nothing .* and has blocks.1"),
    ],
)
def test_a_checkpoint_of_another_version_or_model_is_refused_with_the_reason(run, changes, message):
    edited(run, **changes)
    with pytest.raises(ValueError, match=message):
        checkpoint.find(run).build()


def test_a_training_config_of_another_version_is_refused_with_the_reason(run):
    path = edited(run, train=lambda train: train | {"momentum": 0.9})
    with pytest.raises(ValueError, match=f"{path}: .*'train'.*momentum"):
        _ = checkpoint.find(run).train


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_checkpoints_json_that_is_none_is_named(run, content):
    (run / "checkpoints.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"{run / 'checkpoints.json'} .*is it a checkpoint of this lab"):
        checkpoint.find(run)


@pytest.mark.parametrize(
    "content", ['{"last": 3}', '{"last": "../run/step-00000004"}', '{"last": ".."}', '{"best": "x"}']
)
def test_a_checkpoints_json_that_names_no_step_of_its_own_is_named(run, content):
    (run / "checkpoints.json").write_text(content)
    with pytest.raises(ValueError, match=f"{run / 'checkpoints.json'} names no 'last' checkpoint"):
        checkpoint.find(run)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[]", b"\x80\x04"])
def test_a_checkpoint_json_that_is_none_is_named(run, content):
    path = checkpoint.find(run).folder / "checkpoint.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} .*is it a checkpoint of this lab"):
        checkpoint.find(run)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"there is no checkpoint in {tmp_path / 'nowhere'}"):
        checkpoint.find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no checkpoint"):
        fit(language_model(), loader(), CONFIG, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume needs the folder"):
        fit(language_model(), loader(), CONFIG, resume=True)


class Malice:
    """Pickled, a program: whoever loads it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize(
    "file", ["model.safetensors", "state.safetensors", "tokenizer.json", "checkpoint.json", "checkpoints.json"]
)
def test_nothing_that_is_read_is_executed(run, tmp_path, file, write):
    """Also where checkpoint.json vouches for the file."""
    step, proof = checkpoint.find(run).folder, tmp_path / "executed"
    path = run / file if file == "checkpoints.json" else step / file
    write(Malice(proof), path)
    if file not in ("checkpoint.json", "checkpoints.json"):
        edited(run, files=lambda files: files | {file: facts(path)})
    for read in (
        lambda: checkpoint.find(run).build(),
        lambda: checkpoint.find(run).state(),
        lambda: checkpoint.find(run).tokenizer(),
        lambda: fit(language_model(), loader(), CONFIG, out=run, resume=True, data={"hash": "abc"}),
    ):
        try:
            read()
        except ValueError as error:
            assert file in str(error)
    assert not proof.exists()
    with open(path, "rb") as content:  # the control: it is dangerous
        torch.load(content, weights_only=False) if write is torch.save else pickle.load(content)
    assert proof.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("norm.weight"), "lacks norm.weight .1 in all. and has nothing"),
        (lambda w: w.update(more=torch.ones(1)), "lacks nothing .* and has more"),
        (lambda w: w.update({"norm.weight": torch.ones(15)}), r"norm.weight is \(15,\) there and \(16,\) in the model"),
        (lambda w: w.update({"head.weight": torch.ones(40, 16)}), "has head.weight"),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_as_it_is(change, message):
    model = language_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: value + 1 for name, value in checkpoint.get_weights(model).items()}
    change(weights)
    with pytest.raises(ValueError, match=f"somewhere is of another model: .*{message}"):
        checkpoint.load_weights(model, weights, "somewhere")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Resume


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"config": CONFIG.replace(learning_rate=0.5)}, "learning_rate 0.001, now 0.5"),
        ({"config": CONFIG.replace(steps=9, seed=1)}, "steps 4, now 9, seed 0, now 1"),
        ({"data": {"hash": "abd"}}, "hash 'abc', now 'abd'"),
        ({"data": None}, "hash 'abc', now None"),
        # The same names and shapes, and another model:
        ({"model": {"num_heads": 4}}, "num_heads 2, now 4"),
        ({"model": {"activation": "relu", "dropout": 0.2}}, "dropout 0.1, now 0.2, activation 'gelu', now 'relu'"),
        ({"model": {"vocab_size": 41}}, "vocab_size 40, now 41"),
    ],
)
def test_a_run_goes_on_only_as_it_began(run, how, message):
    model, config = language_model(**how.pop("model", {})), how.pop("config", CONFIG)
    with pytest.raises(ValueError, match=f"step-00000004 was trained otherwise: {message}"):
        fit(model, loader(), config, out=run, resume=True, **{"data": {"hash": "abc"}} | how)
    assert checkpoint.find(run).about["progress"]["step"] == 4


def test_a_run_is_not_written_over(run):
    log = (run / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"{run} holds a run already; resume it, or give another folder"):
        fit(language_model(), loader(), CONFIG, out=run)
    assert (run / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize("poison", [float("nan"), -1.0])
def test_after_a_nan_the_last_good_checkpoint_loads(poison, tmp_path):
    batches = [batch(3, seed) for seed in range(5)]
    model, expected = poisoned(), poisoned()
    fit(expected, batches, TrainConfig(4, schedule="constant"))
    batches[4] = with_poison(batches[4], poison)
    with pytest.raises(FloatingPointError, match="at step 5"):
        fit(model, batches, TrainConfig(8, eval_every=2, schedule="constant"), out=tmp_path)
    found = checkpoint.find(tmp_path)
    assert found.about["progress"]["step"] == 4
    assert all(torch.equal(value, dict(expected.named_parameters())[name]) for name, value in found.weights().items())


@pytest.mark.parametrize(
    ("make", "config", "batches"),
    [
        (lambda: frozen(language_model()), {}, loader("list")),
        (lambda: unused(Foreign()), {}, loader("list")),
        (language_model, {"accumulate": 3}, loader("list")),
        (poisoned, {"precision": "fp16"}, [batch(3), with_poison(batch(3), 1e36), batch(2)]),
        (lambda: language_model().double(), {"precision": "bf16"}, loader("list")),
        (translator, {}, [dict(batch(3), decoder_input_ids=batch(3)["input_ids"])]),
    ],
)
def test_a_stopped_run_goes_on_to_the_last_bit(make, config, batches, tmp_path):
    config = TrainConfig(**{"steps": 6, "warmup_steps": 1, "eval_every": 2} | config)
    whole, model = make(), make()
    history = fit(whole, batches, config)
    with pytest.raises(Stop):
        fit(make(), batches, config, out=tmp_path, on_step=stop_after(3))
    torch.manual_seed(999)  # the state that a new process would be in
    resumed = fit(model, batches, config, out=tmp_path, resume=True)
    assert losses(resumed) == losses(history)[2:]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def frozen(model):
    model.blocks[0].requires_grad_(False)
    return model


def unused(model):
    """With a parameter that never has a gradient, and so no optimizer state."""
    model.left_over = nn.Parameter(torch.ones(3))
    return model


def test_what_was_trained_cannot_be_frozen_on_the_way(run):
    with pytest.raises(ValueError, match=r"trained blocks.0\S+, .*frozen here"):
        fit(frozen(language_model()), loader(), CONFIG, out=run, resume=True, data={"hash": "abc"})


def test_data_that_json_changes_is_the_same_data(tmp_path):
    """A tuple comes back as a list."""
    how = {"out": tmp_path, "data": {"splits": ("train", "test"), "place": tmp_path}}
    with pytest.raises(Stop):
        fit(language_model(), loader(), CONFIG, on_step=stop_after(2), **how)
    assert len(fit(language_model(), loader(), CONFIG, resume=True, **how).steps) == 2
