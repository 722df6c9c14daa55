"""The table of whole models on one device: what is measured, and how it reads."""

import pytest

from sparsecl.benchmarks import gpu_table
from sparsecl.errors import UserError
from sparsecl.programs import bench


def options(*flags):
    return bench.parser().parse_args(["--gpu_table", *flags])


def test_what_is_measured():
    found = gpu_table.run_configs(options("--precision", "bf16", "--compile"))
    assert list(found) == ["100m", "500m", "1b"]
    for runs in found.values():
        densities = {name: run.topology.density for name, run in runs.items()}
        del densities["dense"]
        assert densities == {"masked": 0.1, "packed": 0.1, "packed_block": 0.2}
        assert runs["dense"].topology.kind == "dense"
        assert runs["packed_block"].topology.block.size == 64
        assert all(run.precision == "bf16" and run.speed.compile for run in runs.values())
    assert [found[name]["dense"].batch.micro for name in found] == [16, 8, 8]  # 16,384 tokens


def test_flags_that_are_out_of_range():
    with pytest.raises(UserError, match="--peak_tflops must be > 0"):
        gpu_table.run_configs(options("--peak_tflops", "0"))


def test_the_table_by_hand():
    row = {
        "preset": "100m",
        "arm": "dense",
        "density": 1.0,
        "micro": 16,
        "formula_bytes": 12_340_000_000,
    }
    measured = {
        "seconds": {"step": [0.3, 0.1, 0.2]},
        "tokens_per_second": 247_500.0,
        "utilisation": {"sheet": 0.2144, "product": 0.2685},
        "peak_bytes": 12_500_000_000,
    }
    result = {
        "environment": {"device": "NVIDIA H200"},
        "peaks": {"sheet": 989.5e12, "product": 790e12},
        "rows": [{**row, **measured}, {**row, "arm": "packed", "problem": "out of memory"}],
    }
    head, names, dense, packed = gpu_table.table(result).splitlines()
    assert head == "NVIDIA H200; data sheet 989.5 TFLOP/s, a large product here 790 TFLOP/s"
    assert names.endswith("of goal")
    assert dense.split()[4:] == ["200.00", "247,500", "21.4%", "26.9%", "12.50", "12.34", "50.0%"]
    assert "out of memory; by the formulas 12.34 GB" in packed
