"""The first minutes on a GPU: what the CPU computes, the same bits twice, and how fast.

--help says more; the work is in sparsecl/programs/gpu_check.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl.programs import gpu_check  # noqa: E402

if __name__ == "__main__":
    gpu_check.start()
