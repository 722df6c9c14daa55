"""The panel: planted activations and weights by hand, then real runs in several layouts.

A pool worker imports this file to run the cases in it.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsecl.engine.observe.plasticity import (
    Panel,
    Probe,
    activations,
    hidden_figures,
    make_probe,
    scalars,
    weight_figures,
)
from sparsecl.engine.run_config import PlasticityConfig
from sparsecl.optim.slice import Slice
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.topology.layer import LayerShape, LayerTopology
from tests.distributed import cases

TWO_DOMAINS = (
    "data.domains=[{name: a, source: synthetic, synthetic: {train_tokens: 4000, "
    "validation_tokens: 400, num_symbols: 8}}, {name: b, source: synthetic, synthetic: "
    "{train_tokens: 4000, validation_tokens: 400, num_symbols: 8}}]",
    "phases.steps=6",
)
ON = (*TWO_DOMAINS, "plasticity={tokens: 256, every: 2}", "checkpoint={every: 4, keep: 9}")
OFF = (*TWO_DOMAINS, "plasticity={tokens: 0, every: 0}")
PACKED = ("topology.storage=packed", "topology.keep_expansion=true")


class Block(nn.Module):
    """As much of a block as the panel looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.down = nn.Identity()


class Planted(nn.Module):
    """Has the activations of tables: token k has row k; the last table is for the norm."""

    def __init__(self, *tables: list[list[float]]) -> None:
        super().__init__()
        self.tables = [torch.tensor(table) for table in tables]
        self.layers = nn.ModuleList(Block() for _ in tables[:-1])
        self.norm = nn.Identity()

    @property
    def module(self) -> "Planted":
        """It is its own engine."""
        return self

    @property
    def running(self) -> "list[Planted]":
        """And its only column."""
        return [self]

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, None]:
        assert not self.training and not torch.is_grad_enabled()
        for layer, table in zip(self.layers, self.tables, strict=False):
            layer.mlp.down(table[tokens])
        return self.norm(self.tables[-1][tokens]).sum(-1), None


def test_planted_activations_by_hand():
    engine = Planted(
        [[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]],  # third unit dead, singular values 3 and 1
        [[1.0, 1.0, -1.0], [1.0, 1.0, -1.0]],  # all awake, rank one
        [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]],
    )
    probe = Probe(np.array([[0, 1]]), np.array([[1, 0]]))
    hidden, normed = activations(engine, probe, batch=4)
    # Sums 3, 1, 0 with mean 4/3: only the dead unit is below a tenth of it.
    shares = {"dead": 1 / 3, "dormant": 1 / 3, "tau_dormant_0.025": 1 / 3, "tau_dormant_0.1": 1 / 3}
    ranks = {"erank": 1.754765, "srank99": 2.0, "arank99": 2.0, "stable_rank_F": 10 / 9}
    assert hidden_figures(hidden[0]) == pytest.approx({**shares, **ranks}, rel=1e-6)
    expected = {**dict.fromkeys(shares, 0.0), **dict.fromkeys(ranks, 1.0)}
    assert hidden_figures(hidden[1]) == pytest.approx(expected)
    assert normed.tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    assert engine.training and not engine.norm._forward_hooks


def test_the_probe_is_read_in_batches_in_order():
    engine = Planted([[0.0], [1.0], [2.0]], [[0.0], [1.0], [2.0]])
    rows = np.array([[0, 1], [2, 0], [1, 2]])
    hidden, normed = activations(engine, Probe(rows, rows), batch=2)
    assert hidden[0].view(-1).tolist() == normed.view(-1).tolist() == [0, 1, 2, 0, 1, 2]


def domain(first: int, size: int) -> Any:
    def take(starts: np.ndarray, count: int) -> np.ndarray:
        return first + starts[..., None] + np.arange(count)

    return SimpleNamespace(validation=SimpleNamespace(num_tokens=size, take=take))


@pytest.mark.parametrize(
    ("tokens", "sizes", "context", "expected"),
    [
        (8, (50, 50), 2, [[12, 13], [36, 37], [112, 113], [136, 137]]),  # 6 and 18 of 24 windows
        (11, (50, 50), 3, [[12, 13], [36, 37], [112, 113], [136, 137]]),  # a share of 5, as 2 x 2
        (4, (50, 50), 16, [[24, 25], [124, 125]]),  # shorter than the context
        (60, (50, 4), 16, [[24, 25, 26], [100, 101, 102]]),  # the shortest text has 3 targets
        (1, (50, 50), 16, [[24], [124]]),
    ],
)
def test_every_domain_has_an_equal_share_of_the_probe(tokens, sizes, context, expected):
    domains = [domain(100 * place, size) for place, size in enumerate(sizes)]
    probe = make_probe(domains, tokens=tokens, context=context)
    assert probe is not None
    assert probe.inputs.tolist() == expected
    assert (probe.targets == probe.inputs + 1).all()


class Cuts(list):
    """Slices, all of them on this rank."""

    partitioned = False


def test_weights_are_those_of_the_topology():
    """Role update: absent weights have values too, but they are not what is trained."""
    mask = np.array([[1, 0, 1, 0], [0, 0, 1, 0]], dtype=bool)
    shape = LayerShape("layers.0.up", "up", 2, 4)
    thin = ColumnParallelSparseLinear(shape, LayerTopology.from_mask(shape.name, mask))
    full = ColumnParallelSparseLinear(LayerShape("layers.1.up", "up", 1, 2), None)
    slices, model = Cuts(), nn.Module()
    model.layers = nn.ModuleList([nn.ModuleDict({"up": thin}), nn.ModuleDict({"up": full})])
    values = ([[1.0, 9.0, -2.0, 9.0], [9.0, 9.0, 2.0, 9.0]], [[3.0, -4.0]])
    for place, (layer, matrix) in enumerate(zip((thin, full), values, strict=True)):
        layer.fill(torch.tensor(matrix))
        name, numel = f"layers.{place}.up.weight", layer.weight.numel()
        # Two slices of one parameter, as two ZeRO partitions would have them.
        cuts = [(0, numel // 2), (numel // 2, numel - numel // 2)]
        slices += [Slice(name, layer.weight, layer.weight, at, at, size) for at, size in cuts]
    layers, total = weight_figures(model, slices)
    assert layers == {
        "layers.0": {"weight_mean_abs": pytest.approx(5 / 3), "weight_norm": 3.0},
        "layers.1": {"weight_mean_abs": 3.5, "weight_norm": 5.0},
    }
    assert total == {"weight_mean_abs": 12 / 5, "weight_norm": pytest.approx(34**0.5)}


class Scripted(nn.Module):
    """An engine whose losses after the update are given."""

    def __init__(self, *losses: float) -> None:
        super().__init__()
        self.losses = list(losses)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.full(tokens.shape, self.losses.pop(0)), None


def test_the_gain_of_an_update_by_hand():
    engine = Scripted(1.0, 2.5, 0.0, float("nan"))
    built: Any = SimpleNamespace(engine=engine)
    panel = Panel(PlasticityConfig(tokens=0, every=3), built, (), context=4, batch=1)
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    for step in range(1, 13):
        panel.see(tokens, torch.tensor([[1.0, 3.0], [0.0, 4.0]]))
        panel.after_update(step)
    assert engine.losses == [] and engine.training
    sums = panel.kept
    # 1 - 1/2, 1 - 2.5/2 and 1 - 0: the harmful update counts as 0, or as -0.25 unclamped.
    assert (sums.num_looks, sums.p, sums.p_unclamped) == (3, 1.5, 1.25)


# Real runs.


def train(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> dict[str, Any]:
    """A whole run; the panel's records beside its losses."""
    trainer, *_ = cases.assemble(cases.load(cache, overrides), stage, folder)
    trainer.run()
    return outcome(trainer)


def go_on(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> dict[str, Any]:
    """The rest of a run after its step 4, in the middle of phase 0."""
    trainer, *_ = cases.assemble(cases.load(cache, overrides), stage, folder + "/again")
    trainer.take_up(Path(folder) / "step_4")
    assert trainer.panel.kept.num_looks == 2
    trainer.run()
    return outcome(trainer)


def outcome(trainer: cases.RecordingTrainer) -> dict[str, Any]:
    points = [record for record in trainer.records if record["kind"] == "plasticity"]
    return {"losses": trainer.losses(), "points": points}


@pytest.fixture(scope="module")
def alone(pool, shared_cache, tmp_path_factory) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("alone"))
    return pool.run(train, 1, str(shared_cache), "zero0", (*ON, *PACKED), folder)[0]


@pytest.fixture(scope="module")
def sharded(pool, shared_cache, tmp_path_factory) -> tuple[dict[str, Any], Path]:
    """dp 2 under ZeRO-3, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("sharded")
    return pool.run(train, 2, str(shared_cache), "zero3", ON, str(folder))[0], folder


def flat(points: list[dict[str, Any]], *without: str) -> dict[str, Any]:
    """(phase, group, name) -> value, of those that were measured."""
    found = {}
    for point in points:
        groups = {**point["layers"], "final": point["final"], "total": point["total"]}
        for group, figures in groups.items():
            for name, value in figures.items():
                if name not in without and value is not None:
                    found[point["phase"], group, name] = value
    return found


@pytest.mark.dist
def test_a_record_of_every_phase(alone):
    points = alone["points"]
    assert [(point["phase"], point["at"], point["step"]) for point in points] == [
        (-1, "start", 0),
        (0, "phase_end", 6),
        (1, "phase_end", 12),
    ]
    assert all(point["probe_tokens"] == 2 * 8 * 16 for point in points)
    start, *phases = points
    assert start["total"]["p"] is None and start["total"]["grad_norm"] is None
    for point in phases:
        assert set(point["layers"]) == {"layers.0", "layers.1"}
        assert point["total"]["p_looks"] == 3
        assert 0.0 < point["total"]["p"] < 1.0 and point["total"]["grad_norm"] > 0.0
        assert 1.0 < point["final"]["stable_rank_F"] < point["final"]["erank"] < 32.0
    drawn = scalars(phases[0])
    assert drawn["plasticity/final_erank"] == phases[0]["final"]["erank"]
    blocks = [figures["erank"] for figures in phases[0]["layers"].values()]
    assert drawn["plasticity/erank"] == pytest.approx(sum(blocks) / 2)
    assert "plasticity/p" in drawn and "plasticity/p" not in scalars(start)
    # Training moves the figures.
    assert start["layers"]["layers.0"]["erank"] != phases[0]["layers"]["layers.0"]["erank"]
    assert start["total"]["weight_norm"] != phases[0]["total"]["weight_norm"]


@pytest.mark.dist
@pytest.mark.parametrize("sequence", ["false", "true"])
def test_tensor_parallel_ranks_agree_with_one(pool, shared_cache, tmp_path, alone, sequence):
    overrides = (*ON, "parallel.tensor=2", f"parallel.sequence={sequence}")
    ranks = pool.run(train, 2, str(shared_cache), "zero1", overrides, str(tmp_path))
    assert ranks[0] == ranks[1]
    assert flat(ranks[0]["points"]) == pytest.approx(flat(alone["points"]), rel=1e-5, abs=1e-5)


@pytest.mark.dist
def test_shards_of_zero_3_agree_with_one(alone, sharded):
    # p is a mean over dp: two halves of the batch, each with its own gain, are another sample.
    of = [flat(found["points"], "p", "p_unclamped") for found in (sharded[0], alone)]
    assert of[0] == pytest.approx(of[1], rel=1e-5, abs=1e-5)


@pytest.mark.dist
def test_the_panel_changes_no_bit_of_training(pool, shared_cache, tmp_path, alone, sharded):
    off = pool.run(train, 1, str(shared_cache), "zero0", (*OFF, *PACKED), str(tmp_path / "1"))[0]
    assert off["points"] == [] and off["losses"] == alone["losses"]
    off = pool.run(train, 2, str(shared_cache), "zero3", OFF, str(tmp_path / "2"))[0]
    assert off["losses"] == sharded[0]["losses"]


@pytest.mark.dist
def test_a_resume_inside_a_phase_keeps_its_gains(pool, shared_cache, sharded):
    whole, folder = sharded
    rest = pool.run(go_on, 2, str(shared_cache), "zero3", ON, str(folder))[0]
    assert rest["losses"] == whole["losses"][4:]
    assert rest["points"] == whole["points"][1:]
