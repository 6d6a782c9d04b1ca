"""Order and timing: when layers settle and in which order, critical periods, growth, types of events."""

import pandas as pd

from ndt_ray.report.parts import Section
from ndt_ray.report.source import Source


def settled_layers(source: Source) -> pd.DataFrame | None:
    return None


def order(source: Source) -> Section:
    """The section."""
    return Section("order", "Order and timing")
