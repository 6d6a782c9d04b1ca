"""Which late units go with which early ones: a graph of dependencies between any two layers, with its null beside it.

An edge is a correlation over stimuli. The founding plan draws one where r > 0.7; here it is drawn where the
Benjamini-Hochberg q over all pairs of units of the two layers holds against stimuli permuted in the late layer. Beside
it stand the correlation shrunk towards 0 (Schäfer & Strimmer 2005), which few stimuli call for, and what the early unit
alone predicts of the late one on stimuli left out. Two units that follow the same class correlate without one feeding
the other: an edge is a hypothesis for an intervention.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.inference.multiplicity import bh
from ndt_ray.analysis.mechanisms.composition import DEPENDENT, FOLDS, correlations
from ndt_ray.analysis.mechanisms.context import Layer
from ndt_ray.analysis.nulls import generator
from ndt_ray.errors import SpecError
from ndt_ray.store.schema import Column, Table

Floats = NDArray[np.float64]

_KEY = (
    Column("trial_id", "string", "content hash of the trial"),
    Column("step", "int32", "optimizer updates done; 0 is the initialisation", "steps"),
    Column("early_layer", "string", "module path of the layer nearer to the input"),
    Column("early_layer_index", "int16", "its place in the forward pass"),
    Column("layer", "string", "module path of the layer nearer to the output"),
    Column("layer_index", "int16", "its place in the forward pass"),
)

EDGES = Table(
    "dependency_edges",
    "Units of a late layer that go with units of an early one: significant, or by the founding rule.",
    (
        *_KEY,
        Column("early_unit", "int32", "place in the early layer"),
        Column("unit", "int32", "place in the late layer"),
        Column("r", "float64", "Pearson correlation over the stimuli of the confirm probe"),
        Column("r_shrunk", "float64", "the same shrunk towards 0, as far as its error over the pairs asks for"),
        Column("r2_left_out", "float64", "share of the late unit's variance predicted on stimuli left out; may be < 0"),
        Column("p", "float64", "two-sided, against stimuli permuted in the late layer"),
        Column("q", "float64", "Benjamini-Hochberg over all pairs of units of the two layers"),
        Column("significant", "bool", "q <= alpha"),
        Column("founding", "bool", "r > 0.7: the founding plan's rule"),
    ),
    ("trial_id", "early_layer_index", "layer_index", "early_unit", "unit", "step"),
)

PAIRS = Table(
    "dependency_layers",
    "How many dependencies there are between two layers, and how many by chance.",
    (
        *_KEY,
        Column("n", "int32", "stimuli"),
        Column("n_early", "int32", "units of the early layer that were looked at"),
        Column("n_late", "int32", "units of the late layer that were looked at"),
        Column("significant", "int32", "edges with q <= alpha"),
        Column("founding", "int32", "edges with r > 0.7"),
        Column("founding_chance", "float64", "mean of the same under permuted stimuli"),
        Column("dependent_units", "int32", "late units with a significant edge"),
        Column("hub_degree", "int32", "most significant edges of one early unit"),
        Column("recorded", "int32", "edges that stand in dependency_edges, the strongest"),
        Column("flag", "string", "few_stimuli or constant where nothing could be tested; else null"),
    ),
    ("trial_id", "early_layer_index", "layer_index", "step"),
)


def _listed(parameters: Mapping[str, Any]) -> list[str]:
    pairs = parameters["pairs"]
    return [] if isinstance(pairs, str) else [path for pair in pairs for path in pair]


@analysis(
    name="dependencies",
    reads=("trials", "checkpoints"),
    writes=(EDGES, PAIRS),
    per="checkpoint",
    context=True,
    layers=_listed,
)
def dependencies(
    data: AnalysisInput,
    *,
    pairs: str | list[list[str]] = "all",
    layers: int = 8,
    units: int = 48,
    most: int = 200,
    draws: int = 199,
    alpha: float = 0.05,
) -> dict[str, pd.DataFrame]:
    """Graph of dependencies between units of an early and a late layer, for all pairs of layers, at a checkpoint.

    `pairs`: all, adjacent, or a list of [early, late] paths; `layers`: at most so many, evenly; `units` of each; `most`
    edges recorded of a pair of layers, the strongest first; `draws` permutations, pooled over the early units.
    """
    if min(layers, units, most, draws) < 1 or not 0 < alpha < 1:
        raise SpecError(f"counts are positive and 0 < alpha < 1, but got ({layers=}, {units=}, {most=}, {draws=})")
    context, trial = data.context(), str(data.partition.trial_id)
    edges: list[pd.DataFrame] = []
    summaries: list[dict[str, object]] = []
    for early, late in chosen_pairs(context.layers, pairs, layers, data.notes.append):
        which = [_units(trial, layer.path, context.stimuli(layer.path).shape[1], units) for layer in (early, late)]
        x, y = (context.stimuli(layer.path)[:, own] for layer, own in zip((early, late), which, strict=True))
        rng = generator("dependencies", trial, str(data.partition.step), early.path, late.path)
        who = {**data.partition.key, "early_layer": early.path, "early_layer_index": early.index}
        who |= {"layer": late.path, "layer_index": late.index}
        found, counted = graph(x, y, rng, draws, alpha, most)
        at = found.assign(early_unit=which[0][found["early_unit"]], unit=which[1][found["unit"]])
        edges.append(at.assign(**who))
        summaries.append({**who, **counted})
    whole = pd.concat(edges, ignore_index=True) if edges else pd.DataFrame()
    return {EDGES.name: whole, PAIRS.name: pd.DataFrame(summaries)}


def chosen_pairs(
    known: Sequence[Layer], pairs: str | list[list[str]], most: int, tell: Callable[[str], None] = lambda _: None
) -> list[tuple[Layer, Layer]]:
    """(early, late) layers of a network; SpecError for a way to choose that is none.

    Listed paths that a network lacks give no pair, and are told: networks of a sweep have different layers.
    """
    if isinstance(pairs, str):
        if pairs not in ("all", "adjacent"):
            raise SpecError(f"pairs is all, adjacent or a list of [early, late], but got {pairs!r}")
        picks = np.unique(np.linspace(0, len(known) - 1, min(len(known), most)).round().astype(int))
        chosen = [known[i] for i in picks]
        return list(itertools.pairwise(chosen) if pairs == "adjacent" else itertools.combinations(chosen, 2))
    by_path = {layer.path: layer for layer in known}
    for pair in pairs:
        if len(pair) != 2:
            raise SpecError(f"pairs is all, adjacent or a list of [early, late], but got {pair!r}")
    found = [(by_path[a], by_path[b]) for a, b in pairs if a in by_path and b in by_path]
    if lacking := sorted({path for pair in pairs for path in pair} - set(by_path)):
        tell(f"no layer {', '.join(lacking)} - there are: {', '.join(by_path)}")
    for a, b in found:
        if a.index >= b.index:
            raise SpecError(f"the early layer comes first in the forward pass, but got [{a.path}, {b.path}]")
    return found


def graph(
    early: ArrayLike, late: ArrayLike, rng: np.random.Generator, draws: int = 199, alpha: float = 0.05, most: int = 200
) -> tuple[pd.DataFrame, dict[str, object]]:
    """(edges, counts) between the units of two layers, responses `[n, units]` to the same stimuli.

    p: share of |correlations| of a late unit, stimuli permuted, with all early units that are as large - pooled over
    them, so that `draws` permutations reach below 1 / draws.
    """
    x, y = np.asarray(early, dtype=np.float64), np.asarray(late, dtype=np.float64)
    counted: dict[str, object] = {"n": len(x), "n_early": x.shape[1], "n_late": y.shape[1], "flag": None}
    counted |= dict.fromkeys(("significant", "founding", "dependent_units", "hub_degree", "recorded"), 0)
    columns = ["early_unit", "unit", "r", "r_shrunk", "r2_left_out", "p", "q", "significant", "founding"]
    r = correlations(x, y)
    moving = np.flatnonzero(np.abs(r).max(axis=1, initial=0) > 0)
    if len(x) < 2 * FOLDS or not len(moving):
        flag = "few_stimuli" if len(x) < 2 * FOLDS else "constant"
        return pd.DataFrame(columns=columns), counted | {"flag": flag, "founding_chance": None}
    p = np.ones_like(r)
    at_least, founding = np.zeros_like(r), 0
    for _ in range(draws):
        null = correlations(x, y[rng.permutation(len(y))])
        founding += int((null > DEPENDENT).sum())
        ordered = np.sort(np.abs(null[moving]), axis=0)
        for unit in range(r.shape[1]):  # rounding must not make a correlation larger than its own copy
            at_least[:, unit] += len(moving) - np.searchsorted(ordered[:, unit], np.abs(r[:, unit]) - 1e-12)
    tested = r != 0
    p[tested] = ((1 + at_least) / (1 + draws * len(moving)))[tested]
    q = bh(np.where(tested, p, np.nan))
    significant = tested & (q <= alpha)
    rule = r > DEPENDENT
    kept = np.argwhere(significant | rule)
    kept = kept[np.argsort(-np.abs(r[kept[:, 0], kept[:, 1]]), kind="stable")][:most]
    i, j = kept[:, 0], kept[:, 1]
    counted |= {
        "significant": int(significant.sum()),
        "founding": int(rule.sum()),
        "founding_chance": founding / draws,
        "dependent_units": int(significant.any(axis=0).sum()),
        "hub_degree": int(significant.sum(axis=1).max(initial=0)),
        "recorded": len(kept),
    }
    values = (
        i,
        j,
        r[i, j],
        shrunk(r, len(x))[i, j],
        left_out(x, y)[i, j],
        p[i, j],
        q[i, j],
        significant[i, j],
        rule[i, j],
    )
    return pd.DataFrame(dict(zip(columns, values, strict=True))), counted


def shrunk(r: Floats, n: int) -> Floats:
    """Correlations shrunk towards 0 by one factor, their mean squared error over their mean square."""
    total = float((r**2).sum())
    factor = min(1.0, float((((1 - r**2) ** 2) / (n - 1)).sum()) / total) if total > 0 else 1.0
    return np.asarray((1 - factor) * r)


def left_out(early: Floats, late: Floats, folds: int = FOLDS) -> Floats:
    """R² `[early units, late units]` of lines through one early unit, on stimuli left out; NaN for constants."""
    held = np.arange(len(early)) % folds
    errors = np.zeros((early.shape[1], late.shape[1]))
    for fold in range(folds):
        x, y, x0, y0 = early[held != fold], late[held != fold], early[held == fold], late[held == fold]
        mx, my = x.mean(0), y.mean(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = (x - mx).T @ (y - my) / ((x - mx) ** 2).sum(0)[:, None]
        dx, dy = x0 - mx, y0 - my
        errors += (dy**2).sum(0) - 2 * slope * (dx.T @ dy) + slope**2 * (dx**2).sum(0)[:, None]
    total = ((late - late.mean(0)) ** 2).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(total > 0, 1 - errors / total, np.nan))


def _units(trial: str, path: str, available: int, most: int) -> NDArray[np.int64]:
    """Up to `most` units, the same at every checkpoint."""
    return np.asarray(np.sort(generator("composition", trial, path).permutation(available)[:most]))
