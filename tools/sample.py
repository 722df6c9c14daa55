"""Text from a run or a checkpoint: what a model writes after a prompt, after each phase if asked.

--help says more; the work is in sparsecl/programs/sample.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl.programs import sample  # noqa: E402

if __name__ == "__main__":
    sample.start()
