"""pyproject.toml, constraints.txt and environment.yml say the same."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def dependencies() -> list[str]:
    listed = PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])
    return [canonicalize_name(Requirement(line).name) for line in listed]


def test_constraints_are_exact_and_unique() -> None:
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []
    names = [canonicalize_name(line.split("==")[0]) for line in LINES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", dependencies())
def test_dependency_is_pinned(name: str) -> None:
    assert name in {canonicalize_name(line.split("==")[0]) for line in LINES}


@pytest.mark.parametrize("name", ["torch", "jupyterlab", "matplotlib", "pandas", "datasets", "ipywidgets"])
def test_fixed_packages_are_dependencies(name: str) -> None:
    assert name in {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}


def test_environment_python_is_pinned_and_allowed() -> None:
    pins = [line for line in ENVIRONMENT["dependencies"] if isinstance(line, str) and line.startswith("python")]
    assert len(pins) == 1
    version = re.fullmatch(r"python=(\d+\.\d+(?:\.\d+)?)", pins[0])
    assert version, f"{pins[0]!r} pins no version"
    assert version[1] in SpecifierSet(PROJECT["requires-python"])


def test_environment_installs_this_project_within_the_constraints() -> None:
    assert ENVIRONMENT["name"] == PROJECT["name"]
    assert "pip" in ENVIRONMENT["dependencies"]
    (pip,) = [entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-c constraints.txt", "-e ."]


def test_no_file_names_a_registry_host() -> None:
    # Joined here, so that this file does not contain them.
    hosts = ["py|pi.org", "python|hosted.org", "npm|js.org", "npm|js.com", "download.py|torch.org", "ana|conda.org"]
    pattern = re.compile("|".join(re.escape(host.replace("|", "")) for host in hosts).encode(), re.IGNORECASE)
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    assert paths
    assert [str(path) for path in paths if path.is_file() and pattern.search(path.read_bytes())] == []
