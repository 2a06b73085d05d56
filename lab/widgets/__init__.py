"""Pictures with controls for a notebook, and the live plot of a training."""

from importlib import import_module
from typing import Any

# Loaded on first use: a training that shows its loss needs no ipywidgets.
_HOME = {
    "AttentionExplorer": "attention_explorer",
    "Explorer": "base",
    "LossPlot": "loss_plot",
    "MaskExplorer": "mask_explorer",
    "ScalingExplorer": "scaling_explorer",
    "ScheduleExplorer": "schedule_explorer",
    "SoftmaxRowExplorer": "softmax_row_explorer",
    "described": "loss_plot",
    "losses": "loss_plot",
    "running_mean": "loss_plot",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lab.widgets' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
