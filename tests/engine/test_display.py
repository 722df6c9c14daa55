"""What a person copies from the terminal works as it stands."""

import shlex
from pathlib import Path

from sparsecl.engine import display


def test_a_command_to_copy_is_quoted():
    for folder in ("runs/a", "my runs/a", "it's; here"):
        words = shlex.split(display.watch(Path(folder)))
        assert words == ["tensorboard", "--logdir", folder]
