"""Jumps by the founding rules, uncalibrated, beside what the rules count in noise; where there are two modes, both."""

from collections import Counter
from collections.abc import Iterator, Sequence

import pandas as pd

from ndt_ray.analysis.jumps import compare_with_null, within_events
from ndt_ray.analysis.phases import jump_phases
from ndt_ray.figures.charts import beside_null
from ndt_ray.report.event_claims import by_kind
from ndt_ray.report.maps import Marks
from ndt_ray.report.parts import Claim, Figure, Plate, Section, Sheet, Sign
from ndt_ray.report.source import NAME, Answer, Source, quoted
from ndt_ray.report.words import count, interval, listed, number, readable, share
from ndt_ray.summary import MEASURE, RULE
from ndt_ray.verdicts import Jumps, jump_verdicts

MOST_CELLS = 6
"""Cells that are spoken of one by one."""
MOST_BARS = 24
"""Cells that get bars of their own."""


def noise(source: Source) -> Section:
    """The section: counts of every rule beside white and AR(1) noise; the published ones too, where they are there."""
    section = Section("jumps", "Jumps by threshold rules, beside noise", short="Threshold rules")
    if not source.has("jump_counts"):
        section.missing.append(("No threshold rule was run", f"ndt analyze {source.sweep} jumps"))
        return section
    answer = source.ask(
        f"SELECT {NAME} AS name, j.* EXCLUDE (sweep, layer) FROM jump_counts j JOIN trials t USING (sweep, trial_id) "
        "WHERE sweep = $sweep ORDER BY j.mode, j.measure, j.detector, t.cell"
    )
    counts = answer.rows
    section.about = (
        "A threshold on the z-score of differences, as the founding study used it, flags jumps in pure noise too. "
        "These rules are not calibrated: their counts stand beside what the same rule counts in noise of that length."
    )
    default = counts[counts["mode"] == "default"]
    section.claims += list(_verdicts(source, default, answer))
    phases = _phases(source)
    section.claims += list(_modes(counts, phases, answer))
    section.claims += [*by_kind(source, "original"), *_standing(source, counts)]
    figures = list(_bars(source, default))
    if figures:
        note = "Whiskers: 95 % interval of the count under that noise, its series taken as independent."
        title = f"Jumps of {readable(source.spoken(default['measure']))} by {rule_spoken(default)}"
        keys: tuple[tuple[Sign, str], ...] = (("bars", "observed; grey: white noise, paler: AR(1) noise"),)
        section.plates.append(Plate(title, tuple(figures), note, keys=keys))
    section.sheets.append(_sheet(counts, answer))
    if len(phases):
        section.sheets.append(Sheet("Jumps by phase of the onset", phases.rename(columns=readable), folded=True))
    return section


def rule_marks(source: Source) -> Marks | None:
    """Jumps by one rule in half of the seeds: what the maps mark while no calibrated events are there."""
    if not source.has("jumps"):
        return None
    found = source.ask(
        f'SELECT {NAME} AS name, j.trial_id, j.layer, j.step_before AS "from", j.step_after AS "to", j.direction, '
        f"j.measure FROM jumps j JOIN trials t USING (sweep, trial_id) WHERE sweep = $sweep AND j.mode = 'default' "
        f"AND j.detector = '{RULE}' AND j.counted AND j.measure = '{MEASURE}'"
    ).rows
    if found.empty:
        return None
    seeds = found.groupby(["name", "layer", "from", "to", "direction"])["trial_id"].transform("nunique")
    need = found["name"].map(
        {n: max(min(2, len(source.seeds(n))), -(-len(source.seeds(n)) // 2)) for n in source.labels}
    )
    kept = found[seeds >= need]
    words = f"flagged by {RULE} at the same step in half of the seeds; uncalibrated, noise gives such marks too"
    return Marks(kept, words, MEASURE) if len(kept) else None


def rule_spoken(counts: pd.DataFrame) -> str:
    known = list(dict.fromkeys(counts["detector"]))
    return RULE if RULE in known else known[0] if known else ""


def _verdicts(source: Source, counts: pd.DataFrame, answer: Answer) -> Iterator[Claim]:
    own = counts[(counts["measure"] == source.spoken(counts["measure"])) & (counts["detector"] == rule_spoken(counts))]
    cells = own[own["name"].isin(source.cells)]
    judged = jump_verdicts(cells)
    if not judged:
        return
    if len(judged) <= MOST_CELLS:
        said = "; ".join(_verdict(source, j) for j in sorted(judged, key=lambda j: source.cells.index(j.name)))
    else:
        said = _together(judged, cells)
    measure = readable(source.spoken(counts["measure"]))
    text = f"Jumps of {measure} flagged by the uncalibrated rule {rule_spoken(counts)}: {said}."
    # Without calibrated events this is all that the page can say of them.
    alone = not source.has("event_families")
    yield Claim(text, "described", answer.sql, headline=alone)
    above = [j for j in judged if j.ar1 is not None and j.ar1.verdict == "above"]
    if above:
        text = "Noise has no trend: a steep smooth curve alone can give more flags, so more is no proof of jumps."
        yield Claim(text, "caution", headline=alone)


def _together(judged: Sequence[Jumps], counts: pd.DataFrame) -> str:
    """All cells as one, and how many of them came out which way."""
    (total,) = compare_with_null(counts, by=["measure"]).to_dict("records")
    noise = "no null"
    if total["verdict_ar1"] != "no null":
        noise = f"{number(total['expected_ar1'])} {interval(total['ar1_lo'], total['ar1_hi'], 0)} in AR(1) noise"
    words = Counter(j.words for j in judged)
    ways = listed(f"{w} ({count(n, 'cell')})" for w, n in words.most_common())
    return f"{total['observed']:,} in {count(len(judged), 'cell')} beside {noise}; by cell: {ways}"


def _verdict(source: Source, j: Jumps) -> str:
    if j.ar1 is None:
        return f"{source.label(j.name)} {j.observed:,}, {j.words}"
    noise = f"{number(j.ar1.expected)} {interval(j.ar1.low, j.ar1.high, 0)}"
    return f"{source.label(j.name)} {j.observed:,} beside {noise} in AR(1) noise, {j.words}"


def _modes(counts: pd.DataFrame, phases: pd.DataFrame, answer: Answer) -> Iterator[Claim]:
    """What was published, beside the same rule on correct measures."""
    original = counts[counts["mode"] == "original"]
    if original.empty:
        return
    for row in compare_with_null(original, by=["measure", "detector"]).to_dict("records"):
        text = f"As published ({readable(row['measure'])}, {row['detector']}): {row['observed']:,} jumps in "
        text += f"{count(int(row['series']), 'series')}; "
        if row["verdict_white"] == "no null":
            text += "every series is constant to within rounding, so there is no null to put beside them"
        else:
            text += (
                f"white noise gives {number(row['expected_white'])} {interval(row['white_lo'], row['white_hi'], 0)}, "
            )
            text += f"AR(1) noise {number(row['expected_ar1'])} {interval(row['ar1_lo'], row['ar1_hi'], 0)}"
        own = phases[(phases["mode"] == "original") & (phases["measure"] == row["measure"])] if len(phases) else phases
        own = own[own["detector"] == row["detector"]] if len(own) else own
        if len(own):
            total = int(own["n"].sum())
            text += ". By phase: " + listed(f"{int(n):,} {b}" for b, n in zip(own["phase_bin"], own["n"], strict=True))
            assert total == int(row["observed"]), (total, row["observed"])
            text += f"; together {total:,}"
            dropped = int(own.loc[own["phase_bin"] == "dropped", "n"].sum())
            if dropped:
                text += f", {share(dropped, total)} of them left out of every published phase"
        yield Claim(text + ".", "described", answer.sql, headline=True)


def _standing(source: Source, counts: pd.DataFrame) -> Iterator[Claim]:
    """How many of the jumps lie where an event of the primary family survives."""
    if source.family is None or not source.has("jumps"):
        return
    family, rule = source.family, rule_spoken(counts)
    events = source.ask(
        "SELECT trial_id, layer_index, step_before, step_after FROM events WHERE sweep = $sweep AND significant AND "
        f"family = {quoted(family['family'])}"
    )
    jumps = source.ask(
        "SELECT mode, measure, trial_id, layer_index, step_before, step_after FROM jumps WHERE sweep = $sweep AND "
        f"counted AND detector = {quoted(rule)}"
    ).rows
    said = []
    for mode in ("original", "default"):
        known = counts[(counts["mode"] == mode) & (counts["detector"] == rule)]
        spoken = source.spoken(known["measure"])
        known = known[known["measure"] == spoken]
        flagged = jumps[(jumps["mode"] == mode) & (jumps["measure"] == spoken)]
        if flagged.empty:
            continue
        inside, by_chance = within_events(flagged, known, events.rows)
        published = "published " if mode == "original" else ""
        text = f"of {len(flagged):,} {published}jumps of {readable(spoken)} {inside:,}"
        said.append(text if events.rows.empty else f"{text} (placed at random {number(by_chance)})")
    if said:
        text = f"Flagged by {rule} and within one of the {count(len(events.rows), 'event')} that survive"
        yield Claim(f"{text} (family “{family['family']}”): {listed(said)}.", "described", events.sql, headline=True)


def _phases(source: Source) -> pd.DataFrame:
    if not source.has("jumps"):
        return pd.DataFrame()
    rows = source.ask("SELECT mode, measure, detector, phase_bin, counted FROM jumps WHERE sweep = $sweep").rows
    return jump_phases(rows) if len(rows) else pd.DataFrame()


def _bars(source: Source, counts: pd.DataFrame) -> Iterator[Figure]:
    own = counts[(counts["measure"] == source.spoken(counts["measure"])) & (counts["detector"] == rule_spoken(counts))]
    if own.empty:
        return
    totals = compare_with_null(own, by=["name"])
    totals = totals[totals["name"].isin(source.labels)].set_index("name")
    totals = totals.loc[[n for n in source.labels if n in totals.index][:MOST_BARS]].reset_index()
    none = {f: totals[f"verdict_{f}"] == "no null" for f in ("white", "ar1")}
    rows = pd.DataFrame({"name": [source.label(n) for n in totals["name"]], "observed": totals["observed"]})
    for family, title in (("white", "white noise"), ("ar1", "AR(1) noise")):
        for column, suffix in ((f"expected_{family}", ""), (f"{family}_lo", "_lo"), (f"{family}_hi", "_hi")):
            rows[title + suffix] = totals[column].clip(lower=0).mask(none[family])
    said = listed((f"{r.name} {r.observed:,}" for r in rows.itertuples(index=False)), 10)
    spec = beside_null(rows, "jumps in all series", families=("white noise", "AR(1) noise"))
    yield Figure(
        "Jumps beside noise", spec, f"Jumps by threshold rule: {said}; bars of white and AR(1) noise beside them."
    )


def _sheet(counts: pd.DataFrame, answer: Answer) -> Sheet:
    table = compare_with_null(counts, by=["mode", "measure", "detector"])
    columns = {
        "mode": "mode", "measure": "measure", "detector": "rule", "series": "series", "constant": "constant",
        "observed": "observed", "merged": "merged", "expected_white": "white noise", "white_lo": "from",
        "white_hi": "to", "expected_ar1": "AR(1) noise", "ar1_lo": "from ", "ar1_hi": "to ",
        "verdict_ar1": "beside AR(1)",
    }  # fmt: skip
    docs = {
        "mode": "default: correct measures and true steps; original: as published, mistakes included",
        "constant": "series without a null: constant or too short",
        "merged": "neighbouring flags taken as one",
        "white noise": "expected count in white noise of the same length and spread, with its 95 % interval",
        "AR(1) noise": "expected count in AR(1) noise of the same lag-1 dependence, with its 95 % interval",
        "beside AR(1)": "observed count above, within or below that interval; series taken as independent",
    }
    return Sheet("Jumps by mode, measure and rule", table[list(columns)].rename(columns=columns), docs, answer.sql)
