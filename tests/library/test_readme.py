"""The examples of sparsecl/library/README.md run as they stand, in at most ten lines."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist

from tests.distributed.pool import Pool
from tests.events import HANG
from tests.library import cases

README = Path(__file__).resolve().parents[2] / "sparsecl" / "library" / "README.md"
TEXT = README.read_text(encoding="utf-8")


def example(name: str) -> str:
    found = re.search(rf"^```python\n# {name}\n(.*?)^```", TEXT, re.M | re.S)
    assert found, name
    return found[1]


def run(name: str) -> dict[str, Any]:
    """Run an example on the small model; what it has defined."""
    if name == "ddp":
        torch_dist.init_process_group("gloo")
    names: dict[str, Any] = {"model": cases.Net(), "batches": [cases.batch(i) for i in range(20)]}
    exec(example(name), names)
    return names


def run_on_a_rank(name: str) -> int:
    names = run(name)
    assert len(names["optimizer"].state) == 6
    return names["guard"].audit(strict=True).total


@pytest.mark.parametrize("name", ["plain", "ddp", "trainer"])
def test_an_example_has_ten_lines(name: str) -> None:
    assert len([line for line in example(name).splitlines() if line]) <= 10


def test_the_plain_example_keeps_zeros() -> None:
    names = run("plain")
    layer, optimizer = names["model"].up, names["optimizer"]
    dead = ~torch.from_numpy(layer.sparsecl_mask.topology.mask())
    assert dead.sum() == 36
    for tensor in (
        layer.weight,
        layer.weight.grad,
        *list(optimizer.state[layer.weight].values())[1:],
    ):
        assert (tensor[dead] == 0).all() and (tensor[~dead] != 0).all()


@pytest.mark.dist
def test_the_example_of_ddp_keeps_zeros(pool: Pool) -> None:
    assert pool.run(run_on_a_rank, 2, "ddp") == [0, 0]


def test_the_short_calls_run() -> None:
    model, mask = cases.Net(), torch.ones(6, 8, dtype=torch.bool)
    mask[0, 0] = False
    names: dict[str, Any] = {
        "model": model,
        "layer": model.up,
        "mask": mask,
        "features": torch.randn(9, 8),
        "optimizer": cases.adamw(model),
    }
    first = re.search(r"^```python\n(?!#)(.*?)^```", TEXT, re.M | re.S)
    assert first
    exec("import sparsecl\n" + first[1], names)
    assert names["guard"].audit().total == 0


def test_the_example_of_the_trainer_keeps_zeros(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs Accelerate")
    from tests.library.test_trainer import arguments, dataset, gpt2

    names: dict[str, Any] = {
        "model": gpt2(),
        "arguments": arguments(tmp_path),
        "dataset": dataset(),
    }
    exec(example("trainer"), names)
    assert names["trainer"].state.global_step == 20


@pytest.mark.slow
def test_the_example_of_a_run_runs(tmp_path: Path) -> None:
    code = f"""
import torch
from tests.library.test_runs import TINY as config
folder, tokens = "run", torch.zeros(1, 4, dtype=torch.int64)
{example("runs")}
assert run.metrics["F_last"] is not None
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(README.parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_it_fits_the_page() -> None:
    assert [line for line in TEXT.splitlines() if len(line) > 105] == []
