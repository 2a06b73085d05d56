"""The command line: the demo shows what it says, and bad input ends in one clear line."""

import json
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from lab import checks, cli, faults

runner = CliRunner()


def run(*arguments, **env):
    return subprocess.run(
        [sys.executable, "-m", "lab", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **env},
        timeout=300,
    )


def test_faults_lists_every_fault_with_its_check_and_lesson():
    out = runner.invoke(cli.app, ["faults"]).output
    for fault in faults.all():
        assert fault.id in out and fault.caught_by in out and fault.lesson in out


@pytest.mark.parametrize("fault", faults.all(), ids=lambda fault: fault.id)
def test_show_prints_the_diff(fault):
    result = runner.invoke(cli.app, ["faults", "show", fault.id])
    assert result.exit_code == 0
    assert str(fault.diff()).strip() in result.output


def test_an_unknown_fault_is_one_line_with_the_names():
    result = run("faults", "show", "paddin-crash")
    assert result.returncode == 2
    assert "Did you mean 'padding-crash'" in result.stderr and "attends-to-pads" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_does_not_load_torch():
    code = "import sys, lab.cli; from typer.testing import CliRunner; CliRunner().invoke(lab.cli.app, ['--help']); "
    result = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=False)
    assert result.returncode == 0


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    return run("demo", "--quick", "--out", str(out)), out


def test_the_demo_shows_every_finding_broken_and_repaired(demo):
    result, _ = demo
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("✘ Broken") == result.stdout.count("✔ Repaired") == 4
    assert result.stdout.count("nothing found by") == 4
    for expected in ("IndexError", "[P2]", "[P3]", "-100 ×", "differ by 0 ", "identical: its dropout is gone", "chrF2"):
        assert expected in result.stdout.replace("by 0 after", "differ by 0 after"), expected
    assert "Warning" not in result.stderr


def test_the_demo_draws_its_figures_and_names_the_notebooks(demo):
    result, out = demo
    assert {path.name for path in out.iterdir()} >= {"review_matrix.svg", "lost_dropout.svg"}
    for name in ("00_start_here", "01_padding_crash", "02_attending_to_pads", "03_stuck_in_eval"):
        assert f"notebooks/{name}.ipynb" in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there():
    result = run("demo", "--quick", "--device", "cuda")
    assert result.returncode == 2
    assert "device 'cuda' is not there" in result.stderr and "use cpu" in result.stderr


def test_a_folder_for_figures_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run("demo", "--quick", "--out", str(tmp_path / "file" / "figures"))
    assert result.returncode == 2 and str(tmp_path / "file") in result.stderr and "Traceback" not in result.stderr


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run("demo", "--quick", "--out", str(tmp_path), LAB_CACHE=str(tmp_path / "file" / "cache"))
    assert result.returncode == 2 and "LAB_CACHE" in result.stderr and "Traceback" not in result.stderr


MODEL = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)

    def forward(self, input_ids):
        return self.head(nn.functional.dropout(self.embedding(input_ids)))

def broken():
    return Model(), {"input_ids": torch.arange(5, 21).reshape(2, 8)}

def healthy():
    return Model().head, None

def fails():
    raise KeyError("x")
"""
RANDOM = ("--only", "random-in-eval")


@pytest.fixture(scope="module")
def somebodys(tmp_path_factory):
    path = tmp_path_factory.mktemp("somebody") / "model.py"
    path.write_text(MODEL)
    return path


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("{}:broken", *RANDOM), 1),
        (("{}:broken", *RANDOM, "--fail-on", "P0"), 0),
        (("{}:broken", *RANDOM, "--fail-on", "none"), 0),
        (("{}:healthy", *RANDOM), 0),
        (("{}:fails",), 2),
        (("{}:nothing",), 2),
        (("{}",), 2),
        ((), 2),
        (("{}:broken", "--only", "no-such-check"), 2),
        (("{}:broken", "--no-such-option"), 2),
    ],
)
def test_the_status_of_diagnose(somebodys, monkeypatch, capsys, arguments, status):
    monkeypatch.setattr(sys, "argv", ["lab", "diagnose", *(argument.format(somebodys) for argument in arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    assert (stopped.value.code or 0) == status, out + err
    assert ("[P1]" in out) == any("broken" in a for a in arguments if status != 2)


def test_diagnose_prints_json_and_nothing_else(somebodys):
    result = run("diagnose", f"{somebodys}:broken", *RANDOM, "--format", "json")
    assert json.loads(result.stdout)["worst"] == "P1"
    assert result.stderr.startswith("lab diagnose imports ")


def test_what_the_users_function_raises_can_be_seen_whole(somebodys):
    result = run("diagnose", f"{somebodys}:fails", LAB_TRACEBACK="1")
    assert "Traceback" in result.stderr and 'raise KeyError("x")' in result.stderr


def test_diagnose_lists_and_explains():
    listed = runner.invoke(cli.app, ["diagnose", "--list"])
    assert listed.exit_code == 0 and all(check.id in listed.output for check in checks.all())
    told = runner.invoke(cli.app, ["diagnose", "--explain", "padding-crash"])
    assert told.exit_code == 0 and "clamp-to-zero" in told.output
    assert run("diagnose", "--explain", "padding-crsh").returncode == 2
