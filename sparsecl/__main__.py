"""One command for all programs.

    sparsecl PROGRAM --help
    sparsecl train --config mine.yaml

A program is imported when it is asked for, so that the list comes at once.
"""

import importlib
import sys
from typing import NoReturn

from sparsecl import command

# Name for users -> its file in sparsecl/programs/, and what it is for.
PROGRAMS = {
    "demo": ("demo", "a dense and a sparse model side by side, in minutes"),
    "train": ("train", "train one model through all phases"),
    "prepare-data": ("prepare_data", "prepare the text of a run ahead of time"),
    "stream": ("stream", "train small networks on a stream of tasks"),
    "sweep": ("sweep", "a study: many runs, one table, one report"),
    "report": ("report", "the report of a study, as far as it is"),
    "metrics": ("metrics", "the figures of one or more runs, from their records"),
    "sample": ("sample", "text that a model writes"),
    "convert": ("convert", "checkpoints to and from other formats"),
    "plan": ("plan", "memory, time and cost of a run or a study"),
    "bench": ("bench", "time and memory on this machine"),
    "gpu-check": ("gpu_check", "the first minutes on a GPU"),
    "inspect": ("inspect_topology", "the graphs of a config or a run"),
    "interference": ("interference", "how gradients of domains disagree"),
    "tickets": ("tickets", "which weights several runs have moved"),
}


def listing() -> str:
    """The help text."""
    lines = [f"  {name:<14}{text}" for name, (_, text) in PROGRAMS.items()]
    return "\n".join([(__doc__ or "").rstrip(), "", *lines])


def start() -> NoReturn:
    """Be the whole process: that of the program that the first word names."""
    name = sys.argv[1].replace("_", "-") if len(sys.argv) > 1 else ""
    if name not in PROGRAMS:
        command.start(lambda: explain(name))
    # What argparse calls the program; its own words follow.
    sys.argv = [f"sparsecl {name}", *sys.argv[2:]]
    importlib.import_module(f"sparsecl.programs.{PROGRAMS[name][0]}").start()
    raise AssertionError("a program does not return")


def explain(word: str) -> int:
    """What there is, or that `word` is not. Returns the exit code."""
    if word in ("", "-h", "--help"):
        print(listing())
        return 0 if word else 2
    command.complain(f"{word}: no such program; there are {', '.join(PROGRAMS)}")
    return 2


if __name__ == "__main__":
    start()
