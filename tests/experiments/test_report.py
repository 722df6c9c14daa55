"""The report: every number is that of the run folders, every text of a user is harmless."""

import csv
import re
from dataclasses import fields, replace
from html.parser import HTMLParser

import numpy as np
import pytest
from markupsafe import escape

from sparsecl.errors import CannotCreateError
from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.compare import Comparison, arm_figure, compare
from sparsecl.experiments.findings.trends import Trends, crossovers, trends
from sparsecl.experiments.plots import lines, points, style
from sparsecl.experiments.plots.study import study_figures
from sparsecl.experiments.report import answer, methods, setting, write, write_report
from sparsecl.experiments.report.page import STYLE
from sparsecl.experiments.report.results import interference_table
from sparsecl.experiments.report.table import Column, Table, as_csv, as_html, as_latex, shown
from sparsecl.experiments.report.tables import cost_table, seeds_table
from sparsecl.experiments.study.measures import TEXT_MEASURES
from sparsecl.experiments.study.study_plan import AnalysisConfig
from sparsecl.metrics.power import detectable
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize
from tests.experiments.fake_study import FakeArm, last_forgetting, scores, write_study

HOSTILE = "ER <b>&\"'</b> $x_1$ 100% {a} \\input{b} <script>alert(1)</script>"
ARMS = (
    FakeArm(name="dense", kind="dense", density=1.0, plasticity=True, interference=True),
    FakeArm(name="er", label=HOSTILE, forgets=0.2, level=3.1, plasticity=True, interference=True),
    FakeArm(name="er.narrow", role="equal_parameters", of="er", kind="dense", forgets=0.4),
)


class Page(HTMLParser):
    """What a browser would see: tags, ids, links, and the rows of each table by its id."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.tables = [], [], [], {}
        self.table = self.cell = None
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href", "action")]
        if values.get("class") == "table":
            self.table = self.tables.setdefault(values["id"].removeprefix("table-"), [])
        if tag == "tr" and self.table is not None:
            self.table.append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.table[-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        self.text += data
        if self.cell is not None:
            self.cell += data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(study, report folder, page): one report for all tests of this file."""
    place = tmp_path_factory.mktemp("report")
    folder = write_study(
        place / "study",
        ARMS,
        seeds=range(7),
        failed={("er", 6): "loss </pre><script>alert(2)</script>"},
        question=f"Why {HOSTILE}?",
        command="python launch/sweep.py 'a&b'",
    )
    (folder / "configs" / "dense.yaml").write_text("name: '</pre><script>'\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 30)
        patch.setattr(style, "PDF_FONT", 3)  # subsets of TrueType fonts take half of the time
        study = collect(folder)
        page = write_report(study, folder / "report")
    return study, page.parent, Page(page.read_text())


def table(report, name):
    with open(report / "tables" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_runs_by_seed_are_those_of_the_records(made):
    study, report, _ = made
    rows = table(report, "seeds")
    assert len(rows) == 21
    (failed,) = [row for row in rows if row["status"] != "done"]
    assert (failed["arm"], failed["seed"], failed["status"]) == ("er", "6", "failed")
    assert not any(failed[name] for name in TEXT_MEASURES)
    for row in rows:
        if row is failed:
            continue
        folder = study.folder / "runs" / row["arm"] / f"seed{row['seed']}"
        order, loss = scores(folder)
        learned = [loss[phase + 1, i] for phase, i in enumerate(order)]
        assert float(row["F_last"]) == pytest.approx(last_forgetting(folder))
        assert float(row["final_loss"]) == pytest.approx(loss[-1].mean())
        assert float(row["learned_loss"]) == pytest.approx(np.mean(learned))
        assert float(row["first_loss"]) == pytest.approx(loss[1, order[0]])
        shares = [
            (loss[-1, i] - loss[p + 1, i]) / (loss[p, i] - loss[p + 1, i])
            for p, i in enumerate(order[:-1])
        ]
        assert float(row["NF"]) == pytest.approx(np.mean(shares))


def test_each_arm_has_its_training_tokens_per_live_parameter(made):
    study, report, page = made
    assert "tokens per live parameter" in page.tables["arms"][0]
    for row in table(report, "arms"):
        arm = study.plan.arm(row["arm"])
        share = arm.tokens / int(row["live_parameters"])
        assert float(row["tokens_per_live_parameter"]) == share
    assert "forgetting is strong near capacity" in page.text


def test_runs_of_one_seed_in_several_orders_have_a_line_each(made):
    study, _, _ = made
    both = [replace(study.results[0].run, order=order) for order in ("there", "back")]
    results = tuple(replace(study.results[0], run=run) for run in both)
    rows = list(csv.DictReader(as_csv(seeds_table(replace(study, results=results))).splitlines()))
    assert [(row["arm"], row["order"], row["seed"]) for row in rows] == [
        ("dense", "there", "0"),
        ("dense", "back", "0"),
    ]


def test_means_tests_and_matrices_follow_from_the_runs(made):
    study, report, _ = made
    runs = {arm: {} for arm in ("dense", "er", "er.narrow")}
    for row in table(report, "seeds"):
        if row["status"] == "done":
            runs[row["arm"]][int(row["seed"])] = row
    for name in ("F_last", "NF", "final_loss", "learned_loss"):
        for row in table(report, f"measure-{name}"):
            values = [float(run[name]) for run in runs[row["arm"]].values()]
            assert (int(row["seeds"]), int(row["planned_seeds"])) == (len(values), 7)
            assert float(row["mean"]) == pytest.approx(np.mean(values))
            assert float(row["sd"]) == pytest.approx(np.std(values, ddof=1))
            half = float(row["high"]) - float(row["mean"])
            quantile = {7: 2.446912, 6: 2.570582}[len(values)]  # t table, 0.975
            assert half == pytest.approx(quantile * np.std(values, ddof=1) / len(values) ** 0.5)
            assert row["boot_low"] == row["bca_low"] == ""  # not from seven seeds
    (row,) = table(report, "tests-primary")
    both = [s for s in runs["er"] if s in runs["dense"]]
    gaps = [float(runs["er"][s]["F_last"]) - float(runs["dense"][s]["F_last"]) for s in both]
    assert (int(row["seeds"]), int(row["planned_seeds"])) == (6, 7)
    assert float(row["difference"]) == pytest.approx(np.mean(gaps))
    assert float(row["p"]) == float(row["p_corrected"]) == 2 / 2**6
    assert row["verdict"] == "better"
    loss = np.mean([scores(r.folder)[1] for r in study.done("er")], axis=0)
    means = [
        [float(row[d]) for d in ("code", "math", "legal")] for row in table(report, "matrix-er")
    ]
    assert np.allclose(means, loss)


def test_the_other_tables_follow_from_the_run_folders(made):
    study, report, _ = made
    rows = {row["arm"]: row for row in table(report, "means")}
    for arm in rows:
        done = [summarize(read_records(r.folder)) for r in study.done(arm)]
        assert int(rows[arm]["seeds"]) == len(done)
        areas = [run["learning_speed"]["mean_area"] for run in done]
        assert float(rows[arm]["learning_area"]) == pytest.approx(np.mean(areas))
        assert float(rows[arm]["FWT"]) == pytest.approx(np.mean([run["fwt"] for run in done]))
    first = table(report, "interference")[0]
    assert (first["arm"], float(first["cosine"]), first["seeds"]) == ("dense", 0.5, "7")
    panel = {(row["arm"], row["figure"]): row for row in table(report, "plasticity")}
    assert [float(panel["er", "erank"][k]) for k in ("first", "last")] == [11.0, 8.0]
    cost = {row["arm"]: row for row in table(report, "cost")}
    assert float(cost["er"]["seconds"]) == pytest.approx(300 * 4096 / 9000)
    assert int(cost["er"]["flops"]) == 6 * 100_000 * 300 * 4096
    failed = {row["arm"]: row for row in table(report, "runs")}
    assert (failed["er"]["seed6"], failed["er"]["seed5"]) == ("failed", "done")


def test_what_moving_the_graph_computes_is_part_of_the_cost(made):
    study, *_ = made
    measured = ("seconds", "tokens_per_second")
    names = [arm.name for arm in study.plan.arms]
    figures = {(name, key): arm_figure(study, name, key) for name in names for key in measured}
    for more in ({}, {"gradient_flops": 5, "score_flops": 7}):
        arms = tuple(replace(arm, **more) for arm in study.plan.arms)
        moved = replace(study, plan=replace(study.plan, arms=arms))
        found = cost_table(moved, Comparison(figures=figures, contrasts=()))
        hidden = {column.key for column in found.columns if column.csv_only}
        assert hidden == (set() if more else {"gradient_flops", "score_flops"})
        keys = [column.key for column in found.columns]
        row = dict(zip(keys, found.rows[names.index("er")], strict=True))
        assert row["flops"] == 6 * 100_000 * 300 * 4096 + sum(more.values())


def test_the_page_shows_the_tables_rounded(made):
    _, report, page = made
    assert len(page.tables) == len(list((report / "tables").glob("*.csv"))) >= 15
    for name in ("measure-F_last", "seeds", "cost"):
        rows, cells = table(report, name), page.tables[name]
        assert len(cells) == len(rows) + 1
        assert [line[0] for line in cells[1:]] == [row["arm"] for row in rows]
    heading, dense = page.tables["measure-F_last"][:2]
    row = table(report, "measure-F_last")[0]
    assert heading[:5] == ["arm", "seeds", "of", "mean", "sd"]
    assert dense[3:6] == [
        f"{float(row['mean']):.4f}",
        f"{float(row['sd']):.4f}",
        f"[{float(row['low']):.4f}, {float(row['high']):.4f}]",
    ]


def test_the_answer_says_what_the_tests_say(made):
    study, _, page = made
    comparison = compare(study)
    assert answer.headline(study, comparison) in page.text
    (sentence,) = answer.sentences(study, comparison)
    assert sentence in page.text
    assert "6 of 7 seeds; p = 0.0312 (Holm over 1): better." in sentence
    assert "Control (exploratory): er minus er.narrow" in page.text


def test_failed_runs_are_named_on_top_and_in_no_average(made):
    study, _, page = made
    banner = page.text[: page.text.index("Question and hypothesis")]
    assert "20 of 21 runs are done, 1 failed" in banner
    assert "er/seed6: loss </pre><script>alert(2)</script>" in banner
    assert setting.banner(study).count("<script>") == 0


def test_text_of_users_is_text_and_nothing_is_fetched(made):
    _, report, page = made
    text = (report / "report.html").read_text()
    assert not {"script", "iframe", "img", "link", "b"} & set(page.tags)
    assert "onerror" not in text and "javascript:" not in text
    assert f"Why {HOSTILE}?" in page.text  # all of it, as written
    assert str(escape(HOSTILE)) in text
    for link in page.links:
        inside = link.startswith("#") and link[1:] in page.ids
        assert inside or (report / link).is_file(), link
    outside = set(re.findall(r"[\"'(](https?://[^\"')]+)", text))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in text and "url(http" not in text
    assert len(page.ids) == len(set(page.ids))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)


def test_figures_are_vectors_with_letters_and_their_files_are_there(made):
    _, report, page = made
    names = {path.stem for path in (report / "figures").glob("*.pdf")}
    assert names == {path.stem for path in (report / "figures").glob("*.png")}
    assert names == {i.removeprefix("figure-") for i in page.ids if i.startswith("figure-")}
    assert {"arms", "curves", "matrices", "crossover", "pareto", "level", "cost"} <= names
    assert {"interference", "plasticity"} <= names
    assert "F_last, nats per token (lower is better)" in page.text
    assert page.tags.count("svg") == len(names)
    for path in (report / "figures").glob("*.pdf"):
        assert b"CreationDate" not in path.read_bytes()


def test_a_figure_has_the_same_bytes_twice_and_colours_of_the_page(made, tmp_path):
    study, _, _ = made
    drawn = []
    for name in "ab":
        figure = points.arms_figure(study, compare(study), study.plan.arms, ["F_last"])
        style.freeze(figure)
        style.save_png(figure, tmp_path / f"{name}.png")
        style.save_pdf(figure, tmp_path / f"{name}.pdf")
        files = [(tmp_path / f"{name}.{kind}").read_bytes() for kind in ("png", "pdf")]
        drawn.append([*files, style.svg(figure, "arms")])
    assert drawn[0] == drawn[1]
    text = drawn[0][2]
    assert "var(--c0)" in text and "var(--ink)" in text and style.INK.lower() not in text
    assert text.startswith("<svg ") and 'id="arms-' in text and "width=" not in text.split(">")[0]


def test_latex_and_csv_of_hostile_text():
    columns = (Column(key="arm", heading="50% & more"), Column(key="x", heading="x_1", digits=2))
    made = Table(name="t", caption="a\nb", columns=columns, rows=((HOSTILE, 1.234), ("b", None)))
    lines = as_latex(made).splitlines()
    assert lines[0] == "% a b" and lines[1] == r"\begin{tabular}{lr}"
    assert lines[3] == r"50\% \& more & x\_1 \\"
    assert r"\$x\_1\$ 100\% \{a\} \textbackslash{}input\{b\}" in lines[5]
    assert lines[5].endswith(r"& 1.23 \\") and lines[6] == r"b & - \\"
    assert re.search(r"(?<!\\)[$%#]", "\n".join(lines[1:])) is None
    assert list(csv.reader(as_csv(made).splitlines()))[1:] == [[HOSTILE, "1.234"], ["b", ""]]
    assert Page(as_html(made)).tables["t"][1] == [HOSTILE, "1.23"]


def test_an_interval_is_one_column_for_people_and_two_for_machines():
    columns = (
        Column(key="low", heading="interval", digits=1, pair=True),
        Column(key="high", heading=""),
        Column(key="l2", heading="hidden", pair=True, csv_only=True),
        Column(key="h2", heading=""),
        Column(key="n", heading="n"),
    )
    made = Table(name="t", caption="", columns=columns, rows=((1.0, 2.0, 3.0, 4.0, 5), (None,) * 5))
    assert Page(as_html(made)).tables["t"] == [["interval", "n"], ["[1.0, 2.0]", "5"], ["-", "-"]]
    assert as_csv(made).splitlines()[:2] == ["low,high,l2,h2,n", "1.0,2.0,3.0,4.0,5"]


def test_how_cells_are_shown():
    column = Column(key="p", heading="p")
    cells = (None, "", 1234567, 0.5, 1e-9, 0.0, -1e-9, float("nan"))
    shown_as = ["-", "-", "1,234,567", "0.5000", "< 0.0001", "0.0000", "0.0000", "-"]
    assert [shown(cell, column) for cell in cells] == shown_as


def test_small_numbers_of_one_column_keep_their_digits():
    column = Column(key="kl", heading="kl", significant=True)
    cells = (7.123456e-05, -0.01234567, 0.5, 0.0, None, float("nan"))
    assert [shown(cell, column) for cell in cells] == [
        "7.123e-05", "-0.01235", "0.5", "0", "-", "-",
    ]  # fmt: skip
    nothing = Trends(**{field.name: () for field in fields(Trends)})
    assert all(column.significant for column in interference_table(nothing).columns[2:])


def test_the_arms_are_drawn_in_what_they_forget_and_in_what_they_are_in_the_end(made):
    study, _, _ = made
    figures = study_figures(study, compare(study), trends(study))
    arms = next(one.figure for one in figures if one.name == "arms")
    labels = [axes.get_xlabel().split(",")[0] for axes in arms.axes]
    assert labels == ["F_last", "NF", "final_loss"]
    assert all(axes.lines for axes in arms.axes)


def test_the_last_domain_is_drawn_whole_and_the_others_from_their_training_on(made):
    study, _, _ = made
    figure = lines.curves_figure(study, study.plan.arms)
    assert figure is not None
    *earlier, last = figure.axes

    def top(axes):
        return max(np.max(line.get_ydata()) for line in axes.lines)

    assert all(axes.get_ylim()[1] < top(axes) for axes in earlier)
    assert last.get_ylim()[1] > top(last)


def test_figures_shrink_with_the_window():
    figure = re.search(r"svg.figure \{([^}]*)\}", STYLE)
    assert figure is not None and "width: 100%; height: auto" in figure[1]
    assert "min-width" not in "".join(re.findall(r"(?:\.plot|svg)[^{]*\{[^}]*\}", STYLE))


def test_a_legend_names_the_arms_that_have_a_run(tmp_path):
    nothing = [(ARMS[-1].name, seed) for seed in range(2)]
    study = collect(write_study(tmp_path / "study", ARMS, seeds=range(2), missing=nothing))
    figure = lines.curves_figure(study, study.plan.arms)
    assert figure is not None
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [style.plain(study.plan.arm(arm.name).label) for arm in ARMS[:-1]]


def test_no_finished_run_still_makes_a_page(tmp_path):
    nothing = [(arm.name, seed) for arm in ARMS for seed in range(2)]
    folder = write_study(tmp_path / "study", ARMS, seeds=range(2), missing=nothing)
    page = Page(write_report(collect(folder), tmp_path / "out").read_text())
    assert "No run is finished, so there is no answer yet." in page.text
    assert "0 of 6 runs are done, 6 missing" in page.text
    assert [row[1:] for row in page.tables["runs"][1:]] == [["missing", "missing"]] * 3
    assert "seeds" not in page.tables


def test_a_null_is_called_equivalent_or_not_shown_never_absent(tmp_path):
    arms = [ARMS[0], FakeArm(name="same", noise=0.001), FakeArm(name="noisy", noise=0.2)]
    study = collect(write_study(tmp_path, arms, seeds=range(7), analysis=AnalysisConfig(alpha=0.1)))
    comparison = compare(study)
    headline = answer.headline(study, comparison)
    assert headline == "No planned contrast on F_last reached p <= 0.1 after Holm's correction."
    same, noisy = answer.sentences(study, comparison)
    assert "within the margin of 0.05 (TOST): equivalent within 0.05." in same
    assert "not within the margin of 0.05 (TOST): difference not shown. Such a study" in noisy
    # Two contrasts, alpha 0.1: what seven pairs of this spread show four times in five.
    contrast = comparison.family("primary")[1]
    could = detectable(contrast.test.sd, 7, alpha=0.1 / 2)
    assert f"finds a true difference of {could:.4f} nats per token in 80 % of cases" in noisy
    assert "Such a study" not in same


def test_too_few_seeds_are_no_null_result(tmp_path):
    arms = [ARMS[0], FakeArm(name="er", forgets=0.2)]
    study = collect(write_study(tmp_path, arms, seeds=range(3)))
    comparison = compare(study)
    headline = answer.headline(study, comparison)
    assert headline == "No planned contrast on F_last could be tested: too few finished seeds."
    (sentence,) = answer.sentences(study, comparison)
    assert "3 of 3 seeds; no p (3 seeds: the smallest reachable p is 0.25 > 0.05" in sentence
    assert sentence.endswith("no test: too few seeds.")


DENSITIES = [
    FakeArm(name="dense", kind="dense", density=1.0),
    *(FakeArm(name=f"rho_{k}", density=0.1 * k, forgets=0.2 + 0.05 * k) for k in (1, 2, 3)),
]


def page_of(tmp_path, monkeypatch, seeds):
    """The page without figures, as text that a reader sees."""
    monkeypatch.setattr(write, "figures_of", lambda *_: [])
    folder = write_study(tmp_path / "study", DENSITIES, seeds=range(seeds), order=(0, 1, 2) * 2)
    return Page(write_report(collect(folder), tmp_path / "out").read_text())


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_few_seeds_make_no_statement_with_a_level(tmp_path, monkeypatch, seeds):
    page = page_of(tmp_path, monkeypatch, seeds)
    headings = {cell for rows in page.tables.values() for cell in rows[0]}
    assert (
        not {"d_z", "t interval", "bootstrap interval", "TOST p", "share of resamples"} & headings
    )
    assert not re.search(r"\d %", page.text)  # no level
    assert "of resamples" not in page.text and "d_z" not in page.text
    assert "no interval (6 seeds are needed)" in page.text
    assert "There is no interval: 6 seeds are needed." in page.text
    assert f"not tested: {seeds} seed" in page.text  # the crossover
    if seeds > 1:
        assert "(seeds from -" in page.text


@pytest.mark.parametrize("seeds", [8, 10])
def test_enough_seeds_have_the_t_interval_in_front(tmp_path, monkeypatch, seeds):
    page = page_of(tmp_path, monkeypatch, seeds)
    heading = page.tables["measure-F_last"][0]
    assert "t interval" in heading and ("bootstrap interval" in heading) == (seeds == 10)
    assert "95 % interval [-" in page.text and "no interval" not in page.text
    assert {"d_z", "TOST p", "t interval"} <= set(page.tables["tests-primary"][0])


def test_what_the_methods_need_is_told_when_methods_are_compared(tmp_path):
    assert methods.flags_table(collect(write_study(tmp_path / "a", ARMS[:2], seeds=[0]))) is None
    arms = [
        ARMS[0],
        FakeArm(name="ewc", kind="dense", methods={"ewc": {"strength": 1.0}}),
        FakeArm(name="both", methods={"ewc": None, "replay": {"share": 0.5}}),
        FakeArm(name="set", methods={"set": {"every": 10}}),
        FakeArm(name="unreadable", methods={"no such": 1}),
    ]
    study = collect(write_study(tmp_path / "b", arms, seeds=[0]))
    names = list(methods.FLAGS)
    rows = {row[0]: row[1:] for row in methods.flags_table(study).rows}
    assert list(rows) == ["dense", "ewc", "both", "set"]
    assert rows["dense"] == ("dense", *[""] * 7)
    assert rows["ewc"][0] == "dense + ewc"
    assert {k for k, v in zip(names, rows["ewc"][1:], strict=True) if v} == {"B", "X"}
    assert rows["both"][0] == "fixed sparse + replay"
    assert {k for k, v in zip(names, rows["both"][1:], strict=True) if v} == {"D", "C"}
    assert rows["set"][0] == "set"


def test_the_page_tells_figures_with_identity_from_those_without(tmp_path):
    arms = [ARMS[0], FakeArm(name="told", told=0.5)]
    study = collect(write_study(tmp_path, arms, seeds=[0, 1]))
    found = methods.told_table(study)
    assert "without telling a method which domain" in found.caption
    ((name, seeds, f_last, final, f_told, final_told),) = found.rows
    assert (name, seeds) == ("told", 2)
    assert f_told == pytest.approx(f_last / 2) and final_told == pytest.approx(final / 2)
    assert f_last == pytest.approx(sum(study.values("told", "F_last").values()) / 2)


def test_what_methods_measure_of_themselves_is_a_table(tmp_path):
    known = {"methods": {"m": {"flags": "", "extra_parameters": 0}}}
    arms = [ARMS[0], FakeArm(name="other", extra=known, measures={"m": {"shared": 0.25}})]
    study = collect(write_study(tmp_path, arms, seeds=[0, 1]))
    assert methods.measured_table(study).rows == (("other", "m", "shared", 0.25),)


def test_a_report_replaces_a_report_and_nothing_else(tmp_path, monkeypatch):
    study = collect(write_study(tmp_path / "study", ARMS[:1], seeds=[0]))
    monkeypatch.setattr(write, "figures_of", lambda *_: [])
    target = tmp_path / "out"
    first = write_report(study, target).read_bytes()
    (target / "old").write_text("")
    assert write_report(study, target).read_bytes() == first
    assert not (target / "old").exists() and sorted(p.name for p in tmp_path.iterdir()) == [
        "out",
        "study",
    ]
    monkeypatch.setattr(write, "as_latex", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(study, target)
    assert (target / "report.html").read_bytes() == first
    assert len(list(tmp_path.iterdir())) == 2  # no half of a report is left
    with pytest.raises(CannotCreateError, match="is not a report"):
        write_report(study, tmp_path / "study")


def test_the_crossover_is_marked_or_denied(tmp_path):
    arms = [
        FakeArm(name="dense", kind="dense", density=1.0, drift=0.1, forgets=0.0),
        FakeArm(name="later", level=3.55, forgets=0.0),
        FakeArm(name="never", level=4.5, forgets=0.0),
    ]
    study = collect(write_study(tmp_path, arms, seeds=range(6), order=(0, 1, 2) * 4))
    found = crossovers(study)
    figure = lines.crossover_figure(study, study.plan.arms, found, None)
    texts = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    at = next(item.result.round for item in found if item.arm == "later")
    assert texts == [f"later:\nround {at}", "never:\nnot shown within 12\nrounds (p = 1)"]
    (dot,) = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert dot.get_xdata() == [at]
    # One that is lost again is told so.
    lost = [
        replace(item, result=replace(item.result, smoothed=(*item.result.smoothed[:-1], 0.1)))
        for item in found
    ]
    figure = lines.crossover_figure(study, study.plan.arms, lost, None)
    first = figure.axes[1].get_legend().get_texts()[0].get_text()
    assert first == f"later:\nround {at},\nnot for good"


def test_after_one_phase_nothing_can_cross(tmp_path):
    arms = [FakeArm(name="dense", kind="dense", density=1.0), FakeArm(name="sparse")]
    study = collect(write_study(tmp_path, arms, seeds=range(6), order=(0,)))
    assert crossovers(study) == []
    drawn = study_figures(study, compare(study), trends(study))
    assert "crossover" not in {figure.name for figure in drawn}


def test_every_measure_is_defined(made):
    _, report, _ = made
    assert [row["measure"] for row in table(report, "definitions")] == list(TEXT_MEASURES)
