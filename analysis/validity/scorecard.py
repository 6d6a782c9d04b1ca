"""The scorecard of a detector, from what it said of every series: error rates with exact intervals, power, verdicts.

A pure function of the tasks' results: series and truths are made again from their seeds. A detector that gives
p-values is judged at `LEVEL`: its events are those with p_event at most that; of one without, all events count.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from ndt_ray.analysis.inference.multiplicity import benjamini_bogomolov, bh
from ndt_ray.analysis.validity import battery, families
from ndt_ray.analysis.validity.matching import Score, covering, match, score, together
from ndt_ray.analysis.validity.subject import Found, Subject
from ndt_ray.analysis.validity.tasks import BAR_SNR, NEEDLE_SNR, Size, Task

Floats = NDArray[np.float64]
Row = dict[str, Any]

LEVEL = 0.01
"""Level per series at which events are counted and found: P(any event) is at most this where there is none."""
LEVELS = (0.01, 0.05)
SLACK = 1.5
"""P(p <= α) may be at most this times α on any family that is not marked."""
MAX_DECLINED = 0.05
"""Share of a family's series that may be declined before the family is one that cannot be judged."""
MAX_ALARMED = 0.05
"""Share of series without events in which a detector that gives no p-values may find any."""
FALSE_DISCOVERY = 0.05
MIN_RECALL = 0.95
STEP_ERROR = 1.0
"""Median location error of steps, in measurements; of sigmoids it is a quarter of their width."""
NEEDLE_SERIES = 2400
Results = Mapping[Task, Sequence[Found]]


@dataclass(frozen=True)
class Bar:
    """A requirement, what was measured against it, and from how many series. `met` is None where it does not apply.

    `counted`: the value is a share of these series.
    """

    what: str
    value: float | None
    limit: float
    at_most: bool
    n: int
    counted: bool = False

    @property
    def met(self) -> bool | None:
        if self.value is None or math.isnan(self.value):
            return None
        return bool(self.value <= self.limit if self.at_most else self.value >= self.limit)

    def refuted(self, level: float) -> bool:
        """Whether the requirement itself would give so bad a count with a probability below `level` (exact binomial).

        A value that is no count has no such bound: it refutes the requirement where it does not meet it.
        """
        if self.value is None or not self.counted:
            return self.met is False
        k = round(self.value * self.n)
        tail = binom.sf(k - 1, self.n, self.limit) if self.at_most else binom.cdf(k, self.n, self.limit)
        return bool(tail < level)

    def asdict(self) -> Row:
        return {"what": self.what, "value": self.value, "limit": self.limit, "at_most": self.at_most, "n": self.n} | {
            "counted": self.counted,
            "met": self.met,
        }


def exact(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a proportion k / n; (0, 1) without trials."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return low, high


def proportion(k: int, n: int) -> Row:
    """A proportion with its exact 95 % interval; null without trials."""
    low, high = exact(k, n)
    return {"k": k, "n": n, "share": k / n if n else None, "lo": low if n else None, "hi": high if n else None}


def scorecard(
    judged: Subject, size: Size, results: Results, n: int = families.LENGTH, rates: Results | None = None
) -> Row:
    """Everything as one JSON object: `nulls`, `rates`, `power`, `fdr`, `needle`, `battery`, `bars`.

    `rates`: what the same detector says of null series that it takes for rates (velocities), where it knows these.
    """
    # A user's function may give p-values: it does if it gave any.
    gives_p = judged.gives_p and any(f.marked or not math.isnan(f.p) for found in results.values() for f in found)
    nulls = [_null(name, list(_of(results, "null", name)), n, gives_p) for name in families.NULLS]
    others = [_null(name, list(_of(results, "null", name)), n, gives_p) for name in families.OTHERS]
    as_rates = [_null(name, list(_of(rates, "null", name)), n, gives_p) for name in families.RATES if rates]
    power = [_power(group, results, gives_p) for group in _points(results)]
    false = [_fdr(share, size.families, results, gives_p) for share in families.TRUE_SHARES]
    needle = _needle(results) if gives_p else None
    fixtures = _battery(results, gives_p)
    card: Row = {
        "detector": judged.name,
        "parameters": dict(judged.parameters),
        "code": judged.code,
        "gives_p": gives_p,
        "level": LEVEL if gives_p else None,
        "n": n,
        "series": sum(len(found) for found in results.values()),
        "nulls": nulls,
        "others": others,
        "rates": as_rates,
        "power": power,
        "fdr": false,
        "needle": needle,
        "battery": fixtures,
    }
    return card | {"bars": [bar.asdict() for bar in bars(card)]}


def events(found: Found, level: float | None) -> Floats:
    """Places of the events that count: those with p_event (or the series' p) at most `level`, all where it is None."""
    if level is None or found.marked:
        return found.location if level is None else found.location[:0]
    if found.p_event is not None:
        return found.location[found.p_event <= level]
    return found.location if math.isnan(found.p) or found.p <= level else found.location[:0]


def _of(results: Results, kind: str, name: str = "") -> Iterator[Found]:
    """What was said of the series of one kind and name, in their order."""
    for task in sorted((t for t in results if t.kind == kind and t.name == name), key=lambda t: t.first):
        yield from results[task]


def _null(name: str, found: list[Found], n: int, gives_p: bool) -> Row:
    null = {**families.NULLS, **families.OTHERS}[name]
    level = LEVEL if gives_p else None
    marked = Counter(f.marked for f in found if f.marked)
    tested = [f for f in found if not f.marked]
    counts = [len(events(f, level)) for f in tested]
    alarmed = sum(c > 0 for c in counts)
    p = np.array([f.p for f in tested])
    p = p[~np.isnan(p)]
    row: Row = {
        "family": name,
        "about": null.about,
        "may_be_marked": null.may_be_marked,
        "series": len(found),
        "marked": sum(marked.values()),
        "why": dict(sorted(marked.items())),
        "events_per_series": float(np.mean(counts)) if counts else None,
        "false_per_1000": 1000 * sum(counts) / (n * len(counts)) if counts else None,
        "any_event": proportion(alarmed, len(tested)),
    }
    return row | {f"p_{alpha:g}": proportion(int((p <= alpha).sum()), len(p)) for alpha in LEVELS}


def _points(results: Results) -> list[list[Task]]:
    """Tasks of each (shape, φ, SNR), in order."""
    groups: dict[tuple[int, float, float], list[Task]] = {}
    order = list(families.PLANTED)
    for task in results:
        if task.kind == "planted":
            groups.setdefault((order.index(task.name), task.phi, task.snr), []).append(task)
    return [sorted(groups[key], key=lambda t: t.first) for key in sorted(groups)]


def _power(tasks: list[Task], results: Results, gives_p: bool) -> Row:
    found = [f for task in tasks for f in results[task]]
    row: Row = {"shape": tasks[0].name, "phi": tasks[0].phi, "snr": tasks[0].snr, "series": len(found)}
    row["marked"] = sum(bool(f.marked) for f in found)
    for level in LEVELS if gives_p else (None,):
        scores, covered = [], []
        for task in tasks:
            truths = task.planted().truths
            for i, said in enumerate(results[task]):
                places = events(said, level)
                scores.append(score(places, truths.location[i], truths.tolerance[i], task.n))
                covered.append(covering(places, truths.location[i], task.n))
        row[f"at_{level:g}" if level else "all"] = _summary(scores, covered)
    return row


def _summary(scores: list[Score], covered: list[float]) -> Row:
    pooled = together(scores)
    if len(scores) == pooled.true:
        low, high = exact(pooled.matched, pooled.true)
    else:  # events of one series are not independent: normal interval of the series' recalls
        each = np.array([s.recall for s in scores])
        half = 1.96 * float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else 1.0
        low, high = max(0.0, pooled.recall - half), min(1.0, pooled.recall + half)
    return {
        "recall": pooled.recall,
        "recall_lo": low,
        "recall_hi": high,
        "precision": _known(pooled.precision),
        "f1": _known(pooled.f1),
        "false_per_1000": pooled.false_per_1000,
        "median_error": _known(pooled.median_error),
        "median_signed_error": _known(pooled.median_signed_error),
        "covering": float(np.mean(covered)),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class _Judged:
    """One series of a simulated family: what was said, and the truth, if there is one."""

    found: Found
    location: Floats
    tolerance: Floats


def _fdr(share: float, count: int, results: Results, gives_p: bool) -> Row:
    """False-discovery proportions of simulated families, of events and of series, with their standard errors.

    Of `count` families, or as many as the series with events that were judged suffice for.
    """
    null = {name: list(_of(results, "null", name)) for name in families.CALIBRATED}
    true = list(_of(results, "in_nulls"))
    truths = families.in_nulls(len(true)).truths
    of_events, of_series, power = [], [], []
    discoveries = 0
    each = len(families.composition(share, 0)[1])
    count = min(count, len(true) // each) if each else count
    for index in range(count):
        nulls, trues = families.composition(share, index)
        series = [_Judged(null[name][i], np.zeros(0), np.zeros(0)) for name, i in nulls]
        series += [_Judged(true[i], truths.location[i], truths.tolerance[i]) for i in trues]
        found, hits, selected, selected_true = _discoveries(series, gives_p)
        discoveries += found
        of_events.append((found - hits) / max(1, found))
        of_series.append((selected - selected_true) / max(1, selected))
        power.append(hits / max(1, len(trues)))
    row: Row = {"share": share, "families": count, "size": families.FAMILY_SIZE, "discoveries": discoveries}
    for name, values in (("events", of_events), ("series", of_series)):
        row[f"mean_fdp_{name}"] = float(np.mean(values))
        row[f"se_fdp_{name}"] = float(np.std(values, ddof=1) / math.sqrt(count)) if count > 1 else None
    return row | {"power": float(np.mean(power)) if share else None}


def _discoveries(series: Sequence[_Judged], gives_p: bool) -> tuple[int, int, int, int]:
    """Events found, true ones among them, series selected, and series with an event among these.

    With p-values: series by Benjamini-Hochberg, events inside them at the Benjamini-Bogomolov level. Without: all.
    """
    level: float | None = None
    chosen: Sequence[_Judged] = [s for s in series if len(s.found.location)]
    if gives_p:
        p = np.array([math.nan if s.found.marked else s.found.p for s in series])
        q = bh(p)
        chosen = [s for s, each in zip(series, q, strict=True) if each <= FALSE_DISCOVERY]
        level = benjamini_bogomolov(len(chosen), int((~np.isnan(p)).sum()), FALSE_DISCOVERY)
    found = hits = 0
    for s in chosen:
        places = events(s.found, level)
        found += len(places)
        hits += len(match(places, s.location, s.tolerance)[0])
    return found, hits, len(chosen), sum(len(s.location) > 0 for s in chosen)


def _needle(results: Results) -> Row:
    """How often one 12 SD step among 2,400 series is found: q < 0.05 beside 2,399 series of the calibrated nulls.

    Where fewer null series were judged, their p-values stand for more of the same: q is scaled to 2,400 series.
    """
    each = -(-(NEEDLE_SERIES - 1) // len(families.CALIBRATED))
    background = np.array([f.p for name in families.CALIBRATED for f in list(_of(results, "null", name))[:each]])
    background = background[~np.isnan(background)][: NEEDLE_SERIES - 1]
    tasks = [t for t in results if t.kind == "planted" and (t.name, t.phi, t.snr) == ("step", 0.0, NEEDLE_SNR)]
    needles = [f.p for task in tasks for f in results[task] if not f.marked]
    total = sum(len(results[task]) for task in tasks)
    scale = NEEDLE_SERIES / (len(background) + 1)
    q = np.array([min(1.0, scale * float(bh(np.append(background, p))[-1])) for p in needles])
    return {
        "series": NEEDLE_SERIES,
        "background": len(background),
        "found": proportion(int((q < FALSE_DISCOVERY).sum()), total),
        "median_q": float(np.median(q)) if len(q) else None,
        "largest_p": float(max(needles)) if needles else None,
    }


def _battery(results: Results, gives_p: bool) -> Row:
    (said,) = (found for task, found in results.items() if task.kind == "battery")
    by_name = {f.name: found for f, found in zip(battery.fixtures(), said, strict=True)}
    verdict = battery.run(lambda _, name: events(by_name[name], LEVEL if gives_p else None))
    return {
        "recall": verdict.recall,
        "false_per_1000": verdict.false_per_1000,
        "passed": verdict.passed,
        "fixtures": {
            name: {"recall": _known(s.recall), "false_positives": s.false_positives, "found": s.found}
            for name, s in verdict.scores.items()
        },
    }


def bars(card: Mapping[str, Any]) -> list[Bar]:
    """The requirements: calibration and false discoveries only where there are p-values, the others of any detector."""
    found: list[Bar] = []
    rates = [row | {"family": f"{row['family']}, as a rate"} for row in card["rates"]]
    for row in [*card["nulls"], *rates] if card["gives_p"] else ():
        if not row["may_be_marked"]:
            share = row["marked"] / row["series"]
            found.append(
                Bar(f"{row['family']}: share of series declined", share, MAX_DECLINED, True, row["series"], True)
            )
        for alpha in LEVELS:
            # Of a family that may be declined, every series counts: what is declined raises no false alarm.
            p = row[f"p_{alpha:g}"]
            n = row["series"] if row["may_be_marked"] else p["n"]
            value = p["k"] / n if n else None
            found.append(Bar(f"{row['family']}: P(p <= {alpha:g})", value, SLACK * alpha, True, n, True))
    for row in () if card["gives_p"] else card["nulls"]:
        if not row["may_be_marked"]:
            alarmed = row["any_event"]
            found.append(Bar(f"{row['family']}: P(any event)", alarmed["share"], MAX_ALARMED, True, alarmed["n"], True))
    for row in card["fdr"] if card["gives_p"] else ():
        for of in ("events", "series"):
            limit = FALSE_DISCOVERY + 2 * (row[f"se_fdp_{of}"] or 0.0)
            what = f"false-discovery proportion of {of}, {row['share']:.0%} true"
            found.append(Bar(what, row[f"mean_fdp_{of}"], limit, True, row["families"]))
    if card["needle"]:
        share = card["needle"]["found"]
        found.append(
            Bar("one 12 SD event among 2,400 series, found", share["share"], MIN_RECALL, False, share["n"], True)
        )
    for row in card["power"]:
        if families.PLANTED[row["shape"]].bar and row["snr"] == BAR_SNR:
            at = row.get(f"at_{LEVEL:g}") or row["all"]
            where = f"{row['shape']}, φ {row['phi']:g}, 8 SD"
            width = float(row["shape"].partition("_")[2] or 0)
            found.append(Bar(f"{where}: recall", at["recall"], MIN_RECALL, False, row["series"], True))
            limit = width / 4 if width else STEP_ERROR
            found.append(Bar(f"{where}: median location error", at["median_error"], limit, True, row["series"]))
    found.append(Bar("ndtracker battery: mean recall", card["battery"]["recall"], battery.MIN_RECALL, False, 2))
    limit = battery.MAX_FALSE_PER_1000
    found.append(Bar("ndtracker battery: false per 1,000", card["battery"]["false_per_1000"], limit, True, 2))
    return found
