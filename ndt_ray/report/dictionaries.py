"""Sparse autoencoders: what their features explain beyond controls, and how far they serve other networks."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from ndt_ray.analysis.mechanisms.sae import matrix as founding
from ndt_ray.analysis.mechanisms.sae.founding import matrices, named
from ndt_ray.analysis.mechanisms.sae.matrix import LayerMatrix
from ndt_ray.figures.charts import matrix
from ndt_ray.report.order import sheet, tested
from ndt_ray.report.parts import Claim, Figure, Plate, Ramp, Section
from ndt_ray.report.source import Answer, Source
from ndt_ray.report.words import count, listed, number, readable, share, span

MOST = 8
"""Matrices in one plate; the table has all pairs."""
QUANTILE = 0.05
"""Share of pairs whose correlation lies above the 95 % quantile of permuted stimuli where nothing is shared."""
RELATIONS = ("layers", "checkpoints", "seeds", "architectures", "data")
SCORE = "learned features beyond controls"


def dictionaries(source: Source) -> Section:
    """The section; empty where no dictionary was trained."""
    section = Section("dictionaries", "Dictionaries of features, and what they transfer", short="Dictionaries")
    if source.has("sae", "explained_variance", "explained_frozen", "explained_random", "explained_pca", "pw_mcc"):
        section.claims += list(_quality(source))
    if source.has("sae_transfer", "relation", "status", "aligned", "control", "ceiling", "score", "quality"):
        answer = source.ask("SELECT * FROM sae_transfer WHERE sweep = $sweep ORDER BY ALL")
        by_name = list(named(answer.rows).groupby("configuration", sort=True))
        for name, rows in by_name:
            which = f" ({name} dictionaries)" if len(by_name) > 1 else ""
            own = Answer(rows, answer.sql)
            for claim in (*_transferred(own), *_skipped(own), *_as_founded(own)):
                text = f"Configuration {name}. {claim.text}" if which else claim.text
                section.claims.append(replace(claim, text=text))
            section.plates += [replace(p, title=p.title + which) for p in _plates(source, rows)]
    elif source.has("sae"):
        section.missing.append(("Transfer between layers was not computed", f"ndt analyze {source.sweep} sae_transfer"))
    section.sheets += [*sheet(source, "sae", "Dictionaries"), *sheet(source, "sae_transfer", "Transfer, pair by pair")]
    return section


# -- quality -------------------------------------------------------------------------------------------------------


def _quality(source: Source) -> Iterator[Claim]:
    """Explained variance beside the three dictionaries without learned features, at the last and at the first step."""
    how = "coalesce(configuration, 'default')" if "configuration" in source.columns("sae") else "'default'"
    answer = source.ask(
        f"SELECT {how} AS configuration, step = 0 AS random, count(*) AS n, count(DISTINCT trial_id) AS trials, "
        "median(explained_variance) AS explained, "
        "median(greatest(explained_frozen, explained_random, explained_pca)) AS control, "
        "count(*) FILTER (WHERE explained_variance > greatest(explained_frozen, explained_random, explained_pca)) AS "
        "above, median(pw_mcc) AS mcc, median(pw_mcc_chance) AS chance, median(l0) AS l0, median(dead) AS dead, "
        "median(loss_recovered) AS recovered FROM sae WHERE sweep = $sweep AND dictionary = 0 AND flag IS NULL "
        "GROUP BY 1, 2 ORDER BY 1, 2"
    )
    several = answer.rows["configuration"].nunique() > 1
    for row in answer.rows.itertuples():
        where = "of untrained networks (step 0)" if row.random else "of trained networks"
        where += f", configuration {row.configuration}" if several else ""
        text = (
            f"Dictionaries {where}: {number(row.explained, 2)} of the variance of held-out stimuli explained, beside "
        )
        text += f"{number(row.control, 2)} by the best of three dictionaries without learned features (medians over "
        text += f"{count(row.n, 'layer')} of {count(row.trials, 'trial')}; above it in {row.above:,} of {row.n:,})"
        if row.mcc == row.mcc and row.mcc is not None:
            text += f". Two seeds of a dictionary share atoms to {number(row.mcc, 2)}, random atoms to "
            text += f"{number(row.chance, 2)} (mean |cosine|)"
        text += f"; {number(row.l0)} features are active a row, {share(row.dead, 1)} of them never."
        yield Claim(text, "described" if 2 * row.above > row.n else "caution", answer.sql)
    flags = source.ask(
        "SELECT flag, count(*) AS n FROM sae WHERE sweep = $sweep AND flag IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    if len(flags.rows):
        said = listed(f"{readable(str(r.flag))} {r.n:,}" for r in flags.rows.itertuples())
        yield Claim(f"Layers that no dictionary was trained on, by reason: {said}.", "caution", flags.sql)


# -- transfer ------------------------------------------------------------------------------------------------------


def _transferred(answer: Answer) -> Iterator[Claim]:
    """By relation, what alignment leaves between the best control and the target's own dictionaries."""
    ok = answer.rows[answer.rows["status"] == "ok"]
    for relation in [r for r in RELATIONS if r in set(ok["relation"])]:
        own = ok[ok["relation"] == relation]
        above = int((own["aligned"] > own["control"]).sum())
        scored = own["score"].dropna()
        text = f"Between {readable(relation)}: after alignment dictionaries explain {_middle(own['aligned'])} of the "
        text += f"target's variance, beside {_middle(own['control'])} by the best control and "
        text += f"{_middle(own['ceiling'])} by the target's own (medians over {count(len(own), 'pair')}; above the "
        text += f"control in {above:,})"
        if len(scored):
            low, high = scored.quantile(0.25), scored.quantile(0.75)
            text += f". Score, 0 for the control and 1 for the target's own: {number(scored.median(), 2)}, half of the "
            text += f"{count(len(scored), 'pair')} with room for one between {number(low, 2)} and {number(high, 2)}"
        else:
            text += ". No pair leaves room for a score: the target's own dictionaries do not clear the control by 2 SE"
        judged = own.dropna(subset=["correlation", "correlation_null_hi"])
        if len(judged):
            beyond = int((judged["correlation"] > judged["correlation_null_hi"]).sum())
            text += f". Matched features go together beyond the 95 % quantile of permuted stimuli in {beyond:,} of "
            text += f"{count(len(judged), 'pair')}, where {number(QUANTILE * len(judged), 2)} would by chance"
        yield Claim(f"{text}. Pairs share networks, so no test is made of them.", "described", answer.sql)


def _middle(values: "pd.Series[float]") -> str:
    return number(values.median(), 2)


def _skipped(answer: Answer) -> Iterator[Claim]:
    rows = answer.rows
    left = rows[rows["status"] != "ok"]
    if len(left):
        reasons = left["reason"].fillna("unknown").astype(str).str.replace(r"\d+", "…", regex=True)
        said = listed(f"{r} ({n:,})" for r, n in reasons.value_counts().items())
        text = f"{len(left):,} of {count(len(rows), 'pair')} were skipped, by reason: {said}."
        yield Claim(text, "caution", answer.sql)


def _as_founded(answer: Answer) -> Iterator[Claim]:
    """The founding document's questions, asked of its own number: the ratio of losses, capped at 1."""
    ok = answer.rows[answer.rows["status"] == "ok"]
    made = matrices(ok, "quality")
    yield from _shared_as_founded(answer, [m for m in made if not m.within])
    within = [m for m in made if m.within]
    if not within:
        return
    early = [(flag, mean) for flag, mean in map(founding.universal_early, within) if not math.isnan(mean)]
    if early:
        text = "As founded (quality: source loss / target loss, at most 1): early layers are universal, all above "
        text += (
            f"{founding.UNIVERSAL}, in {sum(f for f, _ in early):,} of {count(len(early), 'network')} (mean quality "
        )
        text += f"{number(float(np.mean([m for _, m in early])), 2)})"
        apart = [a for a in map(founding.divergence, within) if a is not None]
        text += f"; the first layer whose transfer to the first is {founding.DIVERGING} or less: "
        text += listed(f"{a} in {apart.count(a):,}" for a in dict.fromkeys(apart)) if apart else "none"
        yield Claim(f"{text} of {count(len(within), 'network')}.", "described", answer.sql)
    leads = [b for b in map(founding.bottleneck, within) if b[0] is not None]
    if leads:
        clear = [str(name) for name, _, lead in leads if lead]
        text = "As founded, the layer whose features serve the others best, which is where to intervene or to distil "
        text += f"first, by {founding.CLEAR} or more: "
        text += listed(f"{name} in {clear.count(name):,}" for name in dict.fromkeys(clear)) if clear else "none"
        text += f" of {count(len(leads), 'network')}"
        shares = [round(v, 2) for v in map(founding.concentration, within) if not math.isnan(v)]
        if shares:
            text += f"; entropy of the layers' means over its maximum {span(shares)}, where 1 is shared by all alike"
        yield Claim(f"{text}. The same ratio is high for any layer that is easy to rebuild.", "described", answer.sql)
    effect = founding.size_effect(within)
    if effect["p"] is not None:
        text = f"narrower networks diverge at another depth (slope {number(effect['slope'], 2)} of the depth per "
        text += f"doubling of the width, {count(int(effect['n']), 'network')})"
        yield tested(text, float(effect["p"]), math.nan, answer.sql)


def _shared_as_founded(answer: Answer, between: list[LayerMatrix]) -> Iterator[Claim]:
    """Whether all networks have the same early layers, by what differs between them; beside untrained dictionaries."""
    for relation in [r for r in RELATIONS if r in {m.relation for m in between}]:
        own = [m for m in between if m.relation == relation]
        early = [(flag, mean) for flag, mean in map(founding.shared_early, own) if not math.isnan(mean)]
        if not early:
            continue
        text = f"As founded, between {readable(relation)}: early layers are universal, all above {founding.UNIVERSAL} "
        text += f"at the same depth, in {sum(f for f, _ in early):,} of {count(len(early), 'pair')} of networks (mean "
        text += f"quality {number(float(np.mean([m for _, m in early])), 2)})"
        rows = answer.rows
        if "quality_random" in rows:
            beside = rows[rows["relation"] == relation].dropna(subset=["quality", "quality_random"])
            if len(beside):
                text += f"; of all layers {_middle(beside['quality'])}, and {_middle(beside['quality_random'])} with "
                text += f"dictionaries that were not trained (medians of {count(len(beside), 'pair')} of layers)"
        yield Claim(f"{text}.", "described", answer.sql)


# -- figures -------------------------------------------------------------------------------------------------------


def _plates(source: Source, rows: pd.DataFrame) -> Iterator[Plate]:
    """Maps of layers by layers, mean over a cell's trials at their last checkpoint: beyond controls; as founded."""
    ok = rows[(rows["relation"] == "layers") & (rows["status"] == "ok")]
    last = ok[ok["source_step"] == ok.groupby("source_trial")["source_step"].transform("max")]
    made: dict[str, list[Figure]] = {"score": [], "quality": []}
    for value, figures in made.items():
        for cell, own in list(last.groupby("source_cell", sort=False))[:MOST]:
            found = [m for m in matrices(own, value) if m.square]
            if not found:
                continue
            figures.append(_figure(source.label(cell), found, value))
    ticks = (("0", 0.0), ("0.5", 0.5), ("1", 1.0))
    if made["score"]:
        note = (
            "Rows: whose features; columns: of which layer. Mean over trials; –: the target's own dictionaries do not "
        )
        note += "clear the controls, so nothing can be told."
        ramp = Ramp("score: 0 the best control, 1 the target's own dictionaries", "heatmap", ticks)
        yield Plate(f"Transfer between layers: {SCORE}", tuple(made["score"]), note, ramp)
    if made["quality"]:
        note = "Green: 0.9 and above, universal in the founding document's words; yellow: 0.6 to 0.9, partially; red: "
        note += "below, model-specific; –: widths differ. Nothing here is measured against a control."
        yield Plate("Transfer between layers as founded: source loss / target loss", tuple(made["quality"]), note)


def _figure(label: str, found: list[LayerMatrix], value: str) -> Figure:
    shape = found[0].sources
    same = [m.values for m in found if m.sources == shape]
    stacked = np.array(same)
    known = np.isfinite(stacked)
    mean = np.where(known.any(0), np.where(known, stacked, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)
    verdicts = founding.row_verdicts(LayerMatrix(label, shape, shape, mean)) if value == "quality" else {}
    cells = []
    for i, a in enumerate(shape):
        for j, b in enumerate(shape):
            own = i == j and value == "score"
            text = f"{a} to {b}, {count(int(known[:, i, j].sum()), 'trial')}"
            text += f"; its row: {verdicts[a]}" if verdicts else ""
            cells.append({"source": i, "target": j, "value": np.nan if own else mean[i, j], "text": text})
    rows = pd.DataFrame(cells)
    how = "bands" if value == "quality" else "ramp"
    title = "source loss / target loss" if value == "quality" else SCORE
    spec = matrix(rows, shape, shape, title, how=how)  # type: ignore[arg-type]
    off = rows[(rows["source"] != rows["target"])].dropna(subset=["value"])
    said = f"{label}, {count(len(same), 'trial')}: {title} between {count(len(shape), 'layer')}, "
    if len(off):
        top = off.loc[off["value"].idxmax()]
        said += f"largest {number(top['value'], 2)} from {shape[int(top['source'])]} to {shape[int(top['target'])]}, "
        said += f"median {number(off['value'].median(), 2)} of {len(off)} pairs."
    else:
        said += "no pair of different layers has a value."
    said += f" Rows: {listed((f'{a} {v}' for a, v in verdicts.items()), 12)}." if verdicts else ""
    return Figure(label, spec, said)
