"""The frozen weights of a run whose topology has the role `update`.

Such a checkpoint keeps every weight, so it holds no live sets: which weights learn follows from the
config alone. The topology is drawn again, and taken only where its digest is the one that the run
wrote down.
"""

import yaml

from sparsecl import config as configs
from sparsecl.checkpoint.canonical import config_part
from sparsecl.checkpoint.manifest import Manifest
from sparsecl.config_nodes import compose
from sparsecl.errors import UserError
from sparsecl.model.config import ModelConfig
from sparsecl.model.shapes import layer_shapes
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import ON_DISK, TopologyConfig
from sparsecl.topology.layer import LayerTopology


def frozen_weights(manifest: Manifest) -> dict[str, LayerTopology]:
    """Topologies of role `update`, by parameter name: live = learns, all others are frozen.

    Returns:
        {} for other roles, and where the config in the checkpoint is absent or of another version.
    """
    state = manifest.state
    topology, digests = config_part(state, "topology"), state.get("topology")
    if topology.get("role") != "update" or topology.get("kind") in ON_DISK:
        return {}
    if not isinstance(digests, dict):
        return {}
    try:
        node = compose(yaml.safe_dump(topology), "checkpoint")
        assert node is not None
        config = configs.overlay(TopologyConfig(), node, "topology")
        shapes = [
            shape
            for shape in layer_shapes(ModelConfig(**config_part(state, "model")).resolved())
            # Nothing is allocated for a matrix that the checkpoint does not hold.
            if (entry := manifest.parameters.get(f"{shape.name}.weight"))
            and entry.shape == (shape.out_features, shape.in_features)
        ]
        drawn = build_topologies(config, shapes, seed=state["config"]["seed"])
    except (UserError, TypeError, ValueError, KeyError):
        return {}
    return {
        f"{name}.weight": found
        for name, found in drawn.items()
        if digests.get(name) == found.digest
    }
