"""What a report is made of: figures and sections, by what the runs of the study are on."""

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import Comparison
from sparsecl.experiments.findings.trends import Trends
from sparsecl.experiments.plots.stream_study import stream_figures
from sparsecl.experiments.plots.study import StudyFigure, study_figures
from sparsecl.experiments.report.page import Section
from sparsecl.experiments.report.sections import Material, sections
from sparsecl.experiments.report.stream_sections import stream_sections


def figures_of(study: Study, comparison: Comparison, found: Trends) -> list[StudyFigure]:
    """All figures, in the order of the report."""
    if study.plan.subject == "stream":
        return stream_figures(study, comparison)
    return study_figures(study, comparison, found)


def sections_of(material: Material) -> list[Section]:
    """All sections; every table of theirs is then in `material.tables`."""
    of_stream = material.study.plan.subject == "stream"
    return stream_sections(material) if of_stream else sections(material)
