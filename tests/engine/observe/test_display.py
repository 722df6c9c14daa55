"""What a person copies from the terminal works as it stands."""

import shlex
from pathlib import Path

from sparsecl.engine.observe import display


def test_a_command_to_copy_is_quoted():
    for folder in ("runs/a", "my runs/a", "it's; here"):
        words = shlex.split(display.watch(Path(folder)))
        assert words == ["tensorboard", "--logdir", folder]


def test_overlap_is_shown_for_every_domain():
    line = display.overlap_line({"a": 0.125, "b": None, "c": 0.0})
    assert line.split() == (
        "overlap 13-grams of validation also in training: a 12.5%, b -, c 0.0%".split()
    )
