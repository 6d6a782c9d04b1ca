"""The detector on trial: a registered one, or a function of the user's, asked the same question in the same way.

A user's function is named `path/file.py:name` and called with (steps, values), two arrays of one length. It returns
what it found: middles of the changes in steps, in any order, or an object with `step_before` and `step_after` (as our
detectors do). An attribute `p` of what it returns is taken as the p-value of the series.
"""

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ndt_ray.analysis import detection, nulls
from ndt_ray.errors import NdtError, SpecError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What a detector says of one series.

    `location`: middles of the events, in measurements, rising. `p`: of the series; NaN where the detector gives none.
    `p_event`: one per event; NaN without. `marked`: why the detector declines to judge the series; empty: it does not.
    """

    location: Floats
    p: float = float("nan")
    p_event: Floats | None = None
    marked: str = ""


@dataclass(frozen=True)
class Subject:
    """A detector by the name it was asked for, with its parameters and a hash of its code.

    `judge`: series `[count, n]` and keys, one a series, from which anything random is seeded → one `Found` a series.
    `gives_p`: whether it may give p-values.
    """

    name: str
    parameters: Mapping[str, Any]
    code: str
    judge: Callable[[Floats, list[str]], list[Found]]
    gives_p: bool

    @property
    def label(self) -> str:
        """A name for files: the detector's, then 8 hex digits of its parameters and code."""
        said = json.dumps([self.name, dict(self.parameters), self.code], sort_keys=True)
        stem = re.sub(r"[^\w.-]+", "_", self.name.rpartition("/")[2])
        return f"{stem}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def subject(name: str, parameters: Mapping[str, Any] | None = None) -> Subject:
    """The detector of this name, or the function of a file; SpecError where there is none."""
    if ".py:" in name:
        if parameters:
            raise SpecError(f"{name}: a function takes steps and values only, but got parameters {sorted(parameters)}")
        path, function = load(name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Subject(name, {}, digest, lambda values, keys: _one_by_one(function, values, name), gives_p=True)
    detector = detection.make(name, parameters)
    told = detector.parameters()
    if hasattr(detector, "judge"):  # it computes p-values
        return Subject(name, told, _code(), lambda v, keys: _judged(detector, v, keys), gives_p=True)
    return Subject(name, told, _code(), lambda v, keys: _one_by_one(detector, v, name), gives_p=False)


def for_rates(judged: Subject) -> Subject | None:
    """The same detector for rates (velocities), where it tells them from levels."""
    if judged.gives_p and judged.parameters.get("shape") == "level":
        return subject(judged.name, {**judged.parameters, "shape": "rate"})
    return None


def _code() -> str:
    """SHA-256 of the source of all detectors, and of what draws their numbers."""
    files = [*sorted(Path(detection.__file__).parent.glob("*.py")), Path(nulls.__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _judged(detector: Any, values: Floats, keys: list[str]) -> list[Found]:
    """All candidate events with their p, as the detector's `judge` gives them."""
    found = []
    for series, key in zip(values, keys, strict=True):
        said = detector.judge(series, key)
        events = sorted(said.events, key=lambda e: e.location)
        places, p = (np.array([getattr(e, name) for e in events], np.float64) for name in ("location", "p"))
        found.append(Found(places, float(said.p), p, "" if said.calibrated else str(said.kind)))
    return found


def _one_by_one(detector: Callable[[Any, Any], Any], values: Floats, name: str) -> list[Found]:
    steps = np.arange(values.shape[-1], dtype=np.int64)
    found = []
    for i, series in enumerate(values):
        try:
            said = detector(steps, series.copy())
        except NdtError:
            raise
        except Exception as error:
            raise SpecError(f"{name} raises on series {i}: {type(error).__name__}: {error}") from error
        found.append(_found(said, name))
    return found


def _found(said: Any, name: str) -> Found:
    """What a detector returned, in measurements (steps are 0, 1, 2, …); SpecError for what is no list of places."""
    p = getattr(said, "p", float("nan"))
    try:
        if hasattr(said, "step_before"):
            location = (np.asarray(said.step_before, np.float64) + np.asarray(said.step_after, np.float64)) / 2
        else:
            location = np.asarray(list(cast(Iterable[float], said)), dtype=np.float64)
        if location.ndim != 1 or not np.isfinite(location).all():
            raise TypeError(f"not a list of finite numbers, but shape {location.shape}")
        return Found(np.sort(location), float("nan") if p is None else float(p))
    except (TypeError, ValueError) as error:
        raise SpecError(f"{name} must return the steps of its events (a list of numbers) - {error}") from error


def load(target: str) -> tuple[Path, Callable[..., Any]]:
    """(file, function) of `path/file.py:name`; SpecError says what is missing."""
    text, _, name = target.rpartition(":")
    path = Path(text).expanduser().absolute()
    if not name.isidentifier() or not text.endswith(".py"):
        raise SpecError(f"'{target}' is not of the form path/file.py:function")
    if not path.is_file():
        raise SpecError(f"there is no file {path}")
    function = getattr(_module(path), name, None)
    if not callable(function):
        raise SpecError(f"{path} defines no function '{name}'")
    return path, cast(Callable[..., Any], function)


def _module(path: Path) -> ModuleType:
    key = f"ndt_detector_{hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:16]}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses look the module of a class up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise SpecError(f"{path} raises on import: {type(error).__name__}: {error}") from error
    return module
