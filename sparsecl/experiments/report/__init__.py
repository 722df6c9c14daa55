"""A study as a page, figures and tables that can be read, printed and pasted into a paper."""

from sparsecl.experiments.report.write import write_report

__all__ = ["write_report"]
