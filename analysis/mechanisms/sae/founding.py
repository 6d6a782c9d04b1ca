"""Layer matrices from rows of `sae_transfer`, and the founding document's three files made of them."""

import json
from collections.abc import Iterator
from dataclasses import replace
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
    rows = named(rows)
    several = rows["configuration"].nunique() > 1
    keys = [
        "configuration",
        "relation",
        "source_cell",
        "source_trial",
        "source_step",
        "target_cell",
        "target_trial",
        "target_step",
    ]
    for key, group in rows.groupby(keys, sort=True):
        made = _matrix(dict(zip(keys, key, strict=True)), group, value)
        if made is not None:
            found.append(replace(made, pair=f"{made.pair} [{key[0]}]") if several else made)
    return found


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `sae` or `sae_transfer` with the name of their configuration; of older stores it is the default."""
    known = rows["configuration"] if "configuration" in rows else pd.Series(None, index=rows.index, dtype=object)
    return rows.assign(configuration=known.where(known.notna(), "default"))


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
    return LayerMatrix(str(name), sources, targets, values, width, reasons, str(key["relation"]))


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
    for relation, own in ok.groupby("relation", sort=False):
        lines += [f"{relation}: {said}" for said in _beside_chance(own)]
    return lines


def _beside_chance(rows: pd.DataFrame) -> Iterator[str]:
    """Of pairs in one relation, each founding number beside what it is without learned features; older stores lack
    some of the latter."""
    quality = rows.reindex(columns=["quality", "quality_random"]).dropna()
    if len(quality):
        above = int((quality["quality"] > quality["quality_random"]).sum())
        mean, chance = quality["quality"].mean(), quality["quality_random"].mean()
        yield (
            f"quality {mean:.2f} on average, {chance:.2f} with untrained dictionaries; above them in {above} of"
            f" {len(quality)} pairs."
        )
    cosine = rows.reindex(columns=["cosine", "cosine_chance"]).dropna()
    if len(cosine):
        said = f"nearest atoms have a cosine of {cosine['cosine'].mean():.3f}, random directions "
        said += f"{cosine['cosine_chance'].mean():.3f}"
        for level in (7, 5):
            over = rows.reindex(columns=[f"cosine_over_{level}", f"cosine_over_{level}_chance"]).dropna().mean()
            if over.notna().all():
                said += f"; above .{level} are {over.iloc[0]:.1%}, of random ones {over.iloc[1]:.1%}"
        yield f"{said}."
    ranks = rows.reindex(columns=["spearman", "spearman_random", "spearman_null_hi"]).dropna()
    if len(ranks):
        beyond = int((ranks["spearman"] > ranks["spearman_null_hi"]).sum())
        yield (
            f"feature variances correlate at {ranks['spearman'].mean():.2f} (Spearman), those of untrained dictionaries"
            f" at {ranks['spearman_random'].mean():.2f}; above the 95 % quantile of permuted features in {beyond} of"
            f" {len(ranks)} pairs, where {0.05 * len(ranks):.1f} would be by chance."
        )


def files(rows: pd.DataFrame, dictionaries: pd.DataFrame) -> dict[str, str]:
    """`layer_transfer_matrix.json`, `layer_analysis_insights.md` and `sae_checks.json` as text, by name.

    From rows of `sae_transfer`, and of `sae` where that was run.
    """
    found = matrices(rows)
    text = transfer_json(found)
    judged = [c.__dict__ for c in validate(rows, dictionaries, text)]
    return {
        "layer_transfer_matrix.json": text,
        "layer_analysis_insights.md": _insights(rows),
        "sae_checks.json": json.dumps(judged, indent=2) + "\n",
    }


def _insights(rows: pd.DataFrame) -> str:
    """The insights of every configuration, one after the other."""
    if not len(rows):
        return insights([], ["No pairs were compared."])
    by_name = list(named(rows).groupby("configuration", sort=False))
    return "\n".join(
        insights(matrices(own), notes(own), str(name) if len(by_name) > 1 else None) for name, own in by_name
    )


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
