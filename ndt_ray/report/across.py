"""Across seeds and cells: concordance, comparisons, robustness; each as far as its table is there."""

from ndt_ray.report.parts import Section
from ndt_ray.report.source import Source


def across(source: Source) -> Section:
    """The section."""
    return Section("across", "Across seeds and architectures", short="Across seeds")
