"""What a run or a study needs and costs, before it is paid for: memory, traffic, time, money.

--help says more; the work is in sparsecl/programs/plan.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl.programs import plan  # noqa: E402

if __name__ == "__main__":
    plan.start()
