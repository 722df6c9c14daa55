"""What the methods of a config say of themselves before anything is built."""

from sparsecl.methods.adapters.config import OLoraConfig
from sparsecl.methods.cl.config import EwcConfig, PackNetConfig
from sparsecl.methods.config import MethodsConfig
from sparsecl.topology.layer import LayerShape

LAYERS = (
    LayerShape("layers.0.attention.q", "q", 8, 4),
    LayerShape("layers.0.mlp.up", "up", 16, 4),
)


def test_flags_and_parameters_by_hand():
    assert MethodsConfig().about(LAYERS, 3) == {}
    methods = MethodsConfig(
        ewc=EwcConfig(), packnet=PackNetConfig(), o_lora=OLoraConfig(rank=2, kinds=("q",))
    )
    assert methods.about(LAYERS, 3) == {
        "ewc": {"flags": "B X", "extra_parameters": 0},
        "packnet": {"flags": "I B F", "extra_parameters": 0},
        # Two domains after the first, of rank 2 each: A [4, 4] and B [8, 4].
        "o_lora": {"flags": "B P F X C", "extra_parameters": 16 + 32},
    }
