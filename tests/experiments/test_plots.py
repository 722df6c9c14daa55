"""The pictures are produced, are not blank, and show what they claim."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from sparsecl.errors import DataError, MissingInputError
from sparsecl.experiments import plots
from sparsecl.experiments.plots import runs, style, topology
from sparsecl.metrics.matrix import ResultMatrix
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize
from tests.metrics.fake_run import header, write_lines, write_run


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Fewer pixels: the tests ask what is drawn, not how finely."""
    monkeypatch.setattr(style, "DPI", 40)


def ink(path):
    """Share of pixels that are not white."""
    return float((imread(path)[..., :3] < 0.98).any(axis=-1).mean())


@pytest.mark.parametrize(
    ("num_domains", "order"), [(2, None), (5, None), (2, [0, 1, 0]), (20, None)]
)
def test_a_png_that_is_not_blank(tmp_path, num_domains, order):
    domains = [f"domain{i}" for i in range(num_domains)]
    folder = write_run(tmp_path / "run", domains=domains, order=order)
    plots.forgetting_plot(folder, tmp_path / "out" / "plot.png")
    file = tmp_path / "out" / "plot.png"
    assert file.read_bytes().startswith(b"\x89PNG")
    assert 0.1 < ink(file) < 0.9
    assert [f.name for f in file.parent.iterdir()] == ["plot.png"]  # no temporary file is left


def test_equal_records_give_equal_bytes(tmp_path):
    records = read_records(write_run(tmp_path / "run", domains=("code", "math")))
    for name in ("a.png", "b.png"):
        plots.forgetting_plot(records, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_curves_hold_the_scores_and_the_own_phase_is_thicker(tmp_path):
    records = read_records(write_run(tmp_path, domains=("code", "math")))
    axes = Figure().subplots()
    runs._label_ends(axes, runs._draw_curves(axes, records))
    thin = [line for line in axes.lines if line.get_linewidth() == 1.5]
    thick = [line for line in axes.lines if line.get_linewidth() > 4]
    assert len(thin) == len(thick) == 2
    expected = [e.bits_per_byte for e in records.evaluations if e.domain == "code"]
    assert thin[0].get_ydata().tolist() == expected
    phase = 100 * 4096
    assert (thick[0].get_xdata()[0], thick[0].get_xdata()[-1]) == (0, phase)
    assert (thick[1].get_xdata()[0], thick[1].get_xdata()[-1]) == (phase, 2 * phase)
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("code") == texts.count("math") == 2  # above the phase, beside the curve


def test_the_matrix_shows_every_number_and_one_frame_a_phase(tmp_path):
    records = read_records(write_run(tmp_path, domains=("code", "math")))
    matrix = ResultMatrix.from_records(records)
    axes = Figure().subplots()
    runs._draw_matrix(axes, matrix)
    assert [t.get_text() for t in axes.texts] == [f"{v:.2f}" for v in matrix.loss.ravel()]
    assert len(axes.patches) == 2


def test_labels_do_not_overlap():
    axes = Figure().subplots()
    axes.set_ylim(0, 1)
    runs._label_ends(axes, [(0.5, f"d{i}", "black") for i in range(12)] + [(1.0, "top", "black")])
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert np.diff(heights).min() > 0.044 and heights[-1] <= 1.0


def test_partial_and_diverged_runs_are_drawn(tmp_path):
    folder = write_run(tmp_path / "run", domains=("code", "math"))
    lines = (folder / "scalars.jsonl").read_text().splitlines()
    for keep in (3, 20, 60):  # row 0 only; within phase 0; within phase 1
        (folder / "scalars.jsonl").write_text("\n".join(lines[:keep]))
        plots.forgetting_plot(folder, tmp_path / "partial.png")
        assert ink(tmp_path / "partial.png") > 0.05
    text = "\n".join(lines).replace('"loss_sum": 4', '"loss_sum": null, "was": 4')
    assert "null" in text
    (folder / "scalars.jsonl").write_text(text)
    plots.forgetting_plot(folder, tmp_path / "diverged.png")
    assert ink(tmp_path / "diverged.png") > 0.05


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(MissingInputError):
        plots.forgetting_plot(tmp_path / "nowhere", tmp_path / "a.png")
    write_lines(tmp_path / "scalars.jsonl", [header(["code"], [0])])
    with pytest.raises(DataError, match="no evaluations"):
        plots.forgetting_plot(tmp_path, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_bars_leave_out_the_domain_that_nothing_followed(tmp_path):
    folders = [write_run(tmp_path / n, name=n, forgetting=f) for n, f in (("a", 0.2), ("b", 0.6))]
    records = [read_records(folder) for folder in folders]
    summaries = [summarize(run) for run in records]
    heights = runs._forgotten(summaries[0], summaries[0]["domains"], True)
    assert np.isnan(heights).tolist() == [False, False, False, False, True]
    assert heights[0] == summaries[0]["forgetting"]["per_domain"]["code"]
    for copies in (1, 2):  # with curves, and too many for them
        path = tmp_path / f"{copies}.png"
        plots.comparison_plot(records * copies, summaries * copies, path)
        assert ink(path) > 0.05
    with pytest.raises(ValueError, match="no domain in common"):
        plots.comparison_plot([], [], tmp_path / "none.png")


def test_labels_stand_at_the_ends_of_their_curves_on_a_common_scale(tmp_path, monkeypatch):
    """The second run reaches higher than the first, and sets the scale of both panels."""
    limits = []
    monkeypatch.setattr(runs, "_label_ends", lambda axes, ends: limits.append(axes.get_ylim()))
    folders = [write_run(tmp_path / f"{f}", forgetting=f) for f in (0.1, 3.0)]
    records = [read_records(folder) for folder in folders]
    summaries = [summarize(run) for run in records]
    plots.comparison_plot(records, summaries, tmp_path / "both.png")
    (left, right), ends = limits, [run.evaluations for run in records]
    assert left == right and left[1] >= max(e.inside.bits_per_byte for e in ends[1])


def mask_picture(mask):
    return plots.MaskPicture(title="layer", mask=mask, singular_values=(3.0, 1.5), bound=2.0)


def test_topologies_are_drawn_with_and_without_masks(tmp_path):
    mask = np.random.default_rng(0).random((40, 20)) < 0.3
    curve = plots.ReachPicture(label="a", mean=(0.1, 0.5), minimum=(0.0, 0.2), maximum=(0.2, 1.0))
    plots.topology_plot([mask_picture(mask)] * 2, [curve], tmp_path / "a.png")
    plots.topology_plot([], [curve], tmp_path / "dense.png")
    assert ink(tmp_path / "a.png") > 0.1 and ink(tmp_path / "dense.png") > 0.02
    assert imread(tmp_path / "a.png").shape[0] > 2 * imread(tmp_path / "dense.png").shape[0]


def test_a_mask_is_drawn_weight_by_weight_or_as_local_density():
    small = np.eye(4, dtype=bool)
    shares, size = topology._local_density(small)
    assert size == 1 and (shares == small).all()
    # 600 x 2 in tiles of 3 x 3; the one column of tiles is 2 wide. One row of each tile lives.
    tall = np.zeros((600, 2), dtype=bool)
    tall[::3] = True
    shares, size = topology._local_density(tall)
    assert size == 3 and shares.shape == (200, 1) and np.allclose(shares, 1 / 3)
    shares, _ = topology._local_density(np.ones((601, 2), dtype=bool))
    assert shares.shape == (201, 1) and np.allclose(shares, 1.0)


def test_degrees_are_counted_in_whole_numbers():
    mask = np.zeros((3, 6), dtype=bool)
    mask[0, :4] = mask[1, :2] = True
    axes = Figure().subplots()
    topology._draw_degrees(axes, mask)
    rows = axes.containers[0]
    counts = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in rows}
    assert counts == {0: 1, 1: 0, 2: 1, 3: 0, 4: 1}


def test_reach_and_spectrum_show_their_numbers():
    axes = Figure().subplots()
    curve = plots.ReachPicture(label="a", mean=(0.1, 0.5), minimum=(0.0, 0.2), maximum=(0.2, 1.0))
    topology._draw_reach(axes, [curve, curve])
    assert [line.get_ydata().tolist() for line in axes.lines] == [[0.1, 0.5]] * 2
    axes = Figure().subplots()
    topology._draw_spectrum(axes, mask_picture(np.eye(3, dtype=bool)))
    assert list(axes.lines[0].get_ydata()) == [3.0, 1.5]
    assert list(axes.lines[1].get_ydata()) == [2.0, 2.0]


@pytest.mark.parametrize("num_arms", [12, 71])
def test_a_long_legend_leaves_the_panels_their_height(num_arms):
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    axes = figure.subplots()
    names = [f"sparse_method_{k}" for k in range(num_arms)]
    style.legend_above(figure, [axes.plot([0, 1], [0, 1])[0] for _ in names], names)
    style.freeze(figure)
    assert axes.get_position().height * figure.get_figheight() > 2.7
