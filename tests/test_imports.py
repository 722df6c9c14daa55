"""What starts quickly: nothing is imported that the work at hand does not need."""

import subprocess
import sys

import pytest

from tests.events import HANG

# What is run -> what must not be imported by then.
CASES = {
    "import sparsecl": ("numpy", "torch", "yaml"),
    "import sparsecl.programs.metrics": ("torch", "matplotlib", "scipy"),
    # A lone process has no tensor parallelism, and no model is compiled unless it is asked for.
    "import sparsecl.engine.run": ("megatron", "deepspeed", "matplotlib", "torch._dynamo"),
    # What every ZeRO wrapper imports.
    "from sparsecl.engine.build import import_deepspeed; import_deepspeed(); "
    "from deepspeed.runtime.zero.muon import muon_optimizer": ("torch._inductor.compile_fx",),
    "from sparsecl import dist; dist.init(); assert dist.tp_size() == 1": ("megatron",),
}


@pytest.mark.parametrize("work", CASES)
def test_what_is_not_needed_is_not_imported(work: str) -> None:
    end = f"import sys; print(sorted({set(CASES[work])} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{work}\n{end}"], capture_output=True, text=True, timeout=HANG
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
