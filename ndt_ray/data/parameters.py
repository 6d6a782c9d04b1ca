"""The parameters of a function that a sweep file names, checked against its signature."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.spec.values import checked

RESERVED = ("root",)
"""Where files lie is no property of a data set: it comes from the machine, never from a sweep file."""


def full_parameters(where: str, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a data set's function: those `given`, checked against its annotations, and its defaults.

    SpecError, starting with `where`, for one that is unknown, missing or of the wrong type or range.
    """
    signature = inspect.signature(function)
    known = {name: p for name, p in signature.parameters.items() if name not in RESERVED}
    hints = typing.get_type_hints(function, include_extras=True)
    for name in given:
        if name in RESERVED:
            raise SpecError(f"{where}: '{name}' is no parameter; set NDT_DATA to the folder of data sets")
        if name not in known:
            listed = did_you_mean(name, known) or " - it has none"
            raise SpecError(f"{where}: unknown parameter '{name}'{listed}")
    full = {}
    for name, parameter in known.items():
        if name in given:
            full[name] = checked(f"{where}: {name}", hints.get(name, Any), given[name])
        elif parameter.default is inspect.Parameter.empty:
            raise SpecError(f"{where}: parameter '{name}' is missing")
        else:
            full[name] = parameter.default
    return full
