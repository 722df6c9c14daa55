"""What graph is it: degrees, spectrum and reach of the masks of a config or of a run.

--help says more; the work is in sparsecl/programs/inspect_topology.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl.programs import inspect_topology  # noqa: E402

if __name__ == "__main__":
    inspect_topology.start()
