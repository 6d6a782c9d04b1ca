"""Layer matrices from rows of `sae_transfer`, and the founding document's three files made of them."""

import json
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.mechanisms.sae import checks
from ndt_ray.analysis.mechanisms.sae.checks import Check
from ndt_ray.analysis.mechanisms.sae.matrix import LayerMatrix, insights, transfer_json
from ndt_ray.errors import SpecError, did_you_mean

VALUES = ("quality", "aligned", "raw", "score")
"""Columns of `sae_transfer` that a matrix may be made of; `quality` is the founding convention."""


def matrices(rows: pd.DataFrame, value: str = "quality") -> list[LayerMatrix]:
    """One matrix for each pair of networks: within a network (relation `layers`, diagonal 1), or between two.

    Pairs that were skipped, or have no such value (unequal widths have no quality), are NaN. Networks without any value
    are left out. SpecError for an unknown column.
    """
    if value not in VALUES:
        raise SpecError(f"no matrix of '{value}'{did_you_mean(value, VALUES)}")
    if not len(rows):
        return []
    found = []
    keys = ["relation", "source_cell", "source_trial", "source_step", "target_cell", "target_trial", "target_step"]
    for key, group in rows.groupby(keys, sort=True):
        made = _matrix(dict(zip(keys, key, strict=True)), group, value)
        if made is not None:
            found.append(made)
    return found


def _matrix(key: dict[str, Any], group: pd.DataFrame, value: str) -> LayerMatrix | None:
    within = key["relation"] == "layers"
    columns = {}
    for side in ("source", "target"):
        known = group[[f"{side}_layer_index", f"{side}_layer"]].drop_duplicates().sort_values(f"{side}_layer_index")
        columns[side] = tuple(known[f"{side}_layer"].astype(str))
    sources, targets = columns["source"], columns["target"]
    if within:  # the pairs i -> i are not in the table
        sources = targets = tuple(dict.fromkeys((*sources, *targets))) if len(sources) != len(targets) else sources
    values = np.full((len(sources), len(targets)), np.nan)
    reasons = {}
    for row in group.itertuples():
        number, where = (
            getattr(row, value),
            (sources.index(str(row.source_layer)), targets.index(str(row.target_layer))),
        )
        if row.status == "ok" and number is not None:
            values[where] = number
        if np.isnan(values[where]):
            reasons[where] = str(row.reason) if isinstance(row.reason, str) else "no value"
    if np.isnan(values).all():
        return None
    if within:
        values[np.diag_indices(len(sources))] = 1.0
    widths = group["source_d"].dropna()
    width = int(widths.median()) if within and len(widths) else None
    name = key["source_cell"] if within else f"{key['source_cell']} -> {key['target_cell']}"
    if not within:
        name += f" ({key['relation']}: {key['source_trial'][:6]}@{key['source_step']} to"
        name += f" {key['target_trial'][:6]}@{key['target_step']})"
    return LayerMatrix(str(name), sources, targets, values, width, reasons)


def notes(rows: pd.DataFrame) -> list[str]:
    """What must stand beside the matrices: how many pairs, what was skipped, and whether controls do as well."""
    ok = rows[rows["status"] == "ok"]
    lines = [f"{len(ok)} of {len(rows)} pairs of layers were compared; quality = source loss / target loss, at most 1."]
    reasons = rows["reason"].dropna()
    for reason, count in reasons.str.replace(r"\d+_vs_\d+", "…", regex=True).value_counts().items():
        lines.append(f"{count} pairs: {reason}")
    scored = ok["score"].dropna()
    above = int((ok["aligned"] > ok["control"]).sum())
    lines.append(
        "After alignment, learned features beat the best control (untrained, frozen or principal directions) in"
        f" {above} of {len(ok)} pairs; {len(scored)} pairs leave room for a score"
        + (f", of mean {scored.mean():.2f}." if len(scored) else ".")
    )
    cosine = ok[["cosine", "cosine_chance"]].dropna()
    if len(cosine):
        mean, chance = cosine["cosine"].mean(), cosine["cosine_chance"].mean()
        lines.append(f"Nearest atoms have a cosine of {mean:.3f}; random directions give {chance:.3f}.")
    return lines


def files(rows: pd.DataFrame, dictionaries: pd.DataFrame) -> dict[str, str]:
    """`layer_transfer_matrix.json`, `layer_analysis_insights.md` and `sae_checks.json` as text, by name.

    From rows of `sae_transfer`, and of `sae` where that was run.
    """
    found = matrices(rows)
    within = [m for m in found if m.square and "->" not in m.pair]
    text = transfer_json(found)
    judged = [c.__dict__ for c in validate(rows, dictionaries, text)]
    return {
        "layer_transfer_matrix.json": text,
        "layer_analysis_insights.md": insights(within, notes(rows) if len(rows) else ["No pairs were compared."]),
        "sae_checks.json": json.dumps(judged, indent=2) + "\n",
    }


def validate(rows: pd.DataFrame, dictionaries: pd.DataFrame, text: str) -> list[Check]:
    """The founding document's checks, of rows of `sae_transfer` and `sae`, and the file made of the first."""
    found = []
    trained = dictionaries[dictionaries["flag"].isna()] if len(dictionaries) else dictionaries
    if len(trained):
        found += [checks.losses_sane(_by_name(trained, "final_loss")), checks.converged(trained)]
        found += [checks.finite(trained, checks.DICTIONARY)]
    ok = rows[rows["status"] == "ok"] if len(rows) else rows
    if len(ok):
        found += [checks.losses_sane(_by_name(ok, "source_loss")), checks.ratios_sane(_by_name(ok, "ratio"))]
        found += [checks.finite(ok, checks.PAIR)]
    if len(ok) and len(trained):
        found.append(checks.shapes_consistent(trained, ok))
    return [*found, checks.readable(text)]


def _by_name(rows: pd.DataFrame, column: str) -> dict[str, float]:
    known = rows[rows[column].notna()]
    return dict(zip(checks.names(known), known[column].astype(float), strict=True))
