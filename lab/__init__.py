"""A diagnostic lab for transformers that train badly: reproduce the fault, catch it, explain it, repair it."""

from importlib import import_module
from typing import Any

# Loaded on first use: `lab --help` should not wait for torch.
_HOME = {
    "Finding": "report",
    "IGNORE_INDEX": "labels",
    "LanguageModel": "language_model",
    "LossPlot": "widgets",
    "ModelConfig": "config",
    "Report": "report",
    "Subject": "subject",
    "TrainConfig": "config",
    "Transformer": "transformer",
    "assert_healthy": "testing",
    "diagnose": "diagnosis",
    "each_check": "testing",
    "evaluating": "mode",
    "fit": "trainer",
    "preset": "presets",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lab' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
