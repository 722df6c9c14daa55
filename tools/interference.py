"""How far learning one domain reaches into the others, in the checkpoints of finished runs.

--help says more; the work is in sparsecl/programs/interference.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl.programs import interference  # noqa: E402

if __name__ == "__main__":
    interference.start()
