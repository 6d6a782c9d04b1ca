"""What a modular network's tables say, as sentences: every number computed, nothing said that was not found."""

from typing import Any

import pandas as pd


def observations(
    onset: pd.Series, measures: pd.DataFrame, timeline: pd.DataFrame, questions: pd.DataFrame
) -> list[str]:
    """Key observations of one trial, from its rows of `grokking_onsets`, `grokking_measures`,
    `specialisation_timeline` and `scale_questions`; any of the tables may be empty."""
    lines = [_descent(onset)]
    if len(measures):
        lines += _structure(measures.sort_values("step"), onset)
    neurons = timeline[timeline["kind"] == "neuron"] if len(timeline) else timeline
    if len(neurons):
        lines.append(_specialisation(neurons))
    for row in questions.itertuples() if len(questions) else ():
        if row.p is not None and not pd.isna(row.p):
            lines.append(
                f"{row.question} ({row.kind}, {row.statistic}): {row.answer}; {row.value:.2f}, p = {row.p:.3g},"
                f" n = {row.n}."
            )
    return lines


def summary(measures: pd.DataFrame, scales: pd.DataFrame) -> pd.DataFrame:
    """Summary statistics per checkpoint: losses, and mean, SD, median and quartiles of the neurons' scales and
    coarseness, how many are blobs (coarseness .7 and more) and how many plaid (below .5)."""
    neurons = scales[scales["kind"] == "neuron"]
    rows = []
    for step, own in neurons.groupby("step", sort=True):
        row: dict[str, Any] = {"step": step}
        for name in ("fft_no_dc", "coarseness"):
            values = own[name].dropna()
            row |= {f"{name}_{q}": values.quantile(v) for q, v in (("p25", 0.25), ("median", 0.5), ("p75", 0.75))}
            row |= {f"{name}_mean": values.mean(), f"{name}_sd": values.std()}
        row |= {"blobs": int((own["coarseness"] >= 0.7).sum()), "plaids": int((own["coarseness"] < 0.5).sum())}
        row |= {kind: int((own["structure"] == kind).sum()) for kind in ("low_frequency", "mixed", "high_frequency")}
        rows.append(row)
    names = ["step", "train_loss", "test_loss", "train_accuracy", "test_accuracy"]
    return pd.DataFrame(rows).merge(measures[names], on="step", how="outer") if rows else measures[names]


def _descent(onset: pd.Series) -> str:
    status, memorised = onset["status"], _step(onset["memorised_step"])
    if status in ("grokked", "partial", "rebound"):
        word = {"grokked": "", "partial": f"; it ends at {onset['final_loss']:.2g} nats", "rebound": ", and rebounds"}
        return (
            f"Grokking detected: memorised at step {memorised}, steepest descent of the held-out loss at step"
            f" {_step(onset['inflection_step'])}, 80 % of its peak of {onset['peak_loss']:.2f} nats gone at step"
            f" {_step(onset['onset_step'])} (delay {_step(onset['delay'])} steps, confidence"
            f" {onset['confidence']:.2f}){word[status]}."
        )
    return {
        "no_second_descent": f"Memorised at step {memorised}; no second descent until the end of the run.",
        "no_memorisation": "The training loss never fell below 1 % of the uniform one.",
        "immediate": f"Generalised as it memorised (step {memorised}): no second descent.",
    }[status]


def _structure(measures: pd.DataFrame, onset: pd.Series) -> list[str]:
    last = measures.iloc[-1]
    keys = ", ".join(str(k) for k in last["key_frequencies"]) or "none"
    lines = [
        f"Key frequencies at step {last['step']}: {keys}; they explain {last['explained']:.0%} of the logits."
        if pd.notna(last["explained"])
        else f"No key frequency at step {last['step']}."
    ]
    if pd.notna(last["gini_embedding"]):
        first = measures.iloc[0]
        lines.append(
            f"Gini of the embedding's spectrum: {first['gini_embedding']:.2f} at step {first['step']},"
            f" {last['gini_embedding']:.2f} at step {last['step']}."
        )
    circuit, shown = onset["excluded_step"], onset["onset_step"]
    if pd.notna(circuit) and pd.notna(shown):
        order = "before" if circuit < shown else "after" if circuit > shown else "at the same checkpoint as"
        lines.append(
            f"The excluded loss is half-way at step {_step(circuit)}, {order} the onset of the second descent."
        )
    return lines


def _specialisation(neurons: pd.DataFrame) -> str:
    share = neurons["specialised_step"].notna().mean()
    committed = neurons["commitment_step"].dropna()
    when = f"half of those committed by step {int(committed.median())}" if len(committed) else "none committed"
    switched = int((neurons["switches"] > 0).sum())
    return f"{share:.0%} of {len(neurons)} neurons end specialised; {when}; {switched} switched frequency on the way."


def _step(value: Any) -> str:
    return "–" if pd.isna(value) else f"{int(value):,}"
