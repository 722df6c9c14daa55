"""A script that saves a tiny GPT as DeepSpeed does, of one rank: STAGE STORAGE FOLDER PORT."""

import os
import sys
from pathlib import Path

import torch

from sparsecl import config as configs
from sparsecl.engine.run_config import RunConfig
from sparsecl.model.build import build_gpt


def save(stage: int, storage: str, folder: Path, port: str) -> None:
    """Write FOLDER/zero (DeepSpeed's), FOLDER/config.yaml and FOLDER/before.pt (the weights)."""
    import deepspeed

    folder.mkdir()
    model = "model={preset: null, layers: 2, width: 32, heads: 4, context: 16}"
    rest = ["topology.density=0.25", f"topology.storage={storage}", "tokenizer.kind=bytes"]
    config = configs.load(RunConfig, None, [model, *rest])
    (folder / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
    built = build_gpt(config.model, config.topology, vocab_size=257, seed=config.seed)
    before = {name: param.detach().clone() for name, param in built.named_parameters()}
    torch.save(before, folder / "before.pt")
    # As in engine/build.py: nothing is compiled.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, LOCAL_RANK="0")
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, rank=0, world_size=1)
    engine, *_ = deepspeed.initialize(
        model=built,
        model_parameters=built.parameters(),
        config={
            "train_batch_size": 1,
            "optimizer": {"type": "Adam", "params": {"torch_adam": True}},
            "zero_optimization": {"stage": stage},
        },
    )
    engine.save_checkpoint(str(folder / "zero"))


if __name__ == "__main__":
    save(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4])
