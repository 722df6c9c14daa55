"""The matrices of the model that a topology can mask: global sizes and names."""

from sparsecl.model.config import ModelShape
from sparsecl.topology.layer import LayerShape


def block_shapes(shape: ModelShape, index: int) -> list[LayerShape]:
    """The six matrices of block `index`. The embedding, positions and norms stay dense."""
    width, mlp = shape.width, shape.mlp
    attention, feed_forward = f"layers.{index}.attention", f"layers.{index}.mlp"
    return [
        LayerShape(f"{attention}.q", "q", width, width),
        LayerShape(f"{attention}.k", "k", width, width),
        LayerShape(f"{attention}.v", "v", width, width),
        LayerShape(f"{attention}.o", "o", width, width),
        LayerShape(f"{feed_forward}.up", "up", mlp, width),
        LayerShape(f"{feed_forward}.down", "down", width, mlp),
    ]


def layer_shapes(shape: ModelShape) -> list[LayerShape]:
    """All matrices that may be masked, block by block."""
    return [layer for index in range(shape.layers) for layer in block_shapes(shape, index)]
