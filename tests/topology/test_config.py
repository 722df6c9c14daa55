"""Options of the topology: what contradicts what, and how it is written in a run config."""

import pytest

from sparsecl import config as loader
from sparsecl.errors import UserError
from sparsecl.topology.config import (
    BlockConfig,
    BrfConfig,
    BswConfig,
    NmConfig,
    OverrideConfig,
    TopologyConfig,
)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BrfConfig(r=1.5), "^r must be >= 0 and <= 1, got 1.5"),
        (lambda: BswConfig(beta=float("nan")), "^beta must be >= 0 and <= 1"),
        (lambda: NmConfig(m=0), "^m must be >= 1"),
        (lambda: BlockConfig(size=0), "^size must be >= 1"),
        (lambda: OverrideConfig(density=85.0), "^density must be in .* write 0.85"),
        (lambda: TopologyConfig(role="update", storage="packed"), "^storage packed .* masked"),
        (lambda: TopologyConfig(role="update", backend="csr"), "^backend csr multiplies by live"),
        (lambda: TopologyConfig(keep_expansion=True), "^keep_expansion needs storage: packed"),
        (lambda: TopologyConfig(backend="block"), "^backend block needs tiles"),
        (lambda: TopologyConfig(kind="nm", block=BlockConfig(size=4)), "^block has no meaning"),
        (lambda: TopologyConfig(kind="from_file"), "^path is required for kind from_file"),
        (lambda: TopologyConfig(erk_power=-1.0), "^erk_power must be >= 0"),
    ],
)
def test_contradictions(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_options_of_other_kinds_are_left_alone():
    # One base config serves all arms of a comparison: only `kind` differs on the command line.
    options = ["brf.r=0.1", "bsw.beta=0.5", "nm.m=4", "expander.form=xnet", "block.size=8"]
    for kind in ("dense", "er_fixed", "brf", "block_diag"):
        assert loader.load(TopologyConfig, None, [*options, f"kind={kind}"]).kind == kind


def test_overrides_in_yaml(tmp_path):
    path = tmp_path / "topology.yaml"
    path.write_text("overrides:\n- {kinds: [q, k], density: 0.5}\n- {layers: [0], density: 2}\n")
    with pytest.raises(UserError, match=r"topology.yaml:3: overrides\.1\.density must be in"):
        loader.load(TopologyConfig, path)
    read = loader.load(TopologyConfig, path, ["overrides.1.density=1.0"])
    assert read.overrides[0] == OverrideConfig(kinds=("q", "k"), density=0.5)
    assert read.overrides[1] == OverrideConfig(layers=(0,), density=1.0)
    path.write_text(loader.dump(read))
    assert loader.load(TopologyConfig, path) == read
