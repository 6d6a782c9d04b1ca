"""Interventions: what a lesion, a freeze or damaged data costs against the untouched lane, and what of it heals."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.inference.seeds import interval as t_interval
from ndt_ray.figures.charts import curves
from ndt_ray.report.order import ALPHA, sheet
from ndt_ray.report.parts import Claim, Figure, Kind, Plate, Section
from ndt_ray.report.source import Answer, Source
from ndt_ray.report.words import count, interval, level, listed, number

ARM = ["cell", "kind", "target", "at", "until", "dose", "lr_from"]
WORDS = {"impact": "at first", "area": "on average", "final": "at the end"}
"""Measures of `recovery_contrasts`, as parts of a sentence about a deficit."""
SPOKEN = 8
"""Interventions that get a sentence each; the table has all."""
MOST = 6
"""Figures; the table has the rest."""


def interventions(source: Source) -> Section:
    """The section; empty where nothing was intervened in."""
    section = Section("recovery", "Interventions, and what heals", short="Recovery")
    if not source.has("recovery", "untouched", "impact", "area", "final", "flag", *ARM):
        intervened = source.trials["control"].fillna("none").astype(str).str.contains("@")
        if intervened.any() and not source.ran("recovery"):
            what = f"What the interventions in {count(int(intervened.sum()), 'trial')} cost was not computed"
            section.missing.append((what, f"ndt analyze {source.sweep} recovery"))
        return section
    if source.has("recovery_contrasts", "against", "measure", "mean", "q", "q_attainable", "finding"):
        answer = source.ask(
            "SELECT * FROM recovery_contrasts WHERE sweep = $sweep "
            'ORDER BY cell, kind, target, dose, "at", against, measure'
        )
        section.claims += [*_together(answer), *_when(source, answer), *_arms(source, answer)]
        section.claims += list(_between(source, answer))
    section.claims += list(_broken(source))
    section.plates += list(_plates(source))
    section.sheets += list(sheet(source, "recovery_contrasts", "Deficits over seeds, and between steps"))
    section.sheets += list(sheet(source, "recovery", "Each intervened lane beside its untouched one"))
    return section


def _arm(source: Source, r: Any) -> str:
    """ablate conv_layers.0 at step 60 (half of the units) in cnn."""
    return f"{r.kind} {r.target}{_dose(r.dose)} {_time(r)}{_rates(r.lr_from)} in {source.label(r.cell)}"


def _time(r: Any) -> str:
    return f"at step {number(r.at)}" if r.at == r.until else f"over steps {number(r.at)} to {number(r.until)}"


def _dose(dose: Any) -> str:
    return "" if dose is None or dose != dose or dose == 1 else f" × {number(dose)}"


def _rates(lr_from: Any) -> str:
    """What the learning rates do after the intervention, where they are not the trial's own."""
    return "" if pd.isna(lr_from) else f", then the learning rates from step {number(lr_from)} on"


def _than(against: str) -> str:
    """What an arm is compared with, in words."""
    if against == "kept":
        return "than with the schedule kept"
    if against == "matched":
        return "than in windows matched to its event"
    step = against.rpartition("@")[2]
    return f"than at step {step}" + (" followed by the same learning rates" if against.startswith("lr@") else "")


def _deficit(r: Any) -> str:
    return f"{WORDS[r.measure]} {number(r.mean, 2)} {interval(r.lo, r.hi)} (q {level(r.q)})".replace("  ", " ")


def _together(answer: Answer) -> Iterator[Claim]:
    """How many of several interventions cost anything, and how many for good."""
    own = answer.rows[answer.rows["against"] == "untouched"]
    n = own.groupby(ARM, dropna=False).ngroups
    if n < 2:
        return
    clear = own[(own["q"] <= ALPHA) & (own["mean"] > 0)]
    counts = {m: int((clear["measure"] == m).sum()) for m in WORDS}
    said = listed(f"{WORDS[m]} {k:,}" for m, k in counts.items())
    text = f"Of {count(n, 'intervention')}, so many cost held-out accuracy against the untouched lane of their seed: "
    text += f"{said} (signs of seeds flipped, Benjamini–Hochberg over all interventions, by measure"
    final = own[own["measure"] == "final"]
    least = float(final["p_attainable"].min()) if len(final) else math.nan
    text += f"; p of one is at least {number(least, 2)})." if least == least else ")."
    yield Claim(text, "finding" if sum(counts.values()) else "nothing", answer.sql, headline=True)


def _when(source: Source, answer: Answer) -> Iterator[Claim]:
    """Whether it matters at all when an intervention happens."""
    rows = answer.rows[answer.rows["measure"] == "area"]
    asked, own = rows[rows["against"] == "when"].dropna(subset=["q"]), rows[rows["against"] == "untouched"]
    for r in asked.itertuples():
        alike = (
            (own["cell"] == r.cell) & (own["kind"] == r.kind) & (own["target"] == r.target) & (own["dose"] == r.dose)
        )
        steps = own[alike & own["lr_from"].isna() & (own["until"] - own["at"] == r.until - r.at)]
        costs = listed(f"{number(s.mean, 2)} {_time(s)}" for s in steps.sort_values("at").itertuples())
        what = f"{r.kind} {r.target}{_dose(r.dose)} in {source.label(r.cell)}"
        test = f"{count(int(r.n), 'seed')}, all orders of the steps within seeds, q {level(r.q)} over "
        test += f"{len(asked):,} such questions"
        if r.q <= ALPHA:
            text = f"When it happens matters for {what}: mean deficit over the same steps after it {costs} ({test})."
            yield Claim(text, "finding", answer.sql, headline=True)
        elif r.q_attainable > ALPHA:
            text = f"Whether it matters when it happens cannot be shown for {what}: smallest q attainable "
            yield Claim(f"{text}{number(r.q_attainable, 2)}.", "caution", answer.sql)
        else:
            text = f"That it matters when it happens is not shown for {what}: mean deficit {costs} ({test})."
            yield Claim(text, "nothing", answer.sql)


def _arms(source: Source, answer: Answer) -> Iterator[Claim]:
    """Each intervention against the untouched lanes; a finding only where the q of what it says stands behind it."""
    own = answer.rows[answer.rows["against"] == "untouched"]
    groups = [rows for _, rows in own.groupby(ARM, sort=False, dropna=False)]
    groups.sort(key=lambda rows: -float(rows.loc[rows["measure"] == "area", "mean"].max()))
    for rows in groups[:SPOKEN]:
        by = {str(r.measure): r for r in rows.itertuples()}
        first = next(iter(by.values()))
        said = listed(_deficit(by[m]) for m in WORDS if m in by)
        text = (
            f"{_arm(source, first)}: deficit of held-out accuracy against the untouched lane of the same seed {said}, "
        )
        text += f"{count(int(first.n), 'seed')}"
        costs = [r for r in (by[m] for m in WORDS if m in by) if r.q == r.q and r.q <= ALPHA and r.mean > 0]
        reach = min((r.q_attainable for r in by.values() if r.q_attainable == r.q_attainable), default=math.nan)
        kind: Kind
        if costs:
            kind = "finding"
            heals = "it lasts" if any(r.measure == "final" for r in costs) else "what is left at the end is not shown"
            text += f". It costs accuracy {listed(WORDS[r.measure] for r in costs)}; {heals}."
        elif not reach <= ALPHA:
            kind, text = "caution", f"{text}. No cost could have been shown: smallest q attainable {number(reach, 2)}."
        else:
            kind, text = "nothing", f"{text}. That it costs anything is not shown."
        text += " Signs of seeds flipped; Benjamini–Hochberg over all interventions, by measure."
        yield Claim(f"{text[0].upper()}{text[1:]}", kind, answer.sql, headline=len(groups) == 1)
    if len(groups) > SPOKEN:
        text = f"{count(len(groups) - SPOKEN, 'more intervention')}, which cost less on average, in the table."
        yield Claim(text, "described", answer.sql)


def _between(source: Source, answer: Answer) -> Iterator[Claim]:
    """The same intervention at two steps: whether when matters."""
    own = answer.rows[~answer.rows["against"].isin(["untouched", "when"]) & (answer.rows["measure"] == "area")]
    judged = own.dropna(subset=["q"])
    if judged.empty:
        return
    of = "mean deficit over the same steps after it; sign flips of seeds, Benjamini–Hochberg over "
    of += f"{count(len(judged), 'pair')}"
    clear = judged[judged["q"] <= ALPHA]
    said = [
        f"{_arm(source, r)} costs {number(abs(r.mean), 2)} {'more' if r.mean > 0 else 'less'} "
        f"{_than(str(r.against))} (difference {interval(r.lo, r.hi) or number(r.mean, 2)}, "
        f"{count(int(r.n), 'seed')}, q {level(r.q)})"
        for r in (clear if len(clear) else judged).head(SPOKEN).itertuples()
    ]
    if len(clear):
        yield Claim(f"Step against step: {'; '.join(said)} ({of}).", "finding", answer.sql)
    elif float(judged["q_attainable"].min()) > ALPHA:
        text = "Step against step nothing is shown, and no pair could be alone: smallest q attainable "
        text += f"{number(judged['q_attainable'].min(), 2)} "
        yield Claim(f"{text}({of}).", "caution", answer.sql)
    else:
        yield Claim(f"Step against step nothing is shown: {'; '.join(said)} ({of}).", "nothing", answer.sql)


def _broken(source: Source) -> Iterator[Claim]:
    answer = source.ask(
        "SELECT flag, count(*) AS n FROM recovery WHERE sweep = $sweep AND flag IS NOT NULL GROUP BY 1 ORDER BY 2 "
        "DESC, 1"
    )
    if len(answer.rows):
        said = listed(f"{str(r.flag).replace('_', ' ')} {r.n:,}" for r in answer.rows.itertuples())
        yield Claim(f"Intervened lanes without a comparison, by reason: {said}.", "caution", answer.sql)


# -- figures -------------------------------------------------------------------------------------------------------


def _plates(source: Source) -> Iterator[Plate]:
    """Held-out accuracy of the lanes of one intervention, by when it was made, with their untouched lanes."""
    arms = source.ask("SELECT * FROM recovery WHERE sweep = $sweep AND flag IS NULL").rows
    if arms.empty:
        return
    rows = source.ask(
        "SELECT e.trial_id, e.step, e.accuracy FROM evaluations e WHERE e.sweep = $sweep AND e.trial_id IN "
        "(SELECT trial_id FROM recovery WHERE sweep = $sweep UNION SELECT untouched FROM recovery WHERE sweep = "
        "$sweep) "
        "ORDER BY 1, 2"
    ).rows
    figures = []
    groups = list(arms.groupby(["cell", "kind", "target", "dose", "lr_from"], sort=False, dropna=False))
    for (cell, kind, target, dose, lr_from), own in groups[:MOST]:
        made = _lines(own, rows)
        if made.empty:
            continue
        names = [str(n) for n in dict.fromkeys(made["name"])]
        rules = pd.DataFrame({"at": sorted(set(own["at"]))})
        rules = rules.assign(text=[number(s) for s in rules["at"]])
        spec = curves(made, names, int(made["step"].max()), "held-out accuracy", rules=rules)
        title = f"{kind} {target}{_dose(dose)}{_rates(lr_from)} in {source.label(cell)}"
        ends = made[made["step"] == made["step"].max()]
        said = listed(f"{r.name_} {number(r.mean, 3)}" for r in ends.rename(columns={"name": "name_"}).itertuples())
        figures.append(Figure(title, spec, f"{title}: accuracy at the end, mean over seeds: {said}."))
    if figures:
        note = (
            "Mean over seeds with its 95 % interval. The untouched lane is the same trial until the dashed step, with "
        )
        note += "the same learning rate and as many updates at every step."
        note += f" {count(len(groups) - MOST, 'more')} in the tables." if len(groups) > MOST else ""
        yield Plate("Recovery curves beside their untouched lanes", tuple(figures), note)


def _lines(arms: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """name, step, mean, low, high, n: the untouched lanes first, then one line a time of the intervention."""
    groups = {"untouched": set(arms["untouched"])}
    for (at, until), own in arms.groupby(["at", "until"], sort=True):
        groups[f"at {number(at)}" if at == until else f"{number(at)}–{number(until)}"] = set(own["trial_id"])
    made = []
    for name, trials in groups.items():
        for step, values in rows[rows["trial_id"].isin(trials)].groupby("step", sort=True)["accuracy"]:
            known = values.dropna().to_numpy(np.float64)
            within = t_interval(known)
            if len(known):
                ends = [v if math.isfinite(v) else math.nan for v in (within.lo, within.hi)]
                row = {"name": name, "step": step, "mean": known.mean(), "low": ends[0], "high": ends[1]}
                made.append(row | {"n": len(known)})
    return pd.DataFrame(made)
