"""The founding plan's tables of jumps by architecture, from a store's own: every count beside what noise gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.events.coupling import loss_coupling_table
from ndt_ray.analysis.events.significant import primary
from ndt_ray.analysis.jumps import RESOLUTION, compare_with_null
from ndt_ray.analysis.phases import BINS, phase_bin
from ndt_ray.analysis.taxonomy.representatives import founding_steps, select
from ndt_ray.architectures import family_of
from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.report.data_sets import DataSet, data_sets, sentences

TABLES = (
    "trials", "events", "event_families", "event_types", "event_windows", "jumps", "jump_counts", "coordination",
    "event_phases", "event_kinds", "phase_verdicts", "checkpoints",
)  # fmt: skip
"""What is read; any may be empty."""
FAMILIES = ("transformer", "cnn", "mlp")
RULE = "difference_z"
MEASURE = "participation_ratio"
"""Of the jumps that stand in where no events were sought."""
REPRESENTATIVES = 5
DETAILED = (
    "experiment", "model", "data", "trial_id", "layer", "layer_index", "depth", "step_before", "step_after", "index",
    "phase", "phase_bin", "true_phase", "true_phase_bin", "magnitude", "speed", "direction", "z", "p_event", "q",
    "type", "loss_change", "loss_expected", "n_layers", "n_coordinated", "coordinated_expected", "representative",
)  # fmt: skip


@dataclass(frozen=True)
class Jumps:
    """What counts as a jump in a sweep: `rows` with names, phases, sizes and the loss; `counts` beside noise.

    `mode`: events (calibrated), original (as published) or default (the published rule on correct measures). `data`:
    what the trials learned from; `kinds`: events by kind of layer, where these were counted.
    """

    mode: str
    rows: pd.DataFrame
    counts: pd.DataFrame
    null_events: float | None
    windows: pd.DataFrame
    data: Sequence[DataSet] = ()
    kinds: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def words(self) -> str:
        """What they are, for titles and captions."""
        return {
            "events": "significant events of the primary family (false discovery rate controlled)",
            "original": f"jumps as published, z > 2{self._unresolved}",
            "default": f"jumps of {MEASURE}, z > 2: uncalibrated, read them beside noise",
        }[self.mode]

    @property
    def _unresolved(self) -> str:
        """How many are too small to be told from rounding; nothing where no size is known."""
        if "relative_magnitude" not in self.rows or self.rows["relative_magnitude"].isna().all():
            return ""
        sizes = self.rows["relative_magnitude"].dropna().astype(np.float64)
        tiny = int((sizes <= RESOLUTION).sum())
        return f"; {tiny:,} of {len(sizes):,} are within rounding ({RESOLUTION:g} of the value)"


def read(tables: Mapping[str, pd.DataFrame], experiments: Sequence[str] = ()) -> Jumps | None:
    """The jumps of the cells that `experiments` name (default: all); None where nothing was sought.

    SpecError for an experiment that the sweep does not have.
    """
    trials = named(tables["trials"])
    known = sorted(trials["experiment"].unique())
    for name in experiments:
        if name not in known:
            raise SpecError(f"no experiment '{name}' in this sweep{did_you_mean(name, known)}")
    own = trials[trials["experiment"].isin(experiments)] if experiments else trials
    jumps, families = tables["jumps"], tables["event_families"]
    if len(jumps) and (jumps["mode"] == "original").any():
        found = _published(jumps[(jumps["mode"] == "original") & (jumps["detector"] == RULE)], own)
        return _with(found, tables, own, "original", None)
    events = primary(tables["events"], families)
    if len(tables["events"]):
        null = float(families.loc[families["primary"].astype(bool), "null_events"].sum()) if len(families) else None
        return _with(_events(events, own), tables, own, "events", null)
    if not len(jumps):
        return None
    chosen = (jumps["mode"] == "default") & (jumps["detector"] == RULE) & (jumps["measure"] == MEASURE)
    rows = jumps[chosen & jumps["counted"].astype(bool)]
    return _with(_bins(rows.merge(own, on="trial_id")), tables, own, "default", None)


def named(trials: pd.DataFrame) -> pd.DataFrame:
    kept = trials[trials["control"].astype(str) == "none"] if "control" in trials else trials
    family = kept["model"].astype(str).map(family_of)
    names = kept.assign(experiment=kept["cell"].astype(str), family=family)
    known = [c for c in ("data_completeness", "n_train") if c in names]
    return names[["trial_id", "experiment", "family", "model", "data", "steps", *known]]


def _published(rows: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    joined = rows.merge(trials, on="trial_id")
    true = joined["step_before"] / joined["steps"].astype(np.float64)
    return joined.assign(true_phase=true, true_phase_bin=phase_bin(true.clip(0, 1)))


def _bins(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(true_phase=rows["phase"], true_phase_bin=rows["phase_bin"])


def _events(events: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    if events.empty:
        return pd.DataFrame(columns=list(DETAILED) + ["family", "steps", "view", "measure"])
    size = events["size"].abs().astype(np.float64)
    width = np.maximum(events["width"].astype(np.float64).fillna(1.0), 1.0)
    made = events.drop(columns="family").assign(magnitude=size, speed=size / width, z=events["statistic"])
    return _bins(made.merge(trials, on="trial_id"))


def _with(
    rows: pd.DataFrame, tables: Mapping[str, pd.DataFrame], trials: pd.DataFrame, mode: str, null: float | None
) -> Jumps:
    """Rows joined with their types and what the loss and other layers did; representatives chosen per experiment."""
    key = ["trial_id", "layer", "view", "measure", "step_before"]
    told = "default" if mode == "events" else mode
    types, windows = tables["event_types"], tables["event_windows"]
    if len(types) and len(rows) and mode != "default":
        rows = rows.merge(types.loc[types["mode"] == told, [*key, "type"]], on=key, how="left")
    names = [
        "loss_change", "loss_expected", "loss_fell_expected", "n_layers", "n_coordinated", "coordinated_expected",
    ]  # fmt: skip
    if len(windows) and len(rows) and mode != "default":
        rows = rows.merge(windows.loc[windows["mode"] == told, [*key, *names]], on=key, how="left")
    deepest = rows.groupby("trial_id")["layer_index"].transform("max") if len(rows) else pd.Series(dtype=float)
    rows = rows.assign(depth=(rows["layer_index"] / deepest.replace(0, np.nan)).fillna(0.0) if len(rows) else [])
    for name in (*names, "type", "q", "p_event", "index", "z"):
        if name not in rows:
            rows = rows.assign(**{name: np.nan})
    rows = rows.reset_index(drop=True)
    chosen = (
        [i for _, own in rows.groupby("experiment") for i in _representatives(own, mode).index] if len(rows) else []
    )
    rows = rows.assign(representative=rows.index.isin(chosen))
    counts = tables["jump_counts"]
    if len(counts):
        judged = counts[
            (counts["mode"] == ("original" if mode == "original" else "default")) & (counts["detector"] == RULE)
        ]
        judged = judged if mode == "original" else judged[judged["measure"] == MEASURE]
        counts = judged.merge(trials, on="trial_id")
    own = (
        windows[windows["mode"] == told].merge(trials[["trial_id", "experiment"]], on="trial_id")
        if len(windows)
        else windows
    )
    near = own if mode != "default" else own.iloc[:0]
    return Jumps(mode, rows, counts, null, near, data_sets(trials), _kinds(tables["event_kinds"], trials, mode))


def _kinds(kinds: pd.DataFrame, trials: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Rows of `event_kinds` of these trials' cells; uncalibrated jumps were not counted so."""
    if kinds.empty or mode == "default":
        return kinds.iloc[:0]
    own = kinds[kinds["mode"] == ("original" if mode == "original" else "default")]
    own = own.rename(columns={"cell": "experiment"}).drop(columns=["mode", "model", "data", "sweep"], errors="ignore")
    return own.merge(trials.drop_duplicates("experiment")[["experiment", "family"]], on="experiment")


def _representatives(own: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Five of an experiment by the founding rule where there are published types, else spread over types and phases."""
    if mode == "original" and own["type"].notna().any():
        return select(own.assign(cluster=own["type"] - 1), REPRESENTATIVES, "founding")
    sized = own.assign(relative_size=own["relative_size"] if "relative_size" in own else own["magnitude"])
    return select(sized, REPRESENTATIVES, "balanced")


def detailed(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns of the founding CSVs that there are, in order of experiment, layer and step."""
    columns = [c for c in DETAILED if c in rows]
    return rows.sort_values(["experiment", "layer_index", "step_before"], ignore_index=True)[columns]


def beside_noise(found: Jumps, by: str) -> pd.DataFrame:
    """Jumps by family or experiment: observed by the published rule, expected on white and AR(1) noise, verdicts."""
    if not len(found.counts):
        return pd.DataFrame()
    return compare_with_null(found.counts, by=[by])


def loss_correlations(found: Jumps) -> pd.DataFrame:
    """Jumps, mean loss change and share that improved by experiment and timing, and the same of
    windows of the same length nearby (null where none were compared)."""
    if not len(found.windows):
        return pd.DataFrame()
    table = loss_coupling_table(found.windows, by=("experiment",))
    near = found.windows[found.windows["phase_bin"].notna()]
    means = near.groupby(["experiment", "phase_bin"])[["loss_expected", "loss_fell_expected"]].mean().reset_index()
    renamed = {
        "phase_bin": "timing",
        "loss_expected": "expected_loss_change",
        "loss_fell_expected": "expected_improving_fraction",
    }
    return table.merge(means.rename(columns=renamed), on=["experiment", "timing"], how="left")


def key_table(found: Jumps) -> pd.DataFrame:
    """The founding key table: a row a quantity, a column a family; counts with what noise gives, nothing constant."""
    noise = beside_noise(found, "family")
    columns: dict[str, dict[str, Any]] = {}
    for family in [f for f in FAMILIES if (found.rows["family"] == f).any() or _judged(noise, f)]:
        rows = found.rows[found.rows["family"] == family]
        columns[family] = _column(found, rows, noise[noise["family"] == family] if len(noise) else noise)
    table = pd.DataFrame(columns)
    table.index.name = "quantity"
    return table.reset_index()


def _judged(noise: pd.DataFrame, family: str) -> bool:
    return bool(len(noise)) and bool((noise["family"] == family).any())


def _column(found: Jumps, rows: pd.DataFrame, noise: pd.DataFrame) -> dict[str, Any]:
    n = len(rows)
    cell: dict[str, Any] = {"total jumps": n, "experiments": rows["experiment"].nunique()}
    if len(noise):
        row = noise.iloc[0]
        cell["rule z > 2: observed"] = int(row["observed"])
        for kind, name in (("white", "white noise"), ("ar1", "AR(1) noise")):
            cell[f"rule z > 2: expected on {name}"] = round(float(row[f"expected_{kind}"]), 1)
            cell[f"rule z > 2: against {name}"] = row[f"verdict_{kind}"]
    known = rows["q"].dropna()
    cell["jumps with q <= .05"] = int((known <= 0.05).sum()) if len(known) else "not tested"
    for column, word in (("phase_bin", ""), ("true_phase_bin", " in true steps")):
        if column == "true_phase_bin" and found.mode != "original":
            continue
        for name in BINS:
            cell[f"{name} %{word}"] = round(100 * float((rows[column] == name).mean()), 1) if n else None
    chosen = rows[rows["representative"].astype(bool)]
    cell["representative jumps"] = len(chosen)
    cell["checkpoints around them"] = _checkpoints(found, chosen)
    cell["mean jump phase"] = round(float(rows["phase"].mean()), 3) if n else None
    early = rows[rows["phase_bin"] == "early"]
    fell = early["loss_change"].dropna().astype(np.float64) < 0
    for name, shares in (("loss improvement (early) %", fell), ("expected nearby %", early["loss_fell_expected"])):
        known = shares.dropna().astype(np.float64)
        cell[name] = round(100 * float(known.mean()), 1) if len(known) else None
    cell["early jumps with a loss"] = int(early["loss_change"].notna().sum())
    return cell


def _checkpoints(found: Jumps, chosen: pd.DataFrame) -> int:
    """Before, during and after each representative, each once a trial (the published plan counted in indices)."""
    if found.mode == "original":
        return sum(len(founding_steps(own)) for _, own in chosen.groupby("trial_id"))
    ends = chosen[["step_before", "step_after"]].astype(float)
    middles = ends.mean(axis=1).round()
    return len(
        {
            (t, s)
            for t, a, m, b in zip(chosen["trial_id"], ends["step_before"], middles, ends["step_after"], strict=True)
            for s in (a, m, b)
        }
    )


def said(data: Sequence[DataSet]) -> str:
    """What is known of the data sets, as paragraphs of Markdown; those that end claims are bold."""
    return "".join(f"**{text}**\n\n" if limits else f"{text}\n\n" for text, limits in sentences(data))


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown; cells that are null are empty."""
    names = list(table.columns)
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in table.itertuples(index=False):
        cells = ["" if pd.isna(value) else str(value) for value in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
