"""The founding study's first phase under its own file names, computed from a sweep's tables.

Where a sweep has the published analyses (`ndt import original`), the files hold these, in their columns and units
(a `step` is a measurement index), and the correct ones stand beside them as `*_corrected`. Any other sweep has the
correct ones under the founding names: steps are optimizer steps, and seeds make several rows an experiment.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.convergence import one_view
from ndt_ray.analysis.events import checkpoint_plan
from ndt_ray.analysis.jumps import published_table
from ndt_ray.analysis.taxonomy.representatives import founding_steps, select
from ndt_ray.figures import founding_tables as founded
from ndt_ray.figures.album import Album
from ndt_ray.report.data_sets import data_sets

SECTION = "Founding plan, phase 1"
CONVERGENCE = "results/step1_1/convergence_analysis_summary.json"
JUMPS = "results/step1_2/all_jumps_detailed.csv"
CRITICAL = "results/step1_3/critical_periods_detailed.csv"
PLAN = "checkpoint_plan.json"
SUMMARY = "PHASE1_SUMMARY.md"

TABLES = tuple(
    dict.fromkeys((*founded.TABLES, *checkpoint_plan.TABLES, "convergence", "convergence_order", "critical_series"))
)
"""What is read; any may be empty."""
MODES = ("original", "default")
NAMES = ["experiment", "arch_name", "dataset", "trial_id", "seed"]

Tables = Mapping[str, pd.DataFrame]


def write(album: Album, tables: Tables) -> None:
    """The five files, each where its tables are; else it is left out with the command that computes them."""
    trials = named(tables["trials"])
    made = {
        "Convergence of layers": _convergence(album, tables, trials),
        "Jumps": _jumps(album, tables, trials),
        "Critical periods": _critical(album, tables, trials),
    }
    _plan(album, tables, trials)
    if any(made.values()):
        album.text(SECTION, SUMMARY, _summary(album, made, trials), "What the first phase found, in numbers.")
    else:
        album.skip(SECTION, SUMMARY, _run(album, "convergence", "critical_periods", "jumps"))


def named(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials that are no controls, with the founding study's names - experiment, arch_name, dataset - and family, and
    what is known of their data."""
    if trials.empty:
        return pd.DataFrame(columns=[*NAMES, "family", "data_completeness", "n_train"])
    own = founded.named(trials)
    seeds = trials["seed"] if "seed" in trials else pd.Series(pd.NA, index=trials.index)
    own = own.assign(seed=seeds.reindex(own.index).astype("Int64"), arch_name=own["model"], dataset=own["data"])
    own = own.assign(experiment=own["arch_name"] + "_" + own["dataset"].astype(str))
    return own.reindex(columns=[*NAMES, "family", "data_completeness", "n_train"])


def _of_mode(rows: pd.DataFrame, mode: str, trials: pd.DataFrame) -> pd.DataFrame:
    """A mode's rows with names; of the default's several measures the one that stands for them."""
    if rows.empty:
        return rows
    own = rows[rows["mode"] == mode].merge(trials, on="trial_id")
    if mode == "default" and len(own):
        known = sorted(own["measure"].unique())
        own = own[own["measure"] == (founded.MEASURE if founded.MEASURE in known else known[0])]
    return own.sort_values(["experiment", "seed", "trial_id"], kind="stable", ignore_index=True)


def _file(name: str, first: bool) -> str:
    stem, dot, suffix = name.rpartition(".")
    return name if first else f"{stem}_corrected{dot}{suffix}"


def _run(album: Album, *analyses: str) -> str:
    return f"not computed yet: {album.analyze(*analyses)}"


# -- convergence -----------------------------------------------------------------------------------------------------


def _convergence(album: Album, tables: Tables, trials: pd.DataFrame) -> str:
    """Writes what each layer and run does; its part of the summary, empty where there is nothing."""
    told: list[str] = []
    for mode in MODES:
        orders = _of_mode(tables["convergence_order"], mode, trials)
        if len(orders):
            layers = tables["convergence"]
            entries = [_settling(row, layers) for row in orders.to_dict("records")]
            caption = f"When layers settle, and in which order: {_words(mode, orders)}."
            album.text(SECTION, _file(CONVERGENCE, not told), json.dumps(entries, indent=2) + "\n", caption)
            told.append(f"{_words(mode, orders)}:\n\n{founded.markdown(_patterns(orders))}")
    if not told:
        album.skip(SECTION, CONVERGENCE, _run(album, "convergence"))
    return "\n\n".join(told)


def _settling(order: Mapping[str, Any], layers: pd.DataFrame) -> dict[str, Any]:
    """One run; a layer that never settled is at -1 in the published form, and null in ours."""
    same = (layers["trial_id"] == order["trial_id"]) & (layers["mode"] == order["mode"])
    own = one_view(layers[same & (layers["measure"] == order["measure"])])
    never = -1 if order["mode"] == "original" else None
    points = {str(r.layer): never if pd.isna(r.step) else int(r.step) for r in own.itertuples()}
    return {
        "stabilization_points": points,
        "convergence_correlation": _plain(order["rho"]),
        "convergence_p_value": _plain(order["p"]),
        "convergence_pattern": str(order["label"]).replace("_", "-"),
        "num_stabilized_layers": sum(step not in (None, -1) for step in points.values()),
        "total_layers": len(points),
        "experiment_name": order["experiment"],
        "arch_name": order["arch_name"],
        "dataset_name": order["dataset"],
        "data_completeness": _plain(order["data_completeness"]),
        "num_layers": len(points),
        "trial_id": order["trial_id"],
        "seed": _plain(order["seed"]),
        "measure": order["measure"],
        "null_bottom_up": _plain(order["null_bottom_up"]),
    }


def _patterns(orders: pd.DataFrame) -> pd.DataFrame:
    """Runs by family and pattern, and how many would be bottom-up with their layers in random order."""
    table = pd.crosstab(orders["family"], orders["label"]).rename(columns=lambda c: str(c).replace("_", "-"))
    by = orders.groupby("family")
    table.insert(0, "runs", by.size())
    table["bottom-up expected of random orders"] = by["null_bottom_up"].sum().round(2)
    return table.rename_axis(None, axis=1).reset_index()


# -- jumps -----------------------------------------------------------------------------------------------------------


def _jumps(album: Album, tables: Tables, trials: pd.DataFrame) -> str:
    told: list[str] = []
    passes = [tables]
    if _has_original(tables["jumps"]):
        passes.append({**tables, "jumps": tables["jumps"][tables["jumps"]["mode"] != "original"]})
    for given in passes if len(tables["trials"]) else ():
        found = founded.read(given)
        if found is None:
            continue
        rows = _published(tables, trials) if found.mode == "original" else _detailed(found, trials)
        album.text(SECTION, _file(JUMPS, not told), rows.to_csv(index=False), f"{len(rows)} jumps: {found.words}.")
        told.append(f"{found.words[:1].upper()}{found.words[1:]}:\n\n{founded.markdown(founded.key_table(found))}")
    if not told:
        album.skip(SECTION, JUMPS, _run(album, "events", "taxonomy"))
    return "\n\n".join(told)


def _has_original(jumps: pd.DataFrame) -> bool:
    return len(jumps) > 0 and bool((jumps["mode"] == "original").any())


def _published(tables: Tables, trials: pd.DataFrame) -> pd.DataFrame:
    """The published columns, `cluster` among them where the taxonomy was made."""
    rows = published_table(tables["jumps"], trials)
    rows = rows[rows["experiment"].notna()].reset_index(drop=True)
    clusters = _clusters(tables, trials)
    if clusters.empty:
        return rows.assign(cluster=pd.NA)
    return rows.merge(clusters, on=["experiment", "layer", "step"], how="left")


def _clusters(tables: Tables, trials: pd.DataFrame) -> pd.DataFrame:
    """Published cluster ids (type - 1) by experiment, layer and measurement index."""
    types, jumps = tables["event_types"], tables["jumps"]
    if types.empty or jumps.empty:
        return pd.DataFrame()
    key = ["trial_id", "layer", "measure", "step_before"]
    rule = jumps[(jumps["mode"] == "original") & (jumps["detector"] == founded.RULE)]
    own = rule[[*key, "index"]].merge(types.loc[types["mode"] == "original", [*key, "type"]], on=key)
    own = own.merge(trials[["trial_id", "experiment"]], on="trial_id")
    return own.assign(step=own["index"], cluster=own["type"] - 1)[["experiment", "layer", "step", "cluster"]]


def _detailed(found: founded.Jumps, trials: pd.DataFrame) -> pd.DataFrame:
    """The published columns in optimizer steps, and behind them what tells one seed, view and q from another."""
    rows = found.rows.drop(columns=["experiment", "seed"], errors="ignore").merge(trials[NAMES], on="trial_id")
    phase = rows["phase"].astype(np.float64)
    rows = rows.assign(
        step=rows["step_before"],
        phase_category=np.select([phase < 0.33, phase < 0.67], ["early", "mid"], "late"),
        cluster=rows["type"].astype("Float64").astype("Int64") - 1,
    )
    first = ["step", "magnitude", "speed", "direction", "phase", "layer", "experiment", "arch_name", "dataset"]
    more = ["trial_id", "seed", "layer_index", "view", "measure", "step_after", "p_event", "q"]
    ordered = rows.sort_values(["experiment", "seed", "trial_id", "layer_index", "step"], ignore_index=True)
    return ordered[[*first, "phase_category", "cluster", *(c for c in more if c in ordered)]]


# -- critical periods --------------------------------------------------------------------------------------------------


def _critical(album: Album, tables: Tables, trials: pd.DataFrame) -> str:
    told: list[str] = []
    for mode in MODES:
        rows = _of_mode(tables["coordination"], mode, trials)
        if len(rows):
            table = _periods(rows, tables["critical_series"], mode)
            caption = f"Critical periods of each run: {_words(mode, rows)}. {_TENTH}"
            album.text(SECTION, _file(CRITICAL, not told), table.to_csv(index=False), caption)
            told.append(f"{_words(mode, rows)}. {_TENTH}\n\n{founded.markdown(_by_family(table, rows['family']))}")
    if not told:
        album.skip(SECTION, CRITICAL, _run(album, "critical_periods"))
    return "\n\n".join(told)


_TENTH = "A tenth of all changes is critical by construction: read each number beside its base."


def _periods(rows: pd.DataFrame, series: pd.DataFrame, mode: str) -> pd.DataFrame:
    """The published columns of a run, then the base of each and the calibrated periods."""
    table = rows[["experiment", "arch_name", "dataset"]].assign(
        total_critical_steps=rows["critical"],
        total_transitions=rows["transitions"],
        num_coordinated_periods=(rows["coordinated"] * rows["n"]).round().astype("Int64"),
        max_coordination=rows["share_max"],
        mean_coordination=rows["share_mean"],
        loss_correlation=rows["loss_drops"],
        loss_drops_base=rows["loss_drops_base"],
        num_coordinated_shifted=rows["coordinated_shifted"] * rows["n"],
        strong=rows["strong"],
        trial_id=rows["trial_id"],
        seed=rows["seed"],
        measure=rows["measure"],
    )
    if mode == "original" or series.empty:
        return table
    own = series[series["mode"] == mode].groupby(["trial_id", "measure"])[["n_periods", "null_periods"]].sum()
    renamed = {"n_periods": "calibrated_periods", "null_periods": "calibrated_periods_null"}
    return table.merge(own.rename(columns=renamed).reset_index(), on=["trial_id", "measure"], how="left")


def _by_family(table: pd.DataFrame, family: pd.Series) -> pd.DataFrame:
    means = {
        "critical": "total_critical_steps",
        "transitions": "total_transitions",
        "coordination": "mean_coordination",
        "loss fell at critical": "loss_correlation",
        "loss fell at all": "loss_drops_base",
        "calibrated periods": "calibrated_periods",
        "of these by chance": "calibrated_periods_null",
    }
    by = table.groupby(family.to_numpy())
    made = pd.DataFrame({name: by[c].mean().round(3) for name, c in means.items() if c in table})
    made.insert(0, "runs", by.size())
    made["strong by the published rule"] = by["strong"].sum()
    return made.rename_axis("family").reset_index()


# -- plan and summary ------------------------------------------------------------------------------------------------


def _plan(album: Album, tables: Tables, trials: pd.DataFrame) -> None:
    published = _has_original(tables["jumps"])
    if published:
        if len(_clusters(tables, trials)):
            caption = "The published choice of five jumps a run; its steps are measurement indices."
            album.text(SECTION, PLAN, _json(_flagged(_published_plan(tables, trials), trials)), caption)
        else:
            album.skip(SECTION, PLAN, _run(album, "taxonomy"))
    made = checkpoint_plan.plan_checkpoints(tables)
    name = _file(PLAN, not published)
    if made.entries:
        caption = f"Checkpoints around representative {made.source}, in optimizer steps."
        album.text(SECTION, name, _json(_flagged(made.founding(), trials)), caption)
    else:
        album.skip(SECTION, name, "; ".join(made.notices) or _run(album, "events"))


def _flagged(plan: Mapping[str, Any], trials: pd.DataFrame) -> dict[str, Any]:
    """A plan that says of each experiment whether its data set is complete."""
    flags = trials.drop_duplicates("experiment").set_index("experiment")["data_completeness"]
    return {name: {**entry, "data_completeness": _plain(flags.get(name))} for name, entry in plan.items()}


def _published_plan(tables: Tables, trials: pd.DataFrame) -> dict[str, Any]:
    """{experiment: {jumps, checkpoint_steps}} by the founding rule."""
    rows = _published(tables, trials)
    plan = {}
    for experiment, own in rows[rows["cluster"].notna()].groupby("experiment", sort=True):
        chosen = select(own.assign(index=own["step"]), rule="founding")
        shown = chosen[["step", "phase", "magnitude", "layer", "direction", "cluster"]]
        entries = [{k: _plain(v) for k, v in row.items()} for row in shown.to_dict("records")]
        for entry in entries:
            entry["checkpoints"] = founding_steps(pd.DataFrame({"index": [entry["step"]]}))
        plan[str(experiment)] = {"jumps": entries, "checkpoint_steps": founding_steps(chosen)}
    return plan


def _summary(album: Album, made: Mapping[str, str], trials: pd.DataFrame) -> str:
    n = {name: trials[name].nunique() for name in ("arch_name", "dataset", "experiment")}
    counts = f"{len(trials)} runs: {n['experiment']} experiments of {n['arch_name']} architectures"
    data = founded.said(data_sets(trials.rename(columns={"dataset": "data"}))).rstrip()
    lines = [f"# Phase 1: {album.sweep}", "", f"{counts} on {n['dataset']} data sets.", "", data, ""]
    for title, text in made.items():
        if text:
            lines += [f"## {title}", "", text.rstrip(), ""]
    own = [e for e in album.entries if e.section == SECTION]
    lines += ["## Files", "", *(f"- `{e.path.relative_to(album.folder)}`: {e.caption}" for e in own), ""]
    absent = [f"- `{s.what}`: {s.reason}" for s in album.skips if s.section == SECTION]
    if absent:
        lines += ["## Not there", "", *absent, ""]
    return "\n".join(lines)


def _words(mode: str, rows: pd.DataFrame) -> str:
    if mode == "original":
        return f"As published (on {rows['measure'].iloc[0]}, steps as measurement indices)"
    return f"By the correct rule, on {rows['measure'].iloc[0]}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)) else value
