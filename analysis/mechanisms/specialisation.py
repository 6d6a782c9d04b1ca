"""Do the filters of CNNs specialise as the units of MLPs do? Class selectivity of both, over seeds.

Selectivity of an untrained or dead unit is above 0 by chance, and the more so the fewer stimuli: compared is what
exceeds its value under shuffled labels. The unit is the seed: layers of a network are averaged first. Beside it stands
the orthogonality of the incoming weights beyond that of random ones, which both kinds have.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.events.significant import replicates
from ndt_ray.analysis.inference.multiplicity import bh
from ndt_ray.analysis.inference.permutation import paired, unpaired
from ndt_ray.analysis.inference.seeds import difference_interval, interval
from ndt_ray.architectures import family_of
from ndt_ray.store.schema import Column, Table

METRICS = {"class_selectivity": "unit_metrics", "filter_cosine": "filter_metrics"}
KINDS = ("cnn", "mlp")

SPECIALISATION = Table(
    "specialisation_comparison",
    "Specialisation of convolution filters against that of the hidden units of MLPs, on the same data, over seeds.",
    (
        Column("data", "string", "data set"),
        Column("metric", "string", "class_selectivity, or filter_cosine (lower: more orthogonal); value - chance"),
        Column("when", "string", "initial, last (common checkpoint), or gain: last - initial"),
        Column("n_cnn", "int32", "seeds with a CNN"),
        Column("n_mlp", "int32", "seeds with an MLP"),
        Column("cnn", "float64", "mean over seeds; a seed's convolutions averaged"),
        Column("mlp", "float64", "mean over seeds; a seed's hidden layers averaged"),
        Column("difference", "float64", "cnn - mlp"),
        Column("lo", "float64", "95 % interval of it over seeds"),
        Column("hi", "float64", "upper end of it"),
        Column("p", "float64", "sign flips of seeds that both have, or regroupings where they have none in common"),
        Column("q", "float64", "Benjamini-Hochberg over the rows of this table"),
        Column("verdict", "string", "cnn_more, mlp_more, not_shown or no_data"),
    ),
    ("data", "metric", "when"),
)


@analysis(
    name="specialisation",
    reads=("trials", "outcomes", "evaluations", *METRICS.values()),
    writes=(SPECIALISATION,),
    per="sweep",
)
def specialisation(data: AnalysisInput, *, alpha: float = 0.05) -> dict[str, pd.DataFrame]:
    """Class selectivity and orthogonality of CNN filters compared with those of MLP units, over seeds."""
    trials = replicates(data)
    if trials.empty:
        return {SPECIALISATION.name: pd.DataFrame()}
    info = trials.assign(kind=trials["model"].map(family_of)).set_index("trial_id")
    info = info[info["kind"].isin(KINDS)]
    rows: list[dict[str, Any]] = []
    for metric, table in METRICS.items():
        values = per_seed(data.frame(table), metric, info)
        for (name, when), own in values.groupby(["data", "when"], sort=True):
            rows.append({"data": name, "metric": metric, "when": when} | compared(own, metric, str(name), str(when)))
    if not rows:
        return {SPECIALISATION.name: pd.DataFrame()}
    found = pd.DataFrame(rows)
    found["q"] = bh(found["p"].to_numpy(np.float64))
    found["verdict"] = [_verdict(r, alpha) for r in found.itertuples()]
    return {SPECIALISATION.name: found}


def per_seed(rows: pd.DataFrame, metric: str, info: pd.DataFrame) -> pd.DataFrame:
    """data, kind, seed, when, value: what exceeds chance, mean over layers, then over the kind's models.

    Of a CNN its convolutions, of an MLP all but the read-out. `info`: kind, data and seed by trial_id.
    """
    columns = ["data", "kind", "seed", "when", "value"]
    if rows.empty or info.empty:
        return pd.DataFrame(columns=columns)
    own = rows[(rows["metric"] == metric) & (rows["part"] == "*") & rows["trial_id"].isin(info.index)]
    own = own.dropna(subset=["value", "chance"])
    kind = own["trial_id"].map(info["kind"])
    readout = own["layer_index"] == own.groupby("trial_id")["layer_index"].transform("max")
    conv = own["layer"].str.contains("conv")
    own = own[np.where(kind == "cnn", conv, ~readout)]
    own = own.assign(excess=own["value"] - own["chance"])
    by_step = own.groupby(["trial_id", "step"])["excess"].mean()
    found = []
    for trial, series in by_step.groupby(level="trial_id"):
        steps = series.droplevel("trial_id").sort_index()
        if steps.index[0] != 0 or len(steps) < 2:
            continue
        who = {name: info.loc[trial, name] for name in ("data", "kind", "seed")}
        ends = {"initial": steps.iloc[0], "last": steps.iloc[-1], "gain": steps.iloc[-1] - steps.iloc[0]}
        found += [{**who, "when": when, "value": float(value)} for when, value in ends.items()]
    if not found:
        return pd.DataFrame(columns=columns)
    return pd.DataFrame(found).groupby(columns[:-1], as_index=False)["value"].mean()


def compared(values: pd.DataFrame, *key: str) -> dict[str, Any]:
    """Row of the table from one value a kind and seed; seeds that both kinds have are pairs."""
    cnn, mlp = (values[values["kind"] == kind].set_index("seed")["value"] for kind in KINDS)
    row: dict[str, Any] = {"n_cnn": len(cnn), "n_mlp": len(mlp), "cnn": cnn.mean(), "mlp": mlp.mean()}
    row |= dict.fromkeys(("difference", "lo", "hi", "p"), math.nan)
    both = cnn.index.intersection(mlp.index)
    if len(both) > 1:
        pairs = (cnn.loc[both] - mlp.loc[both]).to_numpy(np.float64)
        within, p = interval(pairs), paired(cnn.loc[both], mlp.loc[both], *key).p
        return row | {"difference": float(pairs.mean()), "lo": within.lo, "hi": within.hi, "p": p}
    if min(len(cnn), len(mlp)) > 1:
        within, p = difference_interval(cnn.to_numpy(), mlp.to_numpy(), paired=False), unpaired(cnn, mlp, *key).p
        return row | {"difference": float(cnn.mean() - mlp.mean()), "lo": within.lo, "hi": within.hi, "p": p}
    return row


def _verdict(row: Any, alpha: float) -> str:
    if not math.isfinite(row.q):
        return "no_data"
    if row.q > alpha:
        return "not_shown"
    more = row.difference > 0 if row.metric == "class_selectivity" else row.difference < 0
    return "cnn_more" if more else "mlp_more"
