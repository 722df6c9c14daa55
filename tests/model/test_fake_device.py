"""Everything of a model is on the GPU that it is moved to, and nothing reads it there."""

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")

from torch.utils import backend_registration

from tests.launch.starter import run_script
from tests.model import fake_device

ROOT = Path(__file__).resolve().parents[2]

LINEARS = 6  # of a block


@pytest.fixture(scope="module")
def launched():
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices made in Python")
    done = run_script(Path(fake_device.__file__), [], cwd=ROOT)
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.mark.fault("G12")
def test_launches_of_a_pass(launched):
    """Of packed storage, an expansion forward and backward, and a gathered gradient."""
    assert launched["dense"] == launched["masked"] == {}
    packed = {"expand": 2 * LINEARS, "gather": LINEARS}
    for form, storage in (("bitmap", "packed"), ("index", "packed, few")):
        assert launched[storage] == {f"{name}_{form}": n for name, n in packed.items()}
    assert launched["packed, kept"] == {"expand_bitmap": LINEARS, "gather_bitmap": LINEARS}
    products = dict.fromkeys(("forward_product", "grad_input", "grad_values"), LINEARS)
    assert launched["packed, block"] == products
    # The parameter is the matrix: its values are gathered for each product.
    assert launched["block"] == products | {"gather_bitmap": 2 * LINEARS, "expand_bitmap": LINEARS}


@pytest.mark.fault("G12")
def test_a_tensor_on_the_cpu_is_found(launched):
    assert "cpu" in launched["stray"] and "fakegpu" in launched["stray"], launched["stray"]
