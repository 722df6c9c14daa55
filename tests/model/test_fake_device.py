"""Everything of a model is on the GPU that it is moved to, and nothing reads it there."""

import json
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")

from torch.utils import backend_registration

from tests.launch.starter import run_script
from tests.model import fake_device

ROOT = Path(__file__).resolve().parents[2]

LINEARS = 6  # of a block


def own(found):
    """The kernels that are not torch's."""
    return {name: number for name, number in found.items() if not name.startswith("torch.")}


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
    launched = {storage: own(found) for storage, found in launched.items() if storage != "stray"}
    assert launched["dense"] == launched["masked"] == {}
    packed = {"expand": 2 * LINEARS, "gather": LINEARS}
    for form, storage in (("bitmap", "packed"), ("index", "packed, few")):
        assert launched[storage] == {f"{name}_{form}": n for name, n in packed.items()}
    assert launched["packed, kept"] == {"expand_bitmap": LINEARS, "gather_bitmap": LINEARS}
    products = dict.fromkeys(("forward_product", "grad_input", "grad_values"), LINEARS)
    assert launched["packed, block"] == products
    # The parameter is the matrix: its values are gathered for each product.
    assert launched["block"] == products | {"gather_bitmap": 2 * LINEARS, "expand_bitmap": LINEARS}


def test_operations_beside_those_of_a_dense_model(launched):
    """Three products for a linear and for the head; what a mask costs is one pass over a gradient,
    and packed storage nothing but its own kernels."""
    dense = Counter(launched["dense"])
    assert dense["torch.mm"] == 3 * (LINEARS + 1)
    more = {"masked": {"torch.masked_fill_": LINEARS}, "packed, few": {"torch.zero_": 2 * LINEARS}}
    for storage in ("masked", "packed", "packed, few", "packed, kept"):
        beside = Counter(launched[storage])
        beside.subtract(dense)
        beside.subtract(own(launched[storage]))
        assert {name: n for name, n in beside.items() if n} == more.get(storage, {}), storage


def test_the_loss_of_2048_tokens_is_one_chunk_on_a_gpu(launched):
    for storage, found in launched.items():
        assert storage == "stray" or found["torch.softmax"] == 1, storage


@pytest.mark.fault("G12")
def test_a_tensor_on_the_cpu_is_found(launched):
    assert "cpu" in launched["stray"] and "fakegpu" in launched["stray"], launched["stray"]
