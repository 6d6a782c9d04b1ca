"""Modular networks: when each memorised and generalised, how its circuit grew, where dimensionality stands to it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.inference.multiplicity import bh
from ndt_ray.analysis.inference.seeds import interval
from ndt_ray.figures.charts import panel
from ndt_ray.report.event_claims import candidates_of
from ndt_ray.report.order import ALPHA, sheet
from ndt_ray.report.parts import Claim, Figure, Kind, Plate, Section, Sheet
from ndt_ray.report.source import MINIMUM, NAME, Answer, Source, quoted
from ndt_ray.report.words import count, fixed, level, listed, number, readable, share, span
from ndt_ray.report.words import interval as ends

MODELS = ("modular_transformer",)
DETECTED = ("grokked", "partial", "rebound")
"""Statuses of `grokking_onsets` in which there was a second descent."""
MOST_RUNS = 6
"""Runs that are drawn, every cell's first seeds; the tables have all."""
SPOKEN = 8
"""Lags that a sentence names."""
MOST_POINTS = 160
"""Of a line in a panel."""
LANDMARKS = (("memorised", "memorised"), ("inflection", "steepest"), ("onset", "80 % gone"))
MEASURE = "participation_ratio"
UNITS = {"neuron": "neurons", "head_to_a": "heads", "head_to_b": "heads (to b)"}
SUMMED = (
    "train_loss", "test_loss", "train_accuracy", "test_accuracy", "restricted_loss", "excluded_loss", "gini_embedding",
    "explained", "specialised_neurons",
)  # fmt: skip
"""Columns of `grokking_measures` in the summary by checkpoint."""


def grokking(source: Source) -> Section:
    """The section; empty unless the sweep has modular networks."""
    section = Section("grokking", "Grokking: from memory to rule", short="Grokking")
    if not source.has("grokking_onsets", "status", "memorised_step", "inflection_step", "onset_step", "delay"):
        if set(source.trials["model"].dropna()) & set(MODELS):
            what = "Whether these modular networks grokked was not asked"
            section.missing.append((what, f"ndt analyze {source.sweep} grokking_comparison grokking_lags"))
        return section
    onsets = source.ask(
        f"SELECT {NAME} AS name, t.seed, g.* EXCLUDE (sweep) FROM grokking_onsets g JOIN trials t "
        "USING (sweep, trial_id) WHERE sweep = $sweep ORDER BY t.cell, t.control, t.seed"
    )
    section.claims += list(_detected(source, onsets))
    if source.has("grokking_measures", "gini_embedding", "explained", "specialised_neurons", "restricted_loss"):
        section.claims += list(_circuit(source, onsets))
        section.plates += list(_runs(source, onsets.rows))
    section.claims += [*_lags(source), *_pooled(source), *_questions(source), *_consistent(source)]
    section.sheets += [_trials(source, onsets), *_checkpoints(source)]
    for table, title in (
        ("grokking_comparison", "What is consistent over seeds, and what the seed decides"),
        ("grokking_lags", "Events beside the landmarks"),
        ("scale_answers", "Open questions on scales, all networks of a cell together"),
        ("scale_questions", "Open questions on scales, trial by trial"),
        ("specialisation_timeline", "When units specialised"),
    ):
        section.sheets += list(sheet(source, table, title))
    return section


# -- sentences -----------------------------------------------------------------------------------------------------


def _detected(source: Source, onsets: Answer) -> Iterator[Claim]:
    """By cell: in how many trials a second descent was found, and when; what the others did instead."""
    reached = source.ask("SELECT trial_id, max(step) AS step FROM measurements WHERE sweep = $sweep GROUP BY 1").rows
    steps = dict(zip(reached["trial_id"], reached["step"], strict=True))
    for name, own in _by_name(source, onsets.rows):
        found = own[own["status"].isin(DETECTED)]
        seen = [steps[t] for t in own["trial_id"] if t in steps]
        until = f" (of {number(source.horizon(name))} planned steps, {number(min(seen))} are there)" if seen else ""
        if found.empty:
            said = listed(f"{readable(str(s))} in {n:,}" for s, n in own["status"].value_counts().items())
            text = f"{source.label(name)}: no grokking in {count(len(own), 'trial')}{until}: {said}."
            yield Claim(text, "nothing", onsets.sql, headline=True)
            continue
        text = f"{source.label(name)}: grokking detected in {len(found):,} of {count(len(own), 'trial')}{until}. "
        text += f"Memorised at step {_when(found['memorised_step'])}; steepest descent of the held-out loss at step "
        text += f"{_when(found['inflection_step'])}; 80 % of its peak gone at step {_when(found['onset_step'])}, "
        text += f"{_when(found['delay'])} steps after memorising"
        kinds = found["status"].value_counts()
        rest = [f"{n:,} {'end partial' if k == 'partial' else 'rebound'}" for k, n in kinds.items() if k != "grokked"]
        other = own[~own["status"].isin(DETECTED)]["status"].value_counts()
        rest += [f"{n:,} {readable(str(k))}" for k, n in other.items()]
        text += f" ({listed(rest)})" if rest else ""
        few = "" if len(found) >= MINIMUM else " Fewer than three trials: this describes them, and no more."
        yield Claim(f"{text}. A rule on the loss curve, not a test.{few}", "described", onsets.sql, headline=True)


def _by_name(source: Source, rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows of each name, in the plan's order."""
    return [(name, own) for name in source.labels if len(own := rows[rows["name"] == name])]


def _when(values: "pd.Series[Any]") -> str:
    """Mean with its interval over trials; all of them where there are one or two."""
    known = values.dropna().astype(float)
    if len(known) < MINIMUM:
        return listed(number(v) for v in known) if len(known) else "–"
    within = interval(known)
    return f"{fixed(known.mean(), 0)} {ends(within.lo, within.hi, 0)}"


def _circuit(source: Source, onsets: Answer) -> Iterator[Claim]:
    """How much of the network is Fourier circuit at the last checkpoint, beside the first."""
    answer = source.ask(
        f"SELECT {NAME} AS name, g.trial_id, g.step, g.gini_embedding, g.explained, g.specialised_neurons, "
        "len(g.key_frequencies) AS keys, row_number() OVER (PARTITION BY g.trial_id ORDER BY g.step) AS k, "
        "count(*) OVER (PARTITION BY g.trial_id) AS n FROM grokking_measures g JOIN trials t USING (sweep, trial_id) "
        "WHERE sweep = $sweep AND g.flag IS DISTINCT FROM 'no_block' QUALIFY k = 1 OR k = n ORDER BY name, "
        "g.trial_id, g.step"
    )
    for name, own in _by_name(source, answer.rows):
        first, last = own[own["k"] == 1], own[own["k"] == own["n"]]
        text = (
            f"{source.label(name)}, first checkpoint to last, mean over {count(last['trial_id'].nunique(), 'trial')}: "
        )
        pairs = (("gini_embedding", "Gini coefficient of the embedding's spectrum"), ("specialised_neurons", "share of "
                 "neurons in one frequency"))  # fmt: skip
        said = [f"{words} {number(first[c].mean(), 2)} to {number(last[c].mean(), 2)}" for c, words in pairs]
        keys = last["keys"].dropna()
        known = last["explained"].dropna()
        most = share(known.mean(), 1) if len(known) else "none"
        said.append(f"{number(keys.mean(), 2)} key frequencies at the last, which explain {most} of the logits")
        yield Claim(f"{text}{listed(said)}.", "described", answer.sql)
    rows = onsets.rows.dropna(subset=["excluded_step", "onset_step"])
    if len(rows):
        before = int((rows["excluded_step"] < rows["onset_step"]).sum())
        ahead = _when(rows["onset_step"] - rows["excluded_step"])
        text = "The circuit is half built (excluded loss half-way) before 80 % of the held-out peak is gone in "
        text += f"{before:,} of {count(len(rows), 'trial')} with both, by {ahead} steps."
        yield Claim(text, "described", onsets.sql)


def _lags(source: Source) -> Iterator[Claim]:
    """Whether dimensionality changes before, with or after generalisation: lags of events of the primary family."""
    if not source.has("grokking_lags", "landmark", "lag", "answer", "n") or source.family is None:
        return
    f = source.family
    answer = source.ask(
        f"SELECT * FROM grokking_lags WHERE sweep = $sweep AND family = {quoted(f['family'])} AND detector = "
        f"{quoted(f['detector'])} AND \"null\" = {quoted(f['null'])} AND landmark = 'inflection' ORDER BY cell, "
        "layer_index"
    )
    rows = answer.rows[answer.rows["n"] > 0]
    if rows.empty:
        text = (
            "No trial has both a significant event and a steepest descent: whether dimensionality changes before, with "
        )
        yield Claim(f"{text}or after generalisation cannot be said.", "nothing", answer.sql, headline=True)
        return
    said = []
    for r in rows.itertuples():
        lag = f"{number(abs(round(r.lag)))} steps {'before' if r.lag < 0 else 'after'}"
        within = f", 95 % {ends(r.lo, r.hi, 0)}" if r.lo is not None and r.lo == r.lo else ""
        where = f"{source.label(r.cell)} {r.layer}" if rows["cell"].nunique() > 1 else r.layer
        said.append(f"{where} {lag}{within}, {count(int(r.n), 'trial')}: {r.answer}")
    text = f"The largest significant {readable(str(f['measure']))} event of each layer, beside the steepest descent "
    text += f"of the held-out loss (mean over trials; intervals are not corrected over {count(len(rows), 'layer')}): "
    rest = f"; {len(said) - SPOKEN:,} more in the table" if len(said) > SPOKEN else ""
    yield Claim(f"{text}{'; '.join(said[:SPOKEN])}{rest}.", "described", answer.sql, headline=True)


def _pooled(source: Source) -> Iterator[Claim]:
    """Open questions on scales, of all networks of a cell together: what heads, of which a network has few, can say."""
    if not source.has("scale_answers", "cell", "question", "kind", "statistic", "value", "p", "n_trials", "answer"):
        return
    answer = source.ask("SELECT * FROM scale_answers WHERE sweep = $sweep ORDER BY question, cell, kind, statistic")
    rows = answer.rows[answer.rows["p"].notna()].copy()
    if rows.empty:
        text = "The open questions on scales could not be asked of a cell's networks together: too few of them, or of "
        yield Claim(f"{text}their units.", "nothing", answer.sql)
        return
    rows["q"] = bh(rows["p"].to_numpy(np.float64))
    of = f"units exchanged within their network; Benjamini–Hochberg over {count(len(rows), 'answer')} of all cells"
    for question, own in rows.groupby("question", sort=False):
        clear = own["q"] <= ALPHA
        for kind, some in (("finding", own[clear]), ("nothing", own[~clear])):
            if len(some):
                said = "; ".join(_of_cell(source, r, kind == "finding") for r in some.itertuples())
                text = f"Scales, question “{question}”, all networks of a cell together: {said} ({of})."
                yield Claim(text, kind, answer.sql)  # type: ignore[arg-type]


def _of_cell(source: Source, row: Any, clear: bool) -> str:
    what = f"{source.label(row.cell)}, {readable(row.statistic)} of {UNITS.get(row.kind, row.kind)}"
    units = f"{count(int(row.n), 'unit')} of {count(int(row.n_trials), 'network')}"
    if not clear:
        return f"{what}: nothing is shown ({number(row.value, 2)}, q {level(row.q)}, {units})"
    agree = f"of its sign in {int(row.n_agree):,}"
    return f"{what}: {row.answer} ({number(row.value, 2)}, q {level(row.q)}, {units}, {agree})"


def _questions(source: Source) -> Iterator[Claim]:
    """Open questions on scales: p of every trial's answer, corrected over all answers of the sweep."""
    if not source.has("scale_questions", "question", "kind", "statistic", "value", "p", "n", "answer"):
        return
    answer = source.ask(
        "SELECT * FROM scale_questions WHERE sweep = $sweep ORDER BY question, kind, statistic, trial_id"
    )
    rows = answer.rows[answer.rows["p"].notna()].copy()
    if rows.empty:
        text = "The open questions on scales could not be tested: too few units, or constant ones."
        yield Claim(text, "nothing", answer.sql)
        return
    rows["q"] = bh(rows["p"].to_numpy(np.float64))
    of = f"units permuted; Benjamini–Hochberg over {count(len(rows), 'answer')} of all trials"
    for question, own in rows.groupby("question", sort=False):
        parts = [_answered(kind, statistic, some) for (kind, statistic), some in own.groupby(["kind", "statistic"])]
        kinds = {kind for kind, _ in parts}
        said = "; ".join(text for _, text in parts)
        kind: Kind = "finding" if "finding" in kinds else "described" if "described" in kinds else "nothing"
        yield Claim(f"Scales, question “{question}”: {said} ({of}).", kind, answer.sql)


def _answered(kind: str, statistic: str, rows: pd.DataFrame) -> tuple[Kind, str]:
    """What trials answer to one statistic. A finding where those that answer agree."""
    what = f"{readable(statistic)} of {UNITS.get(kind, kind)}"
    clear = rows[rows["q"] <= ALPHA]
    of = count(len(rows), "trial")
    if clear.empty:
        return "nothing", f"{what} says nothing in {of} (smallest q {level(rows['q'].min())})"
    words = clear["answer"].value_counts()
    said = listed(f"{w} in {n:,}" for w, n in words.items())
    middle = f"median {number(clear['value'].median(), 2)}, q up to {number(clear['q'].max(), 2)}"
    rises = {bool(v > 0) for v in clear["value"]}
    apart = "" if len(rises) == 1 else "; trials disagree on its sign"
    return ("finding" if not apart else "described"), f"{what}: {said} of {of} ({middle}{apart})"


def _consistent(source: Source) -> Iterator[Claim]:
    if not source.has("grokking_comparison", "cell", "quantity", "n", "consistent", "mean", "sd"):
        return
    answer = source.ask(
        "SELECT * FROM grokking_comparison WHERE sweep = $sweep AND consistent IS NOT NULL ORDER BY cell, quantity"
    )
    for cell, own in answer.rows.groupby("cell", sort=False):
        steps = own[own["quantity"].str.endswith("_step") | (own["quantity"] == "delay")]
        if steps.empty:
            continue
        same = [readable(q) for q in steps.loc[steps["consistent"].astype(bool), "quantity"]]
        other = [readable(q) for q in steps.loc[~steps["consistent"].astype(bool), "quantity"]]
        text = f"{source.label(cell)}: consistent over seeds (SD below a quarter of the mean, n = {span(steps['n'])}): "
        text += f"{listed(same, 12)}; decided by the seed: {listed(other, 12)}."
        yield Claim(text, "described", answer.sql)


# -- figures -------------------------------------------------------------------------------------------------------


def _runs(source: Source, onsets: pd.DataFrame) -> Iterator[Plate]:
    """One figure a run: accuracy, dimensionality and progress measures over one axis of steps, its events marked."""
    figures = []
    for row in chosen(onsets, list(source.labels)).to_dict("records"):
        found = _run(source, row)
        if found is not None:
            figures.append(found)
    if figures:
        left = len(onsets) - len(figures)
        note = "Dashed: memorised, steepest descent of the held-out loss, 80 % of its peak gone. Bands: significant "
        note += "events of the primary family in any layer (brown a rise, blue a fall). Losses: of all pairs with only "
        note += "the key frequencies (restricted), of training pairs without them (excluded). Neurons: share with 85 % "
        note += "of their energy in one frequency."
        note += f" {count(left, 'more run')} in the tables." if left else ""
        yield Plate("Each run on one time axis", tuple(figures), note)


def chosen(onsets: pd.DataFrame, names: list[str], most: int = MOST_RUNS) -> pd.DataFrame:
    """Runs to draw: of every name its first seed, then the second of each, and so on; in the order of names."""
    place = onsets.groupby("name", sort=False).cumcount()
    order = onsets.assign(_place=place, _name=onsets["name"].map({n: i for i, n in enumerate(names)}))
    kept = order.sort_values(["_place", "_name"], kind="stable").head(most)
    return kept.sort_values(["_name", "_place"], kind="stable").drop(columns=["_place", "_name"])


def _run(source: Source, onset: dict[str, Any]) -> Figure | None:
    trial = quoted(onset["trial_id"])
    measures = source.ask(
        f"SELECT * FROM grokking_measures WHERE sweep = $sweep AND trial_id = {trial} ORDER BY step"
    ).rows
    held = source.ask(
        f"SELECT step, accuracy FROM evaluations WHERE sweep = $sweep AND trial_id = {trial} ORDER BY step"
    ).rows
    dims = source.ask(
        f"SELECT step, layer, layer_index, {MEASURE} AS value FROM measurements WHERE sweep = $sweep AND trial_id = "
        f"{trial} AND {MEASURE} IS NOT NULL QUALIFY view = min(view) OVER (PARTITION BY layer) ORDER BY "
        "layer_index, step"
    ).rows
    if measures.empty:
        return None
    last = float(max(frame["step"].max() for frame in (measures, held, dims) if len(frame)))
    rules = pd.DataFrame([{"at": onset[f"{c}_step"], "text": words} for c, words in LANDMARKS]).dropna()
    spans = _events(source, str(onset["trial_id"]))
    marks: dict[str, Any] = {"rules": rules, "spans": spans}
    tested = held if len(held) else measures.rename(columns={"test_accuracy": "accuracy"})
    accuracy = _long({"training": measures[["step", "train_accuracy"]], "held-out": tested[["step", "accuracy"]]})
    specs = [panel(accuracy, _names(accuracy), last, "accuracy", domain=(0, 1), top=True, **marks)]
    if len(dims):
        short = _shortened([str(x) for x in dict.fromkeys(dims["layer"])])
        lines = _long({short[str(x)]: own[["step", "value"]] for x, own in dims.groupby("layer", sort=False)})
        specs.append(panel(lines, _names(lines), last, "part. ratio", **marks))
    losses = _long({c: measures[["step", f"{c}_loss"]] for c in ("restricted", "excluded")})
    if len(losses):
        specs.append(panel(losses, _names(losses), last, "loss, nats", log=True, **marks))
    parts = {"gini_embedding": "Gini of W_E", "specialised_neurons": "neurons ≥ 85 %", "explained": "logits explained"}
    progress = _long({words: measures[["step", c]] for c, words in parts.items()})
    if len(progress):
        specs.append(panel(progress, _names(progress), last, "share", domain=(0, 1), bottom=True, **marks))
    title = _title(source, onset)
    return Figure(title, specs[0], _alt(title, onset, measures, spans), tuple(specs[1:]))


def _shortened(layers: list[str]) -> dict[str, str]:
    """Layers by the last part of their path, where that tells them apart: the legend of a panel is narrow."""
    last = [layer.rpartition(".")[2] for layer in layers]
    return dict(zip(layers, last if len(set(last)) == len(last) else layers, strict=True))


def _names(rows: pd.DataFrame) -> list[str]:
    return [str(n) for n in dict.fromkeys(rows["name"])]


def _long(series: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """name, step, value of several series (step, value), thinned evenly; those without a value are left out."""
    made = []
    for name, rows in series.items():
        own = rows.set_axis(["step", "value"], axis=1).dropna()
        if len(own) > MOST_POINTS:
            own = own.iloc[np.unique(np.linspace(0, len(own) - 1, MOST_POINTS).astype(int))]
        made.append(own.assign(name=name))
    return pd.concat(made, ignore_index=True) if made else pd.DataFrame(columns=["step", "value", "name"])


def _events(source: Source, trial: str) -> pd.DataFrame | None:
    """Significant events of the primary family in a trial: from, to, direction, text."""
    if source.family is None:
        return None
    rows = candidates_of(source, source.family).rows
    own = rows[(rows["trial_id"] == trial) & rows["significant"].astype(bool)]
    text = [f"{r.layer}, steps {r.step_before:,} to {r.step_after:,}, q {level(r.q)}" for r in own.itertuples()]
    return pd.DataFrame(
        {"from": own["step_before"], "to": own["step_after"], "direction": own["direction"], "text": text}
    )


def _title(source: Source, onset: dict[str, Any]) -> str:
    seed = f", seed {int(onset['seed'])}" if onset["seed"] == onset["seed"] and onset["seed"] is not None else ""
    return f"{source.label(onset['name'])}{seed}: {readable(str(onset['status']))}"


def _alt(title: str, onset: dict[str, Any], measures: pd.DataFrame, spans: pd.DataFrame | None) -> str:
    steps = [f"{words} at step {number(onset[f'{c}_step'])}" for c, words in LANDMARKS if pd.notna(onset[f"{c}_step"])]
    last = measures.iloc[-1]
    text = f"{title}. {listed(steps)}. At step {number(last['step'])}: training accuracy "
    text += f"{number(last['train_accuracy'], 2)}, held-out {number(last['test_accuracy'], 2)}."
    return text + ("" if spans is None else f" {count(len(spans), 'event')} marked.")


# -- tables --------------------------------------------------------------------------------------------------------


def _trials(source: Source, onsets: Answer) -> Sheet:
    columns = (
        "status",
        "memorised_step",
        "inflection_step",
        "onset_step",
        "delay",
        "peak_loss",
        "final_loss",
        "confidence",
    )
    rows = onsets.rows.assign(trial=onsets.rows["name"].map(source.label))[["trial", "seed", *columns]]
    rows = rows.assign(frequencies=[", ".join(str(k) for k in v) for v in onsets.rows["frequencies"]])
    docs = {readable(c): text for c, text in source.columns("grokking_onsets").items()}
    return Sheet("Trial by trial", rows.rename(columns=readable), docs, onsets.sql)


def _checkpoints(source: Source) -> Iterator[Sheet]:
    """Summary statistics of every checkpoint: losses, progress, and the neurons' scales with their quartiles."""
    if not source.has("grokking_measures", "train_loss", "test_loss", "restricted_loss"):
        return
    scales = source.has("scale_metrics", "fft_no_dc", "coarseness", "kind")
    own = ", ".join(f"m.{c}" for c in SUMMED)
    more = ", s.* EXCLUDE (trial_id, step)" if scales else ""
    join = (
        " LEFT JOIN (SELECT trial_id, step, avg(fft_no_dc) AS scale_mean, stddev(fft_no_dc) AS scale_sd, "
        "quantile_cont(fft_no_dc, .25) AS scale_p25, median(fft_no_dc) AS scale_median, quantile_cont(fft_no_dc, "
        ".75) AS "
        "scale_p75, count(*) FILTER (WHERE coarseness >= .7) AS blobs, count(*) FILTER (WHERE coarseness < .5) AS "
        "plaids "
        "FROM scale_metrics WHERE sweep = $sweep AND kind = 'neuron' GROUP BY ALL) s USING (trial_id, step)"
        if scales
        else ""
    )
    answer = source.ask(
        f"SELECT {NAME} AS name, t.seed, m.step, {own}{more} FROM grokking_measures m JOIN trials t "
        f"USING (sweep, trial_id){join} WHERE sweep = $sweep ORDER BY t.cell, t.control, t.seed, m.step"
    )
    rows = answer.rows.assign(name=answer.rows["name"].map(source.label)).rename(columns=readable)
    docs = {readable(c): text for c, text in source.columns("grokking_measures").items()}
    docs["scale mean"] = "of the neurons' low-frequency share (fft_no_dc); SD and quartiles beside it"
    docs |= {"blobs": "neurons with coarseness of .7 and more", "plaids": "neurons with coarseness below .5"}
    yield Sheet("Summary statistics by checkpoint", rows.head(100), docs, answer.sql, len(rows), folded=True)
