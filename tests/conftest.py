"""One thread a worker, no network, and a cache of the run's own."""

import os
import shutil
import tempfile

import pytest
from hypothesis import settings

# Shared cores make single examples slow at random; in CI a failure must be the same on every run.
settings.register_profile("lab", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("lab")


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("MPLBACKEND", "Agg")
    if "LAB_CACHE" not in os.environ:  # the workers inherit it, so that they share one cache
        folder = os.environ["LAB_CACHE"] = tempfile.mkdtemp(prefix="lab-cache-")
        config.add_cleanup(lambda: (os.environ.pop("LAB_CACHE"), shutil.rmtree(folder, ignore_errors=True)))
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        import torch

        torch.set_num_threads(1)
