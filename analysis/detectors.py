"""Moved to ndt_ray.analysis.detection; kept while imports move over."""

from ndt_ray.analysis.detection import (  # noqa: F401
    Bools,
    Events,
    Floats,
    Ints,
    checked,
    longest_stretch,
    make,
    merged,
    names,
    uniform_grid,
)
from ndt_ray.analysis.detection import Rule as Detector  # noqa: F401
from ndt_ray.analysis.detection.original import DifferenceZ, RollingLevel, SmoothedGradient  # noqa: F401
