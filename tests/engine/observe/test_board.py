"""What is drawn in TensorBoard, read back from the event files."""

import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import backend_context, metadata

from sparsecl.engine.observe import board
from sparsecl.engine.observe.display import WIDTH, evaluation_line
from sparsecl.engine.run_config import RunConfig
from sparsecl.log import RunLog
from sparsecl.topology.layer import LayerTopology


def events(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_a_run_is_one_folder_so_that_it_has_one_colour(tmp_path):
    log = RunLog(tmp_path)
    log.scalars({"loss/code": 3.0, "loss/math": 4.0}, tokens=0)
    log.scalars({"forgetting/code": 1.0}, tokens=100, rare=True)
    log.layout(board.LAYOUT)
    log.hparams({"seed": 0}, ["loss/code"])
    log.close()
    assert [path.name[:19] for path in (tmp_path / "tb").rglob("*")] == ["events.out.tfevents"]


def test_a_resumed_curve_has_no_points_of_the_lost_part(tmp_path):
    log = RunLog(tmp_path)
    log.scalars({"loss/code": 3.0}, tokens=0)
    size = log.sync()
    log.scalars({"loss/code": 9.0}, tokens=10)
    log.close()
    log = RunLog(tmp_path, resume_at=size, purge_tokens=0)
    log.scalars({"loss/code": 2.0}, tokens=20)
    log.close()
    points = events(tmp_path / "tb").Scalars("loss/code")
    assert [(p.step, p.value) for p in points] == [(0, 3.0), (20, 2.0)]


def in_view(values: list[float]) -> list[float]:
    """The values of a card that TensorBoard shows: the rule of its line charts (TIME SERIES), with
    *Ignore outliers in chart scaling* ticked, as it is at first."""
    values = sorted(values)
    last = len(values) - 1
    low, high = values[math.ceil(0.05 * last)], values[math.floor(0.95 * last)]
    return [value for value in values if low <= value <= high]


@pytest.mark.parametrize(("rare", "shown"), [(True, 6), (False, 4)])
def test_no_forgetting_is_taken_for_an_outlier(tmp_path, rare, shown):
    """Three runs, two phase ends each; the run that forgets most must be seen."""
    values = []
    for run, slope in enumerate([0.1, 0.3, 2.0]):
        folder = tmp_path / str(run)
        folder.mkdir()
        log = RunLog(folder)
        for phase in (1, 2):
            log.scalars({"forgetting/F_last": slope * phase}, tokens=1000 * phase, rare=rare)
        log.close()
        points = events(folder / "tb").Scalars("forgetting/F_last")
        assert points[-1].step == 2000
        by_step = {point.step: point.value for point in points}  # TensorBoard keeps one of a step
        assert list(by_step) == sorted(by_step)
        values += by_step.values()
    assert len({round(value, 6) for value in in_view(values)}) == shown


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


def test_topology_and_seed_are_the_first_columns(tmp_path):
    """In the order that TensorBoard itself gives them."""
    log = RunLog(tmp_path)
    log.hparams(board.flat_hparams(RunConfig()), ["forgetting/F_last"])
    log.close()
    card = events(tmp_path / "tb").summary_metadata["_hparams_/experiment"].plugin_data
    experiment = metadata.parse_experiment_plugin_data(card.content)
    backend_context._sort_and_reduce_to_hparams_limit(experiment)
    columns = [column.name for column in experiment.hparam_infos]
    assert set(columns[:2]) == {"topology", "seed"}
    assert columns[2:] == sorted(set(board.flat_hparams(RunConfig())) - {"topology", "seed"})


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
