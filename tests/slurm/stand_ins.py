"""Stand-ins for Slurm's commands."""

import os
from pathlib import Path

import pytest

# Takes notice of its words, and answers with the next number.
SBATCH = r"""#!/bin/bash
number=$(($(cat "$FAKE/number" 2>/dev/null || echo 40) + 1))
printf '%s\0' "$@" >"$FAKE/sbatch.$number"
echo "$number" | tee "$FAKE/number"
"""
SQUEUE = '#!/bin/bash\ncat "$FAKE/queue"\n'
SCANCEL = '#!/bin/bash\necho "$*" >>"$FAKE/cancelled"\n'


def stand_ins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder of the stand-ins, and put it first on PATH."""
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    return folder
