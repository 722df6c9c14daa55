"""Train a sparse GPT over a sequence of text domains and measure what it forgets.

    deepspeed launch/train.py --ds_config ds_configs/zero1.json

--help says more; the work is in sparsecl/programs/train.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

# First of all, because other imports take long: a signal is heard, and a lost rank is missed.
from sparsecl import command, place, signals  # noqa: E402

if __name__ == "__main__":
    signals.listen()
    place.begin()

from sparsecl.programs import train  # noqa: E402

if __name__ == "__main__":
    command.start(train.main, output_counts=False)
