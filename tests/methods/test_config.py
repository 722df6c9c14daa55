"""What the methods of a config say of themselves before anything is built."""

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest

from sparsecl.config import digest
from sparsecl.methods.adapters.config import (
    LoraConfig,
    MemoryConfig,
    NLoraConfig,
    OLoraConfig,
    OsftConfig,
)
from sparsecl.methods.brain.config import HstConfig, SleepReplayConfig, WsclConfig
from sparsecl.methods.cl.config import (
    AgemConfig,
    DerppConfig,
    EwcConfig,
    GemConfig,
    LwfConfig,
    MasConfig,
    PackNetConfig,
    ReplayConfig,
    SelfReplayConfig,
    SiConfig,
)
from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.dst.config import (
    ChtConfig,
    ChtsConfig,
    DeepRConfig,
    GranetConfig,
    RiglConfig,
    SetConfig,
    SnfsConfig,
)
from sparsecl.methods.facts import MethodMemory
from sparsecl.methods.plasticity.config import (
    CbpConfig,
    DropoutConfig,
    L1Config,
    L2Config,
    L2InitConfig,
    RedoConfig,
    ShrinkPerturbConfig,
    UpgdConfig,
)
from sparsecl.methods.sparse_cl.config import AfafConfig, DstClConfig, SparclConfig
from sparsecl.methods.table import METHODS, build_methods
from sparsecl.sparse.sizes import RankSizes
from sparsecl.topology.layer import LayerShape

BLOCKS = {
    name: next(kind for kind in get_args(hint) if kind is not type(None))
    for name, hint in get_type_hints(MethodsConfig).items()
    if name in METHODS
}
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


RANK = RankSizes(
    layers=LAYERS,
    num_phases=3,
    vocab_size=20,
    context=10,
    tokens=50,
    element=2,
    parameters=1500,
    slices=1000,
    slices_by_kind={"q": 32, "up": 64},
    sparse_slices=96,
    largest_slice=300,
    anchored=0,
    cells=200,
    copy=7000,
    logits=1000,
    kept_logits=4000,
)


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ({}, {}),
        ({"ewc": EwcConfig()}, {"beside": 8 * 1000}),
        ({"si": SiConfig()}, {"beside": 16 * 1000, "update": 8 * 1000}),
        ({"mas": MasConfig()}, {"beside": 8 * 1000}),
        ({"packnet": PackNetConfig()}, {"beside": 2 * 1000 + 6 * 1000}),
        # A and B of two domains beside q keep [50, 4] in bf16.
        (
            {"o_lora": OLoraConfig(rank=2, kinds=("q",))},
            {"beside": 6 * 1000, "passing": 2 * 50 * 4},
        ),
        # One pair for both later domains.
        (
            {"lora": LoraConfig(rank=2, kinds=("q",))},
            {"beside": 6 * 1000, "passing": 2 * 50 * 2},
        ),
        # And the 32 cells of q with their signs, which are less than a chunk.
        (
            {"n_lora": NLoraConfig(rank=2, kinds=("q",))},
            {"beside": 6 * 1000, "passing": 2 * 50 * 4 + 8 * 32},
        ),
        # 2 of 4 directions of q [8, 4] and up [16, 4], with a singular value each; where r may be 1
        # all. The gradient of up, its projection and a term.
        (
            {"osft": OsftConfig(rule="fixed")},
            {"kept": 4 * (2 * 13 + 2 * 21), "passing": 12 * 64},
        ),
        ({"osft": OsftConfig()}, {"kept": 4 * (4 * 13 + 4 * 21), "passing": 12 * 64}),
        ({"osft": OsftConfig(rule="fixed", share=0.0)}, {}),
        ({"set": SetConfig()}, {"host": 4 * 96}),
        ({"set": SetConfig(adam_restart="per_weight")}, {"beside": 4 * 96, "host": 4 * 96}),
        ({"rigl": RiglConfig()}, {"passing": 4 * 200, "host": 4 * 96}),
        ({"set": SetConfig(drop="mest")}, {"passing": 4 * 200, "host": 4 * 96}),
        # The linears have 32 + 64 cells over all tp ranks.
        ({"snfs": SnfsConfig()}, {"passing": 4 * 200, "host": 8 * 96}),
        ({"granet": GranetConfig()}, {"passing": 4 * 200, "host": 4 * 96}),
        ({"deep_r": DeepRConfig()}, {"update": 28 * 300, "host": 8 * 96}),
        ({"deep_r": DeepRConfig(variant="soft")}, {"update": 28 * 300, "host": 12 * 96}),
        ({"cht": ChtConfig(), "chts": ChtsConfig()}, {"host": 8 * 96}),
        (
            {"rigl": RiglConfig(adam_restart="per_weight")},
            {"beside": 4 * 96, "passing": 800, "host": 4 * 96},
        ),
        ({"replay": ReplayConfig(sequences=5)}, {"host": 16 * 5}),
        (
            {"derpp": DerppConfig(sequences=5, top=3)},
            {"host": 16 * 5 + 5 * 10 * (8 * 3 + 4), "passing": 4000},
        ),
        # No more than the vocabulary has.
        (
            {"derpp": DerppConfig(sequences=5)},
            {"host": 16 * 5 + 5 * 10 * (8 * 20 + 4), "passing": 4000},
        ),
        # 11 tokens of a sequence, and 2 of a prompt for each of two phases.
        ({"self_replay": SelfReplayConfig(sequences=5, prompt=2)}, {"host": 4 * 5 * (11 + 4)}),
        (
            {"lwf": LwfConfig()},
            {"beside": 4 * 1000, "kept": 7000, "passing": 4000 + 16 * 1000},
        ),
        ({"lwf": LwfConfig(alpha=0.0)}, {}),
        # Gradients in bf16 and fp32, and this rank's part of one reference or of two.
        (
            {"agem": AgemConfig(sequences=5)},
            {"passing": 6 * 1500 + 4 * 1000, "host": 16 * 5 * 2},
        ),
        (
            {"gem": GemConfig(sequences=5)},
            {"passing": 6 * 1500 + 2 * 4 * 1000, "host": 16 * 5 * 2},
        ),
        # Holds, the value of each of 96 cells, and a bit of each in three phases.
        ({"dst_cl": DstClConfig()}, {"beside": 6000, "host": 8 * 96 + 36}),
        (
            {"dst_cl": DstClConfig(growth="momentum")},
            {"beside": 6000, "passing": 800, "host": 16 * 96 + 36},
        ),
        (
            {"dst_cl": DstClConfig(growth="unfired")},
            {"beside": 6000, "host": 8 * 96 + 48},
        ),
        # And for the 64 weights of up a score, in a step two more, and as a matrix.
        (
            {"afaf": AfafConfig()},
            {
                "beside": 6000 + 4 * 64,
                "update": 8 * 64,
                "kept": 24 * 16,
                "host": 8 * 96 + 36 + 4 * 64,
            },
        ),
        ({"sparcl": SparclConfig()}, {"beside": 4 * 96, "host": 8 * 96}),
        ({"sparcl": SparclConfig(band=0.0, keep=1.0)}, {"host": 4 * 96}),
        # A mean for each input of up; what goes into q and up is more than up and down asleep.
        ({"sleep_replay": SleepReplayConfig()}, {"kept": 4 * 4, "passing": 4 * 50 * (4 + 4)}),
        ({"sleep_replay": SleepReplayConfig(increase=0.0, decrease=0.0)}, {}),
        # Names, a mark of each master, and 20 bytes for each of the 64 weights of up.
        ({"hst": HstConfig(sequences=5)}, {"host": 16 * 5, "update": 1000 + 20 * 64}),
        ({"hst": HstConfig(sleep=0.0, down_scaling=0.0)}, {}),
        (
            {"wscl": WsclConfig(sequences=5, top=3)},
            {
                "host": 16 * 5 + 5 * 10 * (8 * 3 + 4),
                "beside": 6000,
                "passing": 4000 + 6 * 1500 + 8 * 1000 + 7000,
            },
        ),
        (
            {"wscl": WsclConfig(sequences=5, top=3, variant="described")},
            {
                "host": 16 * 5 + 5 * 10 * (8 * 3 + 4),
                "passing": 4000,
                "beside": 6000 + 4000,
                "update": 1000 + 20 * 64,
            },
        ),
        ({"cbp": CbpConfig()}, {"kept": 32 * 16, "host": 8 * 16}),
        (
            {"cbp": CbpConfig(adam_restart="per_weight")},
            {"kept": 32 * 16, "host": 8 * 16, "beside": 4 * 64},
        ),
        ({"redo": RedoConfig()}, {"kept": 24 * 16}),
        ({"redo": RedoConfig(adam_restart="per_weight")}, {"kept": 24 * 16, "beside": 4 * 64}),
        ({"shrink_perturb": ShrinkPerturbConfig()}, {"update": 28 * 300}),
        ({"shrink_perturb": ShrinkPerturbConfig(sigma=0.0)}, {}),
        ({"upgd": UpgdConfig()}, {"beside": 4000, "update": 8000 + 40 * 300}),
        ({"upgd": UpgdConfig(protecting=False, sigma=0.0)}, {}),
        # RANK has no down, whose products it would hold.
        ({"upgd": UpgdConfig(utility="feature")}, {"kept": 16 * 16, "update": 4000 + 40 * 300}),
        # 5 sequences.
        ({"dropout": DropoutConfig()}, {"kept": 5 * (4 * 16 + 28 * 16)}),
        ({"dropout": DropoutConfig(p=0.0)}, {}),
        ({"l1": L1Config()}, {"update": 12 * 300}),
        ({"l1": L1Config(towards="start")}, {"beside": 4000, "update": 12 * 300}),
        ({"l1": L1Config(towards="start", strength=0.0)}, {}),
        ({"l2": L2Config()}, {"passing": 4 * 300}),
        ({"l2_init": L2InitConfig()}, {"beside": 4000, "passing": 4 * 300}),
        ({"l2_init": L2InitConfig(strength=0.0)}, {}),
        # What stays adds up; updates come one after the other.
        (
            {"ewc": EwcConfig(), "set": SetConfig(), "shrink_perturb": ShrinkPerturbConfig()},
            {"beside": 8000, "update": 8400, "host": 4 * 96},
        ),
    ],
)
def test_memory_by_hand(methods, expected):
    assert MethodsConfig(**methods).kept(RANK) == MethodMemory(**expected)


def test_bytes_of_a_memory_by_hand():
    """50 tokens with 2 queries in bf16: 6 numbers, 3 reads, scores of 8 half keys, 9 pairs."""
    down = LayerShape("layers.0.mlp.down", "down", 4, 16)
    config = MemoryConfig(keys=4, key_width=6, heads=2, reads=3, sgd=1.0)
    assert MethodsConfig(memory=config).kept(replace(RANK, layers=(*LAYERS, down))) == MethodMemory(
        beside=6 * 1000,
        kept=8 * 16,
        passing=50 * 2 * (2 * 6 + 3 * 42 + 8 * 6 + 4 * 9),
        update=4 * 300,
        host=40 * 16,
    )


@pytest.mark.parametrize("block", METHODS)
def test_a_config_says_whether_its_method_asks_for_logits(block):
    """The ledger counts logits by the former, a run keeps them by the latter."""
    config, asks = BLOCKS[block](), block in ("derpp", "lwf", "wscl")
    assert config.keeps_logits == METHODS[block](config).needs_outputs == asks


def test_distillation_of_no_weight_asks_for_none():
    config = MethodsConfig(lwf=LwfConfig(alpha=0.0))
    assert not config.keeps_logits and not build_methods(config).needs_outputs
    assert MethodsConfig(lwf=LwfConfig(), ewc=EwcConfig()).keeps_logits


def test_runs_without_the_new_keys_keep_their_digest():
    """The folder of a run is found by it."""
    old = "44132023dd4d08b27dcf8549239404aa65960071f9330cedcee264ad1c8ee029"
    assert digest(MethodsConfig(ewc=EwcConfig(), o_lora=OLoraConfig())) == old
    assert digest(MethodsConfig(ewc=EwcConfig(fisher="true"), o_lora=OLoraConfig())) != old
