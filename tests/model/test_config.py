"""Sizes of the model: presets, overrides, messages."""

import pytest

from sparsecl.errors import UserError
from sparsecl.model.config import (
    PRESETS,
    ModelConfig,
    ModelShape,
    check_tensor_parallel,
    padded_vocabulary,
)
from sparsecl.model.shapes import layer_shapes


def test_presets():
    assert ModelConfig(preset="100m").resolved() == ModelShape(12, 768, 12, 1024, 3072)
    assert ModelConfig(preset="500m").resolved() == ModelShape(24, 1280, 20, 2048, 5120)
    assert ModelConfig(preset="1b").resolved() == ModelShape(24, 2048, 16, 2048, 8192)
    for preset in PRESETS:
        shape = ModelConfig(preset=preset).resolved()
        assert shape.head_width * shape.heads == shape.width


def test_sizes_win_over_the_preset():
    shape = ModelConfig(preset="100m", layers=2, mlp_ratio=2).resolved()
    assert shape == ModelShape(2, 768, 12, 1024, 1536)


def test_no_preset():
    shape = ModelConfig(preset=None, layers=1, width=8, heads=2, context=4).resolved()
    assert shape == ModelShape(1, 8, 2, 4, 32)


@pytest.mark.fault("X10")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": None, "layers": 1}, "^width must be given when model.preset is null$"),
        ({"layers": 0}, "^layers must be >= 1, got 0$"),
        ({"width": 2**31}, "^width must be <= 1048576, got 2147483648$"),
        ({"mlp_ratio": -1}, "^mlp_ratio must be >= 1, got -1$"),
        ({"heads": 5}, r"^heads=5 does not divide width=128\. Use 4 heads\.$"),
        ({"heads": 15}, r"Use 16 heads\.$"),
        ({"init_std": 0.0}, "^init_std must be > 0, got 0.0$"),
        ({"init_std": float("nan")}, "^init_std must be > 0, got nan$"),
        ({"preset": "2b"}, "^preset must be one of demo, 10m, .*, got 2b$"),
    ],
)
def test_messages(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**fields)


@pytest.mark.fault("C11")
def test_tensor_parallel_sizes():
    shape = ModelShape(layers=2, width=384, heads=6, context=8, mlp=1536)
    for tp_size in (1, 2, 3, 6):
        check_tensor_parallel(shape, tp_size)
    with pytest.raises(UserError) as error:
        check_tensor_parallel(shape, 4)
    assert str(error.value) == (
        "model.heads=6 is not divisible by parallel.tensor=4. "
        "Use model.heads=4, or parallel.tensor 1, 2, 3."
    )
    with pytest.raises(UserError, match=r"model.mlp=9 .* is not .* Use parallel.tensor 1\.$"):
        check_tensor_parallel(ModelShape(layers=1, width=8, heads=2, context=4, mlp=9), 2)


@pytest.mark.fault("C11")
@pytest.mark.parametrize(
    ("vocab_size", "tp_size", "rows"),
    [(1, 1, 128), (128, 2, 128), (129, 4, 256), (50257, 8, 50304), (100, 3, 384)],
)
def test_padded_vocabulary(vocab_size, tp_size, rows):
    assert padded_vocabulary(vocab_size, tp_size) == rows


def test_layer_shapes():
    shapes = layer_shapes(ModelShape(layers=2, width=8, heads=2, context=4, mlp=32))
    assert len(shapes) == 12
    assert [shape.kind for shape in shapes[:6]] == ["q", "k", "v", "o", "up", "down"]
    assert shapes[10].name == "layers.1.mlp.up"
    assert (shapes[10].out_features, shapes[10].in_features) == (32, 8)
    assert (shapes[11].out_features, shapes[11].in_features) == (8, 32)
