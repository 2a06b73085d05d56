"""A training that is really killed, at any moment, goes on to the last bit; what is on the disk is always whole."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import train_tiny
from train_tiny import language_model

from lab import checkpoint, runlog

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


@pytest.fixture(scope="session")
def started():
    """started(out, ...) -> a process that trains in `out`: a fork of one that has imported all and done nothing yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_tiny", "torch._dynamo"])  # the first optimizer imports the latter
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
        patch.setenv("OMP_NUM_THREADS", "1")
        context.Process(target=int).start()  # the server keeps this environment
    processes = []

    def start(out: Path, **how):
        process = context.Process(target=train_tiny.train, args=(str(out),), kwargs=how)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


def finished(process) -> int:
    process.join(120)
    return process.exitcode


def losses(out: Path) -> list[tuple]:
    """All that a log says of the losses; its speeds are never the same."""
    return [(r["event"], r["step"], r.get("epoch"), r["tokens"], r["loss"]) for r in runlog.read(out)]


@pytest.fixture(scope="session")
def whole(started, tmp_path_factory):
    """whole(...) -> the folder of a run that nobody interrupted."""
    runs = {}

    def run(**how) -> Path:
        key = str(sorted(how.items()))
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("whole") / "run"
            assert finished(started(runs[key], **how)) == 0
        return runs[key]

    return run


def assert_whole(out: Path) -> None:
    """All that checkpoints.json names can be read, verified and built; it is not there before it names one."""
    if resumable(out):
        for which in ("last", "best"):
            found = checkpoint.find(out, which)
            found.build()
            assert found.state()


def assert_same(out: Path, other: Path) -> None:
    assert losses(out) == losses(other)
    for which in ("last", "best"):
        here, there = checkpoint.find(out, which), checkpoint.find(other, which)
        assert here.about["progress"] == there.about["progress"]
        ours, others = {**here.weights(), **here.state()}, {**there.weights(), **there.state()}
        assert ours.keys() == others.keys()
        # Python's and NumPy's generators begin differently in each process; the training does not ask them.
        names = [name for name in ours if not name.endswith(("/python", "/numpy"))]
        assert [name for name in names if not torch.equal(ours[name], others[name])] == []
    steps = {checkpoint.find(out, which).folder.name for which in ("last", "best")}
    assert {path.name for path in out.iterdir()} == steps | {checkpoint.INDEX, runlog.LOG}


def resumable(out: Path) -> bool:
    return (out / checkpoint.INDEX).exists()


def wait_for(process, condition) -> None:
    end = time.monotonic() + 60
    while process.is_alive() and not condition() and time.monotonic() < end:
        time.sleep(0.0005)


def steps_in(out: Path) -> int:
    path = out / runlog.LOG
    return sum('"step"' in line[:20] for line in path.read_text().splitlines()) if path.exists() else 0


def test_two_uninterrupted_runs_are_the_same(whole, started, tmp_path):
    """Else the tests below prove nothing. Dropout is on: the losses of a run without it are others."""
    assert finished(started(tmp_path / "run")) == 0
    assert_same(tmp_path / "run", whole())
    assert len({loss for *_, loss in losses(whole())}) == 16
    without = train_tiny.fit(
        language_model(dropout=0.0), train_tiny.loader(), checkpoint.find(whole()).train.replace(steps=1)
    )
    assert without.steps[0]["loss"] != losses(whole())[0][-1]


@pytest.mark.parametrize("data", ["sampler", "shuffle", "list"])
@pytest.mark.parametrize("moments", [(4, 7), (1, 11), (9, 9)])
def test_killed_at_some_step_and_killed_again(data, moments, whole, started, tmp_path):
    """In the first epoch and in the second, before the first checkpoint, and twice before the same one."""
    out = tmp_path / "run"
    for moment in moments:
        process = started(out, data=data, resume=resumable(out), slow=0.01)
        wait_for(process, lambda: steps_in(out) >= moment)  # noqa: B023
        process.kill()
        assert finished(process) == -signal.SIGKILL and steps_in(out) < 12
        assert_whole(out)
    assert finished(started(out, data=data, resume=resumable(out))) == 0
    assert_same(out, whole(data=data))


@pytest.mark.parametrize("wait", [0.0, 0.02, 0.05, 0.08])
def test_killed_during_a_save(wait, whole, started, tmp_path):
    """Found by its folder, and killed so many seconds after."""
    out = tmp_path / "run"
    process = started(out, slow_save=0.02)
    wait_for(process, lambda: resumable(out) and any(out.glob(".step-*.part")))
    time.sleep(wait)
    process.kill()
    assert finished(process) == -signal.SIGKILL
    assert_whole(out)
    assert finished(started(out, resume=True)) == 0
    assert_same(out, whole())


def test_killed_before_every_call_to_the_file_system(whole, started, tmp_path):
    """In a second save, and at the end of a first one, and in the middle of every write: between the rename of a step's
    folder and the replacement of checkpoints.json, too."""
    short = {"steps": 4, "eval_every": 2}
    first, second = map(int, Path(f"{whole(**short)}.calls").read_text().split())
    assert first > 10 and second - first > 10
    left = set()
    points = [(point, half) for point in range(first - 4, second + 1) for half in (False, True)]
    for several in (points[i : i + 6] for i in range(0, len(points), 6)):  # they wait for the disk
        outs = [tmp_path / f"{point}-{half}" for point, half in several]
        killed = [started(out, point=p, half=h, **short) for out, (p, h) in zip(outs, several, strict=True)]
        # Where a call is no write, nothing is half done, and nobody is killed.
        assert {finished(process) for process in killed} <= {-signal.SIGKILL, 0}
        assert all(finished(process) for process, (_, half) in zip(killed, several, strict=True) if not half)
        again = []
        for out, process in zip(outs, killed, strict=True):
            assert_whole(out)
            left |= {path.name for path in out.iterdir()}
            again += [started(out, resume=resumable(out), **short)] if process.exitcode else []
        assert not any(map(finished, again))
        for out in outs:
            assert_same(out, whole(**short))
    assert {".step-00000004.part", f".{checkpoint.INDEX}.part"} < left


def test_a_full_disk_ends_the_run_which_goes_on_when_there_is_room(whole, started, tmp_path):
    """The operating system refuses more bytes: in the first save, and in a later one."""
    limit = max(path.stat().st_size for path in checkpoint.find(whole()).folder.iterdir()) - 2000
    for name, slow in (("first", 0.0), ("later", 0.01)):
        out = tmp_path / name
        if slow:
            process = started(out, slow=slow)
            wait_for(process, lambda: resumable(out))  # noqa: B023
            process.kill()
            process.join()
        before = checkpoint.find(out).folder if slow else None
        assert finished(started(out, resume=resumable(out), limit=limit)) == 1
        said = Path(f"{out}.error").read_text()
        assert f"cannot be written in {out} (" in said and "make room" in said and "--resume" in said
        kept = {before.name, checkpoint.INDEX, runlog.LOG} if before else {runlog.LOG}
        assert {path.name for path in out.iterdir()} == kept
        assert_whole(out)
        assert finished(started(out, resume=resumable(out))) == 0
        assert_same(out, whole())
