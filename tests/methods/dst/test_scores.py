"""Cannistraci-Hebb scores against paths counted one by one, and chain removal."""

import math

import pytest
import torch

from sparsecl.methods.dst.percolation import percolate
from sparsecl.methods.dst.scores import scores

SMALL = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1]]).bool()
ABSENT = [(0, 2), (0, 3), (1, 1), (1, 3), (2, 0)]


def by_paths(mask: torch.Tensor, u: int, v: int, *, ch2: bool) -> float:
    """From the definition: communities as sets, links counted from them."""
    rows, columns = range(mask.shape[0]), range(mask.shape[1])
    paths = [(a, b) for a in columns for b in rows if mask[u, a] and mask[b, a] and mask[b, v]]
    inner_columns, inner_rows = {a for a, _ in paths}, {b for _, b in paths}
    total = 0.0
    for a, b in paths:
        inside = [sum(bool(mask[r, a]) for r in inner_rows)]
        inside += [sum(bool(mask[b, c]) for c in inner_columns)]
        outside = [sum(bool(mask[r, a]) for r in rows if r != u and r not in inner_rows)]
        outside += [sum(bool(mask[b, c]) for c in columns if c != v and c not in inner_columns)]
        top = math.sqrt((1 + inside[0]) * (1 + inside[1])) if ch2 else 1.0
        total += top / math.sqrt((1 + outside[0]) * (1 + outside[1]))
    return total


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ch3_l3p", [1.7071, 0.7071, 1.7071, 0.7071, 2.0]),
        ("ch2_l3p", [3.4142, 1.4142, 3.4142, 1.4142, 4.0]),
        ("ch3_l3n", [3.5, 1.5, 3.5, 1.5, 4.0]),
        ("ch2_l3n", [7.0, 3.0, 7.0, 3.0, 8.0]),
    ],
)
def test_the_reference_vectors(name, expected):
    found = scores(SMALL, name)
    assert [float(found[cell]) for cell in ABSENT] == pytest.approx(expected, abs=1e-4)
    assert (found[SMALL] == 0).all()


@pytest.mark.parametrize("name", ["ch3_l3p", "ch2_l3p"])
@pytest.mark.parametrize("seed", range(8))
def test_sums_over_paths_are_those_of_the_definition(name, seed):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, 7, generator=rng) < (0.2, 0.4, 0.7)[seed % 3]
    found = scores(mask, name)
    for u, v in (~mask).nonzero().tolist():
        expected = by_paths(mask, u, v, ch2=name == "ch2_l3p")
        assert float(found[u, v]) == pytest.approx(expected, abs=1e-4)


def test_one_edge_of_a_complete_graph():
    """No link leads out of the community: the score is the number of paths, (m - 1)(n - 1)."""
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 2] = False
    assert float(scores(mask, "ch3_l3p")[1, 2]) == pytest.approx(15.0)


def masks(**parts: list[list[int]]) -> dict[str, torch.Tensor]:
    places = {"up": "mlp", "gate": "mlp", "down": "mlp"}
    return {
        f"layers.0.{places.get(name, 'attention')}.{name}.weight": torch.tensor(rows).bool()
        for name, rows in parts.items()
    }


def test_a_unit_that_nothing_reads_loses_its_inputs():
    found = masks(up=[[1, 1], [1, 0], [0, 0]], down=[[1, 0, 1], [0, 0, 1]])
    percolate(found)
    up, down = found.values()
    assert up.tolist() == [[True, True], [False, False], [False, False]]
    assert down.tolist() == [[True, False, False], [False, False, False]]


def test_twice_changes_nothing():
    rng = torch.Generator().manual_seed(1)
    for _ in range(20):
        parts = {name: torch.rand(6, 6, generator=rng) < 0.2 for name in "qkvo"}
        parts |= {name: torch.rand(9, 6, generator=rng) < 0.2 for name in ("up", "gate")}
        parts["down"] = torch.rand(6, 9, generator=rng) < 0.2
        found = masks(**{name: part.int().tolist() for name, part in parts.items()})
        percolate(found)
        once = {name: mask.clone() for name, mask in found.items()}
        percolate(found)
        assert all(torch.equal(found[name], mask) for name, mask in once.items())
        up, gate, down = (found[f"layers.0.mlp.{name}.weight"] for name in ("up", "gate", "down"))
        assert torch.equal(up.any(1), down.any(0)) and torch.equal(up.any(1), gate.any(1))


def test_a_dense_partner_and_shared_heads_are_left_alone():
    found = masks(up=[[0, 0], [1, 0]], q=[[1, 0], [0, 0], [1, 1], [1, 0]], k=[[1, 1], [0, 0]])
    before = {name: mask.clone() for name, mask in found.items()}
    percolate(found)
    assert all(torch.equal(found[name], mask) for name, mask in before.items())
