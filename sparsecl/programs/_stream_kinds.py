"""Who checks, trains, tells and draws each kind of stream."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANT = "slippery_ant"
"""The stream that has no images, and so a config of its own."""


@dataclass(frozen=True)
class Kind:
    """The work of one kind of stream."""

    check: Callable[[Any, Path | None], Any]
    """(config, run folder) -> what is prepared, with `folder`."""

    run: Callable[[Any], dict[str, Any]]
    table: Callable[[Mapping[str, Any]], str]

    def plot(self, found: Mapping[str, Any], path: Path) -> None:
        """Draw results.json; the drawing library is imported here, where it may fail."""
        if found["stream"] == ANT:
            from sparsecl.experiments.plots.slippery_ant import ant_plot as draw
        elif found["stream"] == "class_incremental":
            from sparsecl.experiments.plots.increments import increments_plot as draw
        else:
            from sparsecl.experiments.plots.streams import stream_plot as draw
        draw(found, path)


def kind_of(name: str) -> Kind:
    """That of stream.kind."""
    if name == ANT:
        from sparsecl.streams import ant_records, ant_run

        return Kind(ant_run.check, ant_run.run, ant_records.table)
    if name == "class_incremental":
        from sparsecl.streams.increments import records, run

        return Kind(run.check, run.run, records.table)
    from sparsecl.streams import records, run

    return Kind(run.check, run.run, records.table)
