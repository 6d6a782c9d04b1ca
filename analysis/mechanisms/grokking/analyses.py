"""The analyses of modular networks: checkpoints to maps, maps to timelines and answers, trials to comparisons."""

import json
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms.grokking import fourier
from ndt_ray.analysis.mechanisms.grokking.maps import ModularBundle, bundle, head_ablation
from ndt_ray.analysis.mechanisms.grokking.measures import progress_row, scale_rows, spectra_rows
from ndt_ray.analysis.mechanisms.grokking.onset import Onset, half_way, held_from, second_descent
from ndt_ray.analysis.mechanisms.grokking.pooled import pooled
from ndt_ray.analysis.mechanisms.grokking.questions import clusters, questions
from ndt_ray.analysis.mechanisms.grokking.tables import (
    ANSWERS,
    COMPARISON,
    MEASURES,
    ONSETS,
    QUESTIONS,
    SCALES,
    SPECTRA,
    TIMELINE,
)
from ndt_ray.analysis.mechanisms.grokking.timeline import timeline
from ndt_ray.data import load
from ndt_ray.spec import Trial


@analysis(
    name="grokking",
    reads=("trials", "checkpoints"),
    writes=(MEASURES, SPECTRA, SCALES),
    per="trial",
    context=True,
)
def grokking(data: AnalysisInput, *, key_share: float = 0.02, ablate: bool = True) -> dict[str, pd.DataFrame]:
    """Fourier structure, progress measures and scales of a modular network, at every checkpoint of a trial.

    Restricted and excluded loss keep the key frequencies of the last checkpoint: those with over `key_share` of its
    logits' energy. Trials on other data have no rows.
    """
    empty = {table.name: pd.DataFrame() for table in (MEASURES, SPECTRA, SCALES)}
    steps = checkpoint_steps(data)
    if modulus(data) is None or not steps:
        return empty
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in empty}
    keys: tuple[int, ...] | None = None
    for step in reversed(steps):  # the last one first: it says which frequencies are the key ones
        found = _bundle(data, step)
        keys = fourier.key_frequencies(fourier.sum_energy(found.logits), key_share) if keys is None else keys
        who = {"trial_id": data.partition.trial_id, "step": step}
        ablation = head_ablation(data.context(step).model, _dataset(data, step), found) if ablate else []
        parts[MEASURES.name].append(pd.DataFrame([who | progress_row(found, keys)]))
        for table, rows in ((SPECTRA, spectra_rows(found)), (SCALES, scale_rows(found, ablation))):
            parts[table.name].append(rows.assign(**who))
    return {name: pd.concat([f for f in frames if len(f)] or [pd.DataFrame()]) for name, frames in parts.items()}


@analysis(
    name="grokking_timeline",
    reads=("trials", "evaluations", "losses", MEASURES.name, SCALES.name),
    writes=(TIMELINE, ONSETS, QUESTIONS),
    per="trial",
)
def grokking_timeline(
    data: AnalysisInput, *, drop: float = 0.8, width: float = 0.01, good: float = 1e-5
) -> dict[str, pd.DataFrame]:
    """When a modular network memorised, generalised and specialised, and the open questions on scales.

    The second descent: `drop` of the held-out loss's peak gone; `width`: smoothing, as a share of the run; `good`: a
    final loss above it is partial.
    """
    empty = {table.name: pd.DataFrame() for table in (TIMELINE, ONSETS, QUESTIONS)}
    p = modulus(data)
    if p is None:
        return empty
    who = {"trial_id": data.partition.trial_id}
    measures = data.frame(MEASURES.name)
    scales = data.frame(SCALES.name)
    onset = _onset_row(data, p, measures, drop=drop, width=width, good=good)
    found = empty | {ONSETS.name: pd.DataFrame([who | onset])}
    if not len(scales):
        return found
    times = timeline(scales, p).assign(cluster=-1, representative=False, **who)
    first, last = (scales[scales["step"] == step] for step in (scales["step"].min(), scales["step"].max()))
    neurons = last[last["kind"] == "neuron"].sort_values("unit")
    _, labels, chosen = clusters(neurons, (str(data.partition.trial_id), "neuron"))
    own = (times["kind"] == "neuron").to_numpy()
    times.loc[own, "cluster"], times.loc[own, "representative"] = labels, chosen
    times["cluster"] = times["cluster"].where(times["cluster"] >= 0).astype("Int32")
    answers = questions(first, last, times, str(data.partition.trial_id)).assign(**who)
    return found | {TIMELINE.name: times, QUESTIONS.name: answers}


@analysis(
    name="grokking_comparison",
    reads=("trials", ONSETS.name, MEASURES.name, QUESTIONS.name, TIMELINE.name),
    writes=(COMPARISON, ANSWERS),
    per="sweep",
)
def grokking_comparison(data: AnalysisInput, *, consistent: float = 0.25) -> dict[str, pd.DataFrame]:
    """Grokking across moduli and seeds: what is consistent (sd / |mean| below `consistent`), what the seed decides.

    And the open questions on scales with the units of a cell's networks taken together: four heads of one network
    cannot answer them, 24 of six can.
    """
    trials, onsets, measures = (data.frame(name) for name in ("trials", ONSETS.name, MEASURES.name))
    if not len(onsets) or not len(measures):
        return {COMPARISON.name: pd.DataFrame(), ANSWERS.name: pd.DataFrame()}
    last = measures.sort_values("step").groupby("trial_id").tail(1)
    values = _quantities(onsets, last, data.frame(QUESTIONS.name))
    cells = trials[trials["control"] == "none"].set_index("trial_id")["cell"]
    moduli = last.set_index("trial_id")["p"]
    values["cell"] = values["trial_id"].map(cells)
    values["p"] = values["trial_id"].map(moduli)
    grouped = values.dropna(subset=["cell"]).groupby(["cell", "quantity"])
    rows = [_summary(key, group, consistent) for key, group in grouped]
    table = pd.DataFrame(rows)
    if len(table):
        table["other_p"] = [_others(row, table) for row in table.itertuples()]
    return {COMPARISON.name: table, ANSWERS.name: _answers(data.frame(TIMELINE.name), cells, moduli)}


def modulus(data: AnalysisInput) -> int | None:
    """p of a trial on modular addition; None for other data."""
    trials = data.frame("trials")
    if not len(trials):
        return None
    trial = Trial.model_validate_json(trials["spec"].iloc[0])
    if trial.data.name != "modular_addition":
        return None
    return load(trial.data.name, trial.data.params).inputs.classes


def checkpoint_steps(data: AnalysisInput) -> list[int]:
    """Saved checkpoints of the partition's trial, and the initialisation, which needs no file; none without a trial."""
    saved = data.frame("checkpoints")
    return sorted({0, *saved["step"].astype(int)}) if len(saved) else []


def _dataset(data: AnalysisInput, step: int) -> Any:
    spec = data.context(step).trial.data
    return load(spec.name, spec.params)


def _bundle(data: AnalysisInput, step: int) -> ModularBundle:
    return bundle(data.context(step).model, _dataset(data, step))


def _onset_row(data: AnalysisInput, p: int, measures: pd.DataFrame, **rules: float) -> dict[str, Any]:
    """A row of `grokking_onsets` but the trial; from evaluations where there are any, else from checkpoints."""
    held_out, losses = data.frame("evaluations"), data.frame("losses")
    if len(held_out) >= len(measures):
        tested = held_out.sort_values("step")[["step", "loss", "accuracy"]]
    else:
        tested = measures.sort_values("step")[["step", "test_loss", "test_accuracy"]]
    tested.columns = pd.Index(["step", "loss", "accuracy"])
    if len(losses):
        losses = losses.sort_values("step")
        train = losses["step"].to_numpy(np.float64), losses["loss"].to_numpy(np.float64)
    else:
        rows = measures.sort_values("step") if len(measures) else pd.DataFrame({"step": [], "train_loss": []})
        train = rows["step"].to_numpy(np.float64), rows["train_loss"].to_numpy(np.float64)
    steps = tested["step"].to_numpy(np.float64)
    found = second_descent(steps, tested["loss"].to_numpy(np.float64), float(np.log(p)), train, **rules)
    accuracy = tested["accuracy"].to_numpy(np.float64)
    row: dict[str, Any] = {name: getattr(found, name) for name in (*Onset.__dataclass_fields__, "delay")}
    row |= {"accuracy_step": held_from(steps, accuracy > 0.5), "perfect_step": held_from(steps, accuracy >= 0.99)}
    row |= dict.fromkeys(("restricted_step", "excluded_step", "gini_step")) | {"frequencies": [], "learned": []}
    if len(measures):
        ordered = measures.sort_values("step")
        at = ordered["step"].to_numpy(np.float64)
        for name, column, log in (
            ("restricted_step", "restricted_loss", True),
            ("excluded_step", "excluded_loss", False),
            ("gini_step", "gini_embedding", False),
        ):
            row[name] = half_way(at, ordered[column].to_numpy(np.float64), log=log)
        end = ordered.iloc[-1]
        row |= {"frequencies": list(end["key_frequencies"]), "learned": list(end["learned_frequencies"])}
    return row


def _quantities(onsets: pd.DataFrame, last: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Long rows (trial_id, quantity, value) of everything numeric that trials can be compared by."""
    chosen = onsets[["trial_id", *[c for c in onsets if c.endswith("_step")], "delay", "confidence", "final_loss"]]
    chosen = chosen.assign(n_key_frequencies=onsets["frequencies"].map(len), n_learned=onsets["learned"].map(len))
    numeric = [c for c in last.select_dtypes("number") if c not in ("step", "p")]
    final = last[["trial_id", *numeric]].rename(columns={c: f"final_{c}" for c in numeric if c != "final_loss"})
    frames = [t.melt("trial_id", var_name="quantity", value_name="value") for t in (chosen, final)]
    if len(answers):
        names = answers["question"] + ":" + answers["kind"] + ":" + answers["statistic"]
        frames.append(answers[["trial_id", "value"]].assign(quantity=names))
    return pd.concat([f.astype({"value": "float64"}) for f in frames], ignore_index=True)


def _summary(key: Any, group: pd.DataFrame, consistent: float) -> dict[str, Any]:
    values = group["value"].dropna().to_numpy(np.float64)
    n = len(values)
    mean = float(values.mean()) if n else None
    sd = float(values.std(ddof=1)) if n > 1 else None
    row: dict[str, Any] = {"cell": key[0], "quantity": key[1], "p": int(group["p"].iloc[0]), "n": n}
    row |= {"n_missing": len(group) - n, "mean": mean, "sd": sd, "lo": None, "hi": None, "consistent": None}
    if mean is not None and sd is not None:
        half = float(student.ppf(0.975, n - 1)) * sd / np.sqrt(n)
        row |= {"lo": mean - half, "hi": mean + half}
        if n >= 3:
            row["consistent"] = bool(sd <= consistent * abs(mean))
    return row


def _answers(units: pd.DataFrame, cells: "pd.Series[str]", moduli: "pd.Series[int]") -> pd.DataFrame:
    """Rows of `scale_answers`: the questions of every cell, of all its networks together."""
    if not len(units):
        return pd.DataFrame()
    known = units.assign(cell=units["trial_id"].map(cells), modulus=units["trial_id"].map(moduli))
    found = [
        pooled(own, str(cell)).assign(cell=cell, modulus=int(modulus))
        for (cell, modulus), own in known.dropna(subset=["cell", "modulus"]).groupby(["cell", "modulus"])
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _others(row: Any, table: pd.DataFrame) -> str:
    """Means of the same quantity at other moduli, by modulus, as JSON."""
    same = table[(table["quantity"] == row.quantity) & (table["p"] != row.p) & table["mean"].notna()]
    return json.dumps({str(int(p)): float(mean) for p, mean in same.groupby("p")["mean"].mean().items()})
