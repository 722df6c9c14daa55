"""Tickets: what goes first, exactly how many, ties, controls, and runs that are not there."""

import numpy as np
import pytest

from sparsecl.checkpoint.reader import TrainedWeights
from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.seeding import stream
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import BlockConfig, TicketConfig, TopologyConfig
from sparsecl.topology.er import er_fixed
from sparsecl.topology.layer import LayerShape
from sparsecl.topology.ticket import num_left, survivors
from tests.checkpoint import made

Q, UP = LayerShape("q", "q", 2, 2), LayerShape("up", "up", 2, 2)
WEIGHTS = {
    "q": np.array([[0.1, -0.7], [0.2, 0.3]], dtype=np.float32),
    "up": np.array([[-0.4, 0.8], [-0.5, 0.6]], dtype=np.float32),
}


class Run:
    """Layers in memory; `live` None = all of them."""

    def __init__(self, weights, live=None):
        self.weights, self.masks = weights, live or {}

    def live(self, shape):
        size = (shape.out_features, shape.in_features)
        return self.masks.get(shape.name, np.ones(size, dtype=bool)).copy()

    def weight(self, shape):
        return self.weights[shape.name]


def left(tmp_path, run, *, shapes=(Q, UP), seed=0, density=0.1, start=None, **ticket):
    """Masks of a ticket as lists of 0 and 1, layer by layer."""
    ticket |= {"since": str(tmp_path)} if start else {}
    config = TopologyConfig(
        kind="ticket", path=str(tmp_path / "run"), density=density, ticket=TicketConfig(**ticket)
    )
    (tmp_path / "run").mkdir(exist_ok=True)
    found = build_topologies(
        config,
        shapes,
        seed=seed,
        open_run=lambda path: start if path == tmp_path else run,
    )
    return [found[shape.name].mask().astype(int).reshape(-1).tolist() for shape in shapes]


def test_eight_weights_by_hand(tmp_path):
    run = Run(WEIGHTS)
    assert left(tmp_path, run, prune=0.25) == [[0, 1, 0, 1], [1, 1, 1, 1]]
    assert left(tmp_path, run, prune=0.25, scope="layer") == [[0, 1, 1, 1], [0, 1, 1, 1]]
    assert left(tmp_path, run, density=0.5) == [[0, 1, 0, 0], [0, 1, 1, 1]]
    assert left(tmp_path, run, density=0.5, scope="layer") == [[0, 1, 0, 1], [0, 1, 0, 1]]
    # 8 -> 6 -> 4 (round(1.5) = 2) -> 3
    assert left(tmp_path, run, prune=0.25, times=2) == [[0, 1, 0, 0], [0, 1, 1, 1]]
    assert left(tmp_path, run, prune=0.25, times=3) == [[0, 1, 0, 0], [0, 1, 0, 1]]
    assert left(tmp_path, run, above=0.5) == [[0, 1, 0, 0], [0, 1, 0, 1]]  # -0.5 is not above it


def test_a_round_prunes_what_the_round_before_has_left(tmp_path):
    live = {"q": np.array([[0, 1], [0, 1]], bool), "up": np.array([[1, 1], [1, 0]], bool)}
    weights = {"q": WEIGHTS["q"] * live["q"], "up": WEIGHTS["up"] * live["up"]}
    assert left(tmp_path, Run(weights, live), prune=0.4) == [[0, 1, 0, 0], [0, 1, 1, 0]]


def test_movement_is_the_distance_from_the_start(tmp_path):
    start = {"q": WEIGHTS["q"].copy(), "up": WEIGHTS["up"].copy()}
    start["q"][0, 0] += 1.0
    start["up"][1, 1] -= 2.0
    found = left(tmp_path, Run(WEIGHTS), start=Run(start), score="movement", above=0.0, density=0.2)
    assert found == [[1, 0, 0, 0], [0, 0, 0, 1]]
    found = left(tmp_path, Run(WEIGHTS), start=Run(start), score="movement", density=0.25)
    assert found == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_exactly_the_rounded_share_goes():
    """The public code keeps 7 of 10 distinct weights at a share of 0.2."""
    bits = np.arange(1, 11, dtype=np.float32).view(np.uint32)
    (keep,) = survivors(lambda: iter([bits]), round(0.2 * 10))
    assert keep.sum() == 8 and not keep[:2].any()
    counts = [num_left(10_000, 0.2, times) for times in range(4)]
    assert counts == [10_000, 8000, 6400, 5120]


@pytest.mark.parametrize("num_values", [3, 50, 100_000])  # few values: many ties
def test_the_lowest_of_all_layers_go_and_of_equals_the_first(num_values):
    rng = np.random.default_rng(num_values)
    layers = [rng.integers(num_values, size=size).astype(np.float32) for size in (700, 0, 40, 300)]
    bits = [values.view(np.uint32) for values in layers]
    order = np.argsort(np.concatenate(layers), kind="stable")
    for num_removed in (0, 1, 257, 1000, 1039):
        wanted = np.ones(1040, dtype=bool)
        wanted[order[:num_removed]] = False
        found = list(survivors(lambda: iter(bits), num_removed))
        assert [part.size for part in found] == [700, 0, 40, 300]
        assert (np.concatenate(found) == wanted).all()


def test_a_random_mask_has_the_density_of_each_layer_and_nothing_else_of_the_ticket(tmp_path):
    shapes = [LayerShape("q", "q", 30, 20), LayerShape("up", "up", 40, 20)]
    rng = np.random.default_rng(0)
    scale = {"q": 1.0, "up": 3.0}
    weights = {
        s.name: scale[s.name] * rng.standard_normal((s.out_features, 20), dtype=np.float32)
        for s in shapes
    }
    ticket = left(tmp_path, Run(weights), shapes=shapes, prune=0.7)
    anew = left(tmp_path, Run(weights), shapes=shapes, prune=0.7, positions="random", seed=3)
    assert [sum(mask) for mask in anew] == [sum(mask) for mask in ticket]
    assert sum(ticket[0]) / 600 < 0.2 < 0.3 < sum(ticket[1]) / 800
    for shape, mask in zip(shapes, anew, strict=True):
        drawn = er_fixed(shape.out_features, 20, rho=sum(mask) / len(mask),
                         rng=stream(3, "mask", shape.name))  # fmt: skip
        assert np.flatnonzero(mask).tolist() == drawn.tolist()
    other = left(tmp_path, Run(weights), shapes=shapes, prune=0.7, positions="random", seed=4)
    assert other != anew


def test_what_is_removed_at_random_is_removed_from_the_living(tmp_path):
    shapes = [LayerShape("q", "q", 40, 50)]
    mask = np.random.default_rng(1).random((40, 50)) < 0.5
    run = Run({"q": mask.astype(np.float32)}, {"q": mask})
    (first,) = left(tmp_path, run, shapes=shapes, prune=0.5, score="random")
    (second,) = left(tmp_path, run, shapes=shapes, prune=0.5, score="random", seed=1)
    assert sum(first) == sum(second) == mask.sum() - round(0.5 * mask.sum()) and first != second
    assert not (np.array(first) > mask.reshape(-1)).any()


def test_a_checkpoint_is_read_with_its_digests(tmp_path):
    folder = made.save(tmp_path / "checkpoints")
    shapes = [LayerShape("a.up", "up", 8, 4), LayerShape("b.up", "up", 4, 4)]
    live = made.topologies()["a.up.weight"]

    def pruned(path, open_run=TrainedWeights):
        config = TopologyConfig(kind="ticket", path=str(path), ticket=TicketConfig(prune=0.5))
        return build_topologies(config, shapes, seed=0, open_run=open_run)

    found = pruned(folder)
    assert live.contains(found["a.up"])
    total = live.num_live + 16  # of b.up, whose checkpoint has no topology, all weights live
    assert sum(t.num_live for t in found.values()) == total - round(0.5 * total)
    master = made.matrices()["master", "b.up.weight"].numpy()
    lowest = np.abs(master[found["b.up"].mask()]).min()
    assert np.abs(master[~found["b.up"].mask()]).max() < lowest
    assert {n: t.digest for n, t in pruned(tmp_path).items()} == {  # the run above it
        name: topology.digest for name, topology in found.items()
    }
    shapes[0] = LayerShape("a.up", "up", 4, 8)
    with pytest.raises(DataError, match="the model has a.up, 4 x 8; here it is 8 x 4"):
        pruned(folder)
    with pytest.raises(MissingInputError, match="cannot be read here"):
        pruned(folder, None)
    content = bytearray((folder / made.FILE).read_bytes())
    content[-1] ^= 1
    (folder / made.FILE).write_bytes(content)
    with pytest.raises(DataError, match="sha256 differs"):
        pruned(folder)


def test_what_is_not_there(tmp_path):
    run = Run(WEIGHTS)
    with pytest.raises(UserError, match=r"topology\.ticket: q \(2 x 2\) would have no live weight"):
        left(tmp_path, run, density=0.125)
    half = {"q": np.eye(2, dtype=bool), "up": np.eye(2, dtype=bool)}
    with pytest.raises(UserError, match="all layers: a ticket would have 6 .* only 4 live"):
        left(tmp_path, Run(WEIGHTS, half), density=0.75)
    with pytest.raises(UserError, match="density=0.75: q: a ticket would have 3"):
        left(tmp_path, Run(WEIGHTS, half), density=0.75, scope="layer")
    with pytest.raises(DataError, match="q holds values that are not finite"):
        left(tmp_path, Run({**WEIGHTS, "q": WEIGHTS["q"] * np.nan}), prune=0.2)
    with pytest.raises(MissingInputError, match=r"topology\.ticket\.since: kind ticket needs"):
        left(tmp_path, run, score="movement")
    for path, words in ((None, "needs the run"), (str(tmp_path / "no"), "is not there")):
        config = TopologyConfig(kind="ticket", path=path)
        with pytest.raises(MissingInputError, match=f"topology.path: .*{words}"):
            build_topologies(config, [Q], seed=0, open_run=lambda path: run)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TicketConfig(prune=1.0), "^prune must be > 0 and < 1, got 1"),
        (lambda: TicketConfig(prune=0.2, above=0.1), "^prune and above both"),
        (lambda: TicketConfig(times=2), "^times says how often prune"),
        (
            lambda: TopologyConfig(kind="ticket", path="x", block=BlockConfig(size=4)),
            "^block has no meaning for kind ticket",
        ),
    ],
)
def test_contradictions(make, words):
    with pytest.raises(ValueError, match=words):
        make()
