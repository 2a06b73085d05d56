"""Two processes train as one does: by DDP and FSDP2, with torchrun, over gloo."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from train_tiny import batch, case

from lab import checkpoint
from lab.labels import IGNORE_INDEX
from lab.parallel import World, find_device, joined, moved, peak_memory

TESTS = Path(__file__).parent
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def torchrun(folder: Path, cases: dict, timeout: float = 300) -> subprocess.CompletedProcess:
    """train_tiny's cases on two ranks; what it wrote is found by `result`."""
    (folder / "cases").write_text(json.dumps(cases), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(port), str(TESTS / "train_tiny.py"), str(folder / "cases")]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"}
    if sys.platform == "darwin":
        environment["GLOO_SOCKET_IFNAME"] = "lo0"
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, said)


def result(folder: Path, name: str) -> list[dict]:
    """What each rank says of a case."""
    return [json.loads(Path(f"{folder}/cases.{name}.{rank}").read_text()) for rank in (0, 1)]


SAME = {  # as one process, to rounding
    "plain": {},
    "accumulated": {"accumulate": 2},
    "accumulated over the end of an epoch": {"accumulate": 3, "steps": 3},
    "translator": {"model": "translator"},
    "chunked": {"shape": {"loss_chunk": 3}},
    "untied": {"shape": {"tie_head": False, "positions": "sinusoidal"}},
    "foreign": {"model": "foreign"},
    "bf16": {"precision": "bf16"},
}
KINDS = ("ddp", "fsdp")


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """The folder of all that two ranks did: one launch, for its start takes longer than the rest."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {}
    for kind in KINDS:
        for name, spec in SAME.items():
            cases[f"{kind} {name}"] = {"kind": kind, **spec}
        # One process made the first half; two make it for one.
        case(stop=3, out=str(folder / f"one-{kind}"))
        cases[f"{kind} from one"] = {"kind": kind, "out": str(folder / f"one-{kind}"), "resume": True}
        cases[f"{kind} for one"] = {"kind": kind, "out": str(folder / f"two-{kind}"), "stop": 3}
        cases[f"{kind} loss"] = {"kind": kind, "model": "poisoned", "poison": math.nan}
        cases[f"{kind} gradient"] = {"kind": kind, "model": "poisoned", "poison": -1.0}
    dropout = {"dropout": 0.4, "steps": 4, "eval_every": 2}
    cases["dropout"] = dropout
    cases["dropout stopped"] = dropout | {"out": str(folder / "dropout"), "stop": 3}
    cases["dropout resumed"] = dropout | {"out": str(folder / "dropout"), "resume": True}
    cases["an error on rank 1"] = {"fail": 1}  # the last, for it ends the job
    done = torchrun(folder, cases)
    (folder / "status").write_text(f"{done.returncode}\n{done.stdout}", encoding="utf-8")
    missing = [name for name in cases if not Path(f"{folder}/cases.{name}.0").exists()]
    assert missing == ["an error on rank 1"], done.stdout[-5000:]
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SAME)
def test_two_ranks_have_the_losses_of_one(ranks, kind, name):
    """Batches of five rows, of one, of four with other padding, and one whose targets rank 0 has alone."""
    alone = case(**SAME[name])
    near = {"rel": 2e-3 if name == "bf16" else 1e-6}
    for rank in result(ranks, f"{kind} {name}"):
        assert rank["losses"] == pytest.approx(alone["losses"], **near)
        assert rank["norms"] == pytest.approx(alone["norms"], **near | {"abs": 1e-6})
        for (loss, tokens), (expected, count) in zip(rank["validations"], alone["validations"], strict=True):
            assert loss == pytest.approx(expected, **near) and tokens == count
    assert alone["losses"][0] > alone["losses"][4 if "accumulate" not in SAME[name] else -1]  # it does learn


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_two_ranks_goes_on_in_one(ranks, kind):
    whole = case()
    found = checkpoint.find(ranks / f"two-{kind}")
    assert found.about["progress"]["step"] == 3 and type(found.build()).__name__ == "LanguageModel"
    resumed = case(out=str(ranks / f"two-{kind}"), resume=True)
    assert resumed["losses"] == pytest.approx(whole["losses"][3:], rel=1e-6)
    assert resumed["validations"][-1] == pytest.approx(whole["validations"][-1], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_one_goes_on_in_two_ranks(ranks, kind):
    whole = case()
    for rank in result(ranks, f"{kind} from one"):
        assert rank["losses"] == pytest.approx(whole["losses"][3:], rel=1e-6)
    assert checkpoint.find(ranks / f"one-{kind}").about["progress"]["step"] == 6


def test_each_rank_has_its_own_dropout_also_after_a_resume(ranks):
    zeros = [rank["zeros"][0] for rank in result(ranks, "dropout")]
    n = min(map(len, zeros))
    assert zeros[0][:n] != zeros[1][:n] and 0.3 < sum(zeros[0]) / len(zeros[0]) < 0.5
    whole, resumed = result(ranks, "dropout")[0], result(ranks, "dropout resumed")[0]
    assert resumed["losses"] == whole["losses"][2:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("what", "message"), [("loss", "the loss is nan"), ("gradient", "the gradient norm is nan")])
def test_what_is_not_finite_on_one_rank_ends_both(ranks, kind, what, message):
    """In the third batch, in a row that rank 1 has."""
    for rank in result(ranks, f"{kind} {what}"):
        assert rank["error"].startswith(f"FloatingPointError: {message} at step 3") and len(rank["losses"]) == 2


def test_an_error_on_one_rank_ends_the_job(ranks):
    """While the other one waits for its gradients: it would, half an hour, and torchrun above is given five minutes."""
    status, _, said = (ranks / "status").read_text().partition("\n")
    assert status != "0" and "RuntimeError: rank 1 fails on purpose" in said
    assert not list(ranks.glob("cases.an error*"))


# Without other processes


def test_the_rows_of_all_ranks_are_the_batch():
    for rows, size in ((5, 2), (4, 3), (1, 1)):
        whole = batch(rows)
        shares = [World(CPU, rank, size).share(whole) for rank in range(size)]
        for name, value in whole.items():
            mine = torch.cat([share[name] for share, _ in shares])
            assert sorted(mine.tolist()) == sorted(value.tolist())
        assert [n for _, n in shares] == [int((share["labels"] != IGNORE_INDEX).sum()) for share, _ in shares]


def test_a_rank_without_a_target_computes_one_that_does_not_count():
    """An empty batch, or one without a target, has a loss of NaN for many models."""
    whole = batch(3)
    whole["labels"][[0, 2]] = IGNORE_INDEX
    share, count = World(CPU, 0, 2).share(whole)
    assert count == 0 and torch.equal(share["labels"], whole["labels"][1:2])
    share, count = World(CPU, 3, 4).share(whole)
    assert count == 0 and (share["labels"] != IGNORE_INDEX).any() and len(share["input_ids"]) == 1


def test_ddp_sends_gradients_once_a_step():
    """With its last micro-batch: before, all that would travel is thrown away."""

    class Wrapped:
        def no_sync(self):
            return nullcontext("kept here")

    with (
        World(CPU, 0, 2).synchronised(Wrapped(), last=False) as first,
        World(CPU, 0, 2).synchronised(Wrapped(), last=True) as last,
    ):
        assert (first, last) == ("kept here", None)


def test_alone_the_world_is_one():
    with joined("cpu") as world:
        assert (world.rank, world.size, world.chief) == (0, 1, True)
        assert world.gather("x") == ["x"] and float(world.sum(torch.tensor(2.0))) == 2
        module = torch.nn.Linear(1, 1)
        assert world.wrap(module) is module
    assert not torch.distributed.is_initialized()


def test_an_unknown_kind_is_named_with_those_there_are():
    with (
        pytest.raises(ValueError, match="unknown kind of parallelism 'fdsp'. Did you mean 'fsdp'"),
        joined("cpu", "fdsp"),
    ):
        pass


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="device 'cuda:99' is not there.*use cpu"):
        find_device("cuda:99")
    with pytest.raises(ValueError, match="device 'gpu' is not there.*use cpu"):
        find_device("gpu")
    with pytest.raises(ValueError, match="device 'cuda:99' is not there"), joined("cuda:99"):
        pass


def test_memory_and_moving_on_a_cpu():
    assert peak_memory(CPU) > 10_000_000
    there = moved(batch(2), CPU)
    assert all(torch.equal(value, there[name]) for name, value in batch(2).items())
