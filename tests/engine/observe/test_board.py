"""What is drawn in TensorBoard, read back from the event files."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sparsecl.engine.observe import board
from sparsecl.engine.observe.display import WIDTH, evaluation_line
from sparsecl.log import RunLog
from sparsecl.topology.layer import LayerTopology


def events(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_a_chart_has_one_folder_for_each_curve(tmp_path):
    log = RunLog(tmp_path)
    log.chart("all/loss", {"code": 3.0, "math": 4.0}, tokens=0)
    log.chart("all/loss", {"code": 2.0}, tokens=10)
    log.close()
    code, math = events(tmp_path / "tb" / "code"), events(tmp_path / "tb" / "math")
    assert [(p.step, p.value) for p in code.Scalars("all/loss")] == [(0, 3.0), (10, 2.0)]
    assert [(p.step, p.value) for p in math.Scalars("all/loss")] == [(0, 4.0)]


def test_a_resumed_chart_has_no_points_of_the_lost_part(tmp_path):
    log = RunLog(tmp_path)
    log.chart("all/loss", {"code": 3.0}, tokens=0)
    size = log.sync()
    log.chart("all/loss", {"code": 9.0}, tokens=10)
    log.close()
    log = RunLog(tmp_path, resume_at=size, purge_tokens=0)
    log.chart("all/loss", {"code": 2.0}, tokens=20)
    log.close()
    points = events(tmp_path / "tb" / "code").Scalars("all/loss")
    assert [(p.step, p.value) for p in points] == [(0, 3.0), (20, 2.0)]


def test_hparams_write_no_scalars(tmp_path):
    log = RunLog(tmp_path)
    log.hparams({"density": 0.1}, ["forgetting/F_last"])
    log.close()
    found = events(tmp_path / "tb")
    assert found.Tags()["scalars"] == []
    assert set(found.summary_metadata) == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }


def test_forgetting_without_a_value_is_left_out():
    figures = {"F_last": 0.5, "F_std": None, "F_seed": 0.25, "NF": None}
    summary = {
        "domains": ["a", "b"],
        "forgetting": {**figures, "per_domain": {"a": 0.5, "b": None}},
    }
    assert board.forgetting_scalars(summary) == {
        "forgetting/F_last": 0.5,
        "forgetting/F_seed": 0.25,
        "forgetting/a": 0.5,
    }
    assert board.final_metrics(summary) == [
        "forgetting/F_last",
        "forgetting/F_seed",
        "validation_bits_per_byte/a",
        "validation_bits_per_byte/b",
    ]


@pytest.mark.parametrize(("side", "pixels"), [(4, 512), (128, 512), (300, 450)])
def test_a_picture_is_big_and_keeps_rows_and_columns(side, pixels):
    first_column = np.arange(side, dtype=np.int64) * side
    topology = LayerTopology("layer", side, side, first_column)
    picture = board.mask_pictures({"layer": topology})["layer"]
    assert picture.shape == (pixels, pixels)
    assert (picture[:, 0] == 1.0).all() and (picture[:, -1] == 0.0).all()


def test_an_evaluation_is_broken_between_domains_only():
    losses = {f"domain_{i}": float(i) for i in range(12)}
    lines = evaluation_line(50, losses, "domain_3").splitlines()
    assert len(lines) > 1 and all(len(line) <= WIDTH for line in lines)
    assert sum(line.count("domain_") for line in lines) == 12
    assert "[domain_3 3.000]" in lines[0]
    assert all(line.split()[-2].startswith(("domain_", "[domain_")) for line in lines)
