"""Pictures of the shipped experiments, each drawn from the tables in figures/data alone."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ..picture import Picture


@dataclass(frozen=True)
class Chart:
    """A committed chart. function: "module:name" in this package, which takes the tables as DataFrames, in order.

    `lab experiment` measures its tables, and `lab figures --recompute` does not.
    """

    function: str
    tables: tuple[str, ...]

    def picture(self, *paths: Path) -> Picture:
        """Drawn from these CSVs, one for each of `tables`."""
        import pandas

        module, _, name = self.function.partition(":")
        draw = getattr(import_module(f"{__name__}.{module}"), name)
        return draw(*(pandas.read_csv(path) for path in paths))


CHARTS: dict[str, Chart] = {
    "causes": Chart("causes:ranked", ("causes",)),
    "context": Chart("causes:context", ("causes",)),
    "peak_rate": Chart("causes:rates", ("causes",)),
    "warmup": Chart("causes:warmups", ("causes", "causes_curves")),
    "eos_probability": Chart("endings:probability", ("causes", "causes_curves")),
    "eos_lengths": Chart("endings:lengths", ("causes",)),
    "ladder_training": Chart("scaling:curves", ("ladder", "ladder_curves")),
    "ladder_tokens": Chart("scaling:ends", ("ladder",)),
    "ladder_flops": Chart("scaling:by_flops", ("ladder",)),
    "ladder_fit": Chart("scaling:ladder_fit", ("ladder",)),
    "prediction": Chart("predictions:prediction", ("prediction", "prediction_runs")),
    "sizes": Chart("predictions:review_sizes", ("sizes",)),
    "sizes_tokens": Chart("predictions:review_tokens", ("sizes",)),
}
