"""Spectra -> columns of the tables `measurements` and `spectra`, with every measure of dimensionality."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ndt_ray.measurement.measures import GRAM_SUMS, NAMES, all_measures, participation_ratio_corrected
from ndt_ray.measurement.spectra import Spectrum
from ndt_ray.sink import Lists

Floats = NDArray[np.float64]


class Rows(NamedTuple):
    """Columns of the tables `measurements` and `spectra` but for trial_id and step; `lane` says whose each row is."""

    lane: NDArray[np.int64]
    measurements: dict[str, Any]
    spectra: dict[str, Any]


def rows(spectra: Sequence[Spectrum], keep: str | int = "full") -> Rows:
    """Columns of `measurements` and `spectra` for all layers and lanes, layer by layer, lanes in order.

    `keep`: full, none, or how many of the largest eigenvalues a row of `spectra` holds. Null is NaN, or None in
    columns of text.
    """
    lanes = [len(s.flags) for s in spectra]
    common = _common(spectra, lanes)
    centred = [np.empty((len(s.flags), 0)) if s.eigenvalues is None else s.eigenvalues for s in spectra]
    plain, uncentred = _measures(centred, [s.eigenvalues_uncentred for s in spectra])
    measurements = {
        **common,
        **plain,
        "participation_ratio_corrected": np.where(np.isnan(plain["stable_rank"]), np.nan, _corrected(spectra, lanes)),
        **{f"{name}_uncentred": values for name, values in uncentred.items()},
        "flag": [flag for s in spectra for flag in s.flags],
    }
    size = {"full": None, "none": 0}.get(keep) if isinstance(keep, str) else keep
    kept = {
        **common,
        "n_rows": _repeat([s.shape.total for s in spectra], lanes),
        "n_features": _repeat([s.shape.features for s in spectra], lanes),
        "trace": _column([s.trace for s in spectra], lanes),
        "trace_uncentred": _column([s.trace_uncentred for s in spectra], lanes),
        "mean_norm": _column([s.mean_norm for s in spectra], lanes),
        "eigenvalues": _lists([s.eigenvalues for s in spectra], lanes, size, np.float32),
        "eigenvalues_uncentred": _lists([s.eigenvalues_uncentred for s in spectra], lanes, size, np.float32),
        "gram_sums": _lists([s.gram_sums for s in spectra], lanes, None, np.float64),
        "delete_block_pr": _lists([s.delete_block_pr for s in spectra], lanes, None, np.float32),
    }
    lane = np.concatenate([np.arange(n) for n in lanes]) if lanes else np.zeros(0, np.int64)
    return Rows(lane, measurements, kept)


def _common(spectra: Sequence[Spectrum], lanes: list[int]) -> dict[str, Any]:
    return {
        "layer": [s.layer.path for s, n in zip(spectra, lanes, strict=True) for _ in range(n)],
        "layer_index": _repeat([s.layer.index for s in spectra], lanes),
        "view": [s.layer.view for s, n in zip(spectra, lanes, strict=True) for _ in range(n)],
        "n_stimuli": _repeat([s.shape.stimuli for s in spectra], lanes),
    }


def _measures(*tables: Sequence[Floats]) -> list[dict[str, Floats]]:
    """All measures of spectra `[S, r]` a layer, concatenated, for each table of layers; those of one length in one
    call."""
    spectra = [values for table in tables for values in table]
    start = np.cumsum([0, *(len(s) for s in spectra)])
    found: dict[str, Floats] = {name: np.empty(start[-1]) for name in NAMES}
    alike: dict[int, list[int]] = {}
    for i, values in enumerate(spectra):
        alike.setdefault(values.shape[1], []).append(i)
    for places in alike.values():
        where = np.concatenate([np.arange(start[i], start[i + 1]) for i in places])
        for name, values in all_measures(np.concatenate([spectra[i] for i in places])).items():
            found[name][where] = values
    ends = np.cumsum([0, *(sum(map(len, table)) for table in tables)])
    return [{name: values[a:b] for name, values in found.items()} for a, b in zip(ends, ends[1:], strict=False)]


def _corrected(spectra: Sequence[Spectrum], lanes: list[int]) -> Floats:
    if not spectra:
        return np.zeros(0)
    none = [np.full((n, len(GRAM_SUMS)), np.nan) for n in lanes]
    sums = [n if s.gram_sums is None else s.gram_sums for s, n in zip(spectra, none, strict=True)]
    return participation_ratio_corrected(np.concatenate(sums), _repeat([s.shape.stimuli for s in spectra], lanes))


def _repeat(values: list[int], lanes: list[int]) -> NDArray[np.int64]:
    return np.repeat(np.array(values, dtype=np.int64), lanes)


def _column(parts: Sequence[Floats | None], lanes: list[int]) -> Floats:
    return np.concatenate(
        [np.full(n, np.nan) if p is None else p for p, n in zip(parts, lanes, strict=True)] or [np.zeros(0)]
    )


def _lists(parts: Sequence[Floats | None], lanes: list[int], size: int | None, dtype: type) -> Lists:
    # A lane on its way to infinity may be too large for float32 before it is for float64: it is inf here.
    with np.errstate(over="ignore"):
        return Lists([n if p is None else p[:, :size].astype(dtype) for p, n in zip(parts, lanes, strict=True)])
