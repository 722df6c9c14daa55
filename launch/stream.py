"""Train small networks on a stream of tasks, and measure whether they stay able to learn.

    python launch/stream.py launch/streams/permuted_mnist.yaml

--help says more; the work is in sparsecl/programs/stream.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

# First of all, because other imports take long: a signal is heard.
from sparsecl import signals  # noqa: E402

if __name__ == "__main__":
    signals.listen()

from sparsecl.programs import stream  # noqa: E402

if __name__ == "__main__":
    stream.start()
