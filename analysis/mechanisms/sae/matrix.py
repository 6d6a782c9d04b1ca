"""Layer-by-layer transfer qualities as the founding document reads them: bands, divergence, bottleneck, insights.

Every sentence is computed. A matrix has a row per source layer and a column per target layer, both in forward order;
NaN where a pair was skipped.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import linregress

from ndt_ray.errors import SpecError

Matrix = NDArray[np.float64]

UNIVERSAL, PARTIAL, DIVERGING = 0.9, 0.6, 0.7
"""Bands of the heat map: green from .9, yellow from .6, red below; at or below .7 a layer counts as diverging."""
EARLY = 0.4
"""Share of the layers, rounded up, that counts as early: 4 and 8 of 4, 8, 12, 16, 20."""
CLEAR = 0.02
"""By how much a row's mean must lead for its layer to be a clear bottleneck."""
ROW_WORDS = ("High universality", "Still universal", "Getting specific", "Model-specific")
LADDER = ("early: general patterns", "middle: task features", "late: decisions", "output: assembly")


@dataclass(frozen=True)
class LayerMatrix:
    """Transfer qualities between the layers of two networks, or of one; `layers` are the names of rows and columns."""

    pair: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    values: Matrix
    width: int | None = None
    """Of the narrower network; null where layers differ."""
    reasons: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """Why (row, column) is NaN, where the pair was tried; other NaN were not compared at all."""
    relation: str = "layers"
    """layers: within a network; else what differs between the two: seeds, architectures, data or checkpoints."""

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.sources), len(self.targets)) or not self.values.size:
            raise SpecError(
                f"{self.pair}: a matrix of {list(self.values.shape)} does not fit {len(self.sources)} source and"
                f" {len(self.targets)} target layers"
            )

    @property
    def square(self) -> bool:
        """Whether rows and columns are the same layers."""
        return self.sources == self.targets

    @property
    def within(self) -> bool:
        """Whether these are the layers of one network."""
        return self.relation == "layers"

    @property
    def universality(self) -> float:
        """Mean over all pairs of layers that were computed."""
        return _mean(self.values)


def band(value: float) -> str:
    """universal (.9 and more), partially universal (.6 to .9) or model-specific; skipped for NaN."""
    if math.isnan(value):
        return "skipped"
    return "universal" if value >= UNIVERSAL else "partially universal" if value >= PARTIAL else "model-specific"


def row_verdicts(found: LayerMatrix) -> dict[str, str]:
    """For each source layer, what its transfer to the first target layer says: from High universality to
    Model-specific. That layer itself is 1."""
    words = {}
    for name, value in zip(found.sources, found.values[:, 0], strict=True):
        if math.isnan(value):
            words[name] = "Skipped"
            continue
        place = 0 if value >= 0.95 else 1 if value >= UNIVERSAL else 2 if value >= PARTIAL else 3
        words[name] = ROW_WORDS[place]
    return words


def divergence(found: LayerMatrix) -> str | None:
    """The first layer whose transfer to the first one is .7 or less; None where none is (or none was computed)."""
    for name, value in zip(found.sources, found.values[:, 0], strict=True):
        if value <= DIVERGING:
            return name
    return None


def row_means(found: LayerMatrix) -> dict[str, float]:
    """Mean quality of each source layer to all targets, itself included (as in the founding document); NaN for a layer
    that was compared with no other."""
    means = {}
    for name, row in zip(found.sources, found.values, strict=True):
        alone = found.square and int((~np.isnan(row)).sum()) <= 1 < len(row)
        means[name] = float("nan") if alone else _mean(row)
    return means


def bottleneck(found: LayerMatrix) -> tuple[str | None, float, bool]:
    """(layer whose features serve the others best, its row mean, whether it leads clearly); None for one layer."""
    means = {name: value for name, value in row_means(found).items() if not math.isnan(value)}
    if len(means) < 2:
        return None, float("nan"), False
    order = sorted(means, key=lambda name: -means[name])
    return order[0], means[order[0]], means[order[0]] - means[order[1]] >= CLEAR


def early_layers(found: LayerMatrix) -> tuple[str, ...]:
    """The first 40 % of the source layers, rounded up."""
    return found.sources[: max(1, math.ceil(EARLY * len(found.sources)))]


def universal_early(found: LayerMatrix) -> tuple[bool, float]:
    """(whether all qualities between early layers exceed .9, their mean without the diagonal of equal layers)."""
    n = len(early_layers(found))
    part = found.values[:n, :n].copy()
    if found.square:
        part[np.diag_indices(min(part.shape))] = np.nan
    known = part[~np.isnan(part)]
    return bool(len(known) and (known > UNIVERSAL).all()), _mean(part)


def matched(found: LayerMatrix) -> dict[str, float]:
    """Between networks, for each source layer the quality to the target's layer of the same relative depth."""
    rows, columns = found.values.shape
    places = [round(i / max(1, rows - 1) * (columns - 1)) for i in range(rows)]
    return {name: float(found.values[i, places[i]]) for i, name in enumerate(found.sources)}


def shared_early(found: LayerMatrix) -> tuple[bool, float]:
    """Between networks, (whether all matched qualities of early layers exceed .9, their mean)."""
    values = np.array([matched(found)[name] for name in early_layers(found)])
    known = values[~np.isnan(values)]
    return bool(len(known) and (known > UNIVERSAL).all()), _mean(values)


def apart(found: LayerMatrix) -> str | None:
    """Between networks, the first source layer whose matched quality is .7 or less; None where none is."""
    return next((name for name, value in matched(found).items() if value <= DIVERGING), None)


def bidirectional(found: LayerMatrix, least: float = 0.7) -> list[tuple[str, str]]:
    """Pairs of different layers with (q_ij + q_ji) / 2 above `least`; none unless rows and columns are the same."""
    if not found.square:
        return []
    both = (found.values + found.values.T) / 2
    n = len(found.sources)
    return [(found.sources[i], found.sources[j]) for i in range(n) for j in range(i + 1, n) if both[i, j] > least]


def concentration(found: LayerMatrix) -> float:
    """Entropy of the row means as shares / log(rows): 1 for features shared by all layers alike, 0 for one layer."""
    means = np.array([v for v in row_means(found).values() if not math.isnan(v)])
    if len(means) < 2 or not means.sum() > 0:
        return float("nan")
    shares = np.clip(means / means.sum(), 1e-12, None)
    return float(-(shares * np.log(shares)).sum() / np.log(len(means)))


def size_effect(matrices: Sequence[LayerMatrix]) -> dict[str, Any]:
    """Do narrower networks diverge earlier? Regression of the divergence depth (share of layers) on log2 width.

    Slope and p; null under 3 networks of 2 widths. A network that never diverges counts with depth 1.
    """
    points = [(math.log2(m.width), _depth(m)) for m in matrices if m.width and m.square]
    widths = {w for w, _ in points}
    if len(points) < 3 or len(widths) < 2:
        return {"n": len(points), "slope": None, "p": None, "answer": f"cannot be said: {len(points)} networks"}
    w, depth = np.array(points).T
    if np.ptp(depth) == 0:
        return {"n": len(points), "slope": 0.0, "p": None, "answer": "size does not matter: all diverge alike"}
    fitted = linregress(w, depth)
    p = float(fitted.pvalue)
    way = "narrower networks diverge earlier" if fitted.slope > 0 else "narrower networks diverge later"
    answer = way if p < 0.05 else "no effect of size was found"
    return {"n": len(points), "slope": float(fitted.slope), "p": p, "answer": answer}


def transfer_json(matrices: Sequence[LayerMatrix]) -> str:
    """`layer_transfer_matrix.json`: {pair: {layer_pairs: {"4_to_4": .98, …}, universality_score: mean of them}}."""
    found = {}
    for m in matrices:
        pairs = {
            f"{s}_to_{t}": float(m.values[i, j])
            for i, s in enumerate(m.sources)
            for j, t in enumerate(m.targets)
            if not math.isnan(m.values[i, j])
        }
        score = float(np.mean(list(pairs.values()))) if pairs else None
        found[m.pair] = {"layer_pairs": pairs, "universality_score": score}
    return json.dumps(found, indent=2, allow_nan=False) + "\n"


def insights(matrices: Sequence[LayerMatrix], notes: Sequence[str] = (), configuration: str | None = None) -> str:
    """`layer_analysis_insights.md`: universal early layers, divergence, bottleneck, size and use, all computed.

    Within networks and, by what differs between them, between networks. `configuration`: of which dictionaries, where
    there are several.
    """
    of = f" ({configuration} dictionaries)" if configuration else ""
    lines = [f"# Layer transfer: what the matrices say{of}", ""]
    lines += [f"- {note}" for note in notes] + ([""] if notes else [])
    if not matrices:
        return "\n".join([*lines, "No pair of layers could be compared."]) + "\n"
    inside, across = [m for m in matrices if m.within], [m for m in matrices if not m.within]
    relations = list(dict.fromkeys(m.relation for m in across))
    if inside:
        lines += [_early("", [universal_early(m) for m in inside]), ""]
    for relation in relations:
        own = [shared_early(m) for m in across if m.relation == relation]
        lines += [_early(f" between {relation}", own), ""]
    for m in inside:
        lines += _section(m)
    for relation in relations:
        lines += _between(relation, [m for m in across if m.relation == relation])
    if not inside:
        return "\n".join(lines)
    effect = size_effect(inside)
    slope = "" if effect["slope"] is None else f" (slope {effect['slope']:+.3f} of the depth per doubling of the width)"
    lines += ["## Size", "", f"{effect['answer']}{slope}, n = {effect['n']}.", ""]
    return "\n".join(lines)


def _early(where: str, flags: Sequence[tuple[bool, float]]) -> str:
    known = [value for _, value in flags if not math.isnan(value)]
    every = all(flag for flag, v in flags if not math.isnan(v))
    word = "Cannot be said" if not known else "Yes" if every else "No"
    mean = f"{np.mean(known):.2f} on average" if known else "no two early layers were compared"
    all_above = sum(flag for flag, _ in flags)
    held = f"; all above {UNIVERSAL} in {all_above}" if known else ""
    return f"**Universal early layers{where}: {word}** ({mean}, n = {len(known)} matrices{held})."


def _between(relation: str, found: Sequence[LayerMatrix]) -> list[str]:
    """What all pairs of networks that differ in one thing say together, at layers of the same relative depth."""
    count = f"{len(found)} {'pair' if len(found) == 1 else 'pairs'} of networks"
    lines = [f"## Between {relation}: {count}", ""]
    lines.append(f"Universality score {np.mean([m.universality for m in found]):.2f} over what was compared.\n")
    by_layer: dict[str, list[float]] = {}
    for m in found:
        for name, value in matched(m).items():
            if not math.isnan(value):
                by_layer.setdefault(name, []).append(value)
    for name, values in by_layer.items():
        word = band(float(np.mean(values)))
        lines.append(
            f"- {name} to the layer of its depth: {np.mean(values):.2f} on average, {word} (n = {len(values)})"
        )
    first = [name for name in map(apart, found) if name is not None]
    at = ", ".join(f"{name} in {first.count(name)}" for name in dict.fromkeys(first))
    lines.append(f"- First layer at or below {DIVERGING}: {at or 'none'} (of {count})")
    if by_layer:
        best = max(by_layer, key=lambda name: float(np.mean(by_layer[name])))
        lines.append(f"- Carries over best: {best} ({np.mean(by_layer[best]):.2f})")
    return [*lines, ""]


def _section(m: LayerMatrix) -> list[str]:
    known = int((~np.isnan(m.values)).sum())
    score = f"Universality score {m.universality:.2f} over {known} of {m.values.size} pairs of layers."
    lines = [f"## {m.pair}", "", score, ""]
    for name, verdict in row_verdicts(m).items():
        row = m.sources.index(name)
        words = LADDER[min(3, 4 * row // len(m.sources))]
        mean = row_means(m)[name]
        lines.append(f"- {name} ({words}): {verdict}" + ("" if math.isnan(mean) else f"; mean to all {mean:.2f}"))
    apart = divergence(m)
    if apart is None:
        lines.append(f"- Divergence: none (no layer at or below {DIVERGING} to {m.targets[0]})")
    else:
        value = m.values[m.sources.index(apart), 0]
        lines.append(f"- Divergence: at {apart} ({value:.2f} to {m.targets[0]})")
    layer, mean, clear = bottleneck(m)
    if layer is not None:
        lead = "clearly first" if clear else f"not clearly: the next is within {CLEAR}"
        lines.append(f"- Bottleneck: {layer} ({mean:.2f} to all, {lead}); the first place to intervene or to distil")
    share = concentration(m)
    if not math.isnan(share):
        word = "shared by all layers" if share > 0.95 else "concentrated in some layers"
        lines.append(f"- Features are {word} (entropy of row means {share:.2f} of its maximum)")
    both = bidirectional(m)
    lines.append(f"- Pairs that serve each other (mean above .7): {len(both)}")
    return [*lines, ""]


def _depth(m: LayerMatrix) -> float:
    apart = divergence(m)
    return 1.0 if apart is None else m.sources.index(apart) / max(1, len(m.sources) - 1)


def _mean(values: Matrix) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
