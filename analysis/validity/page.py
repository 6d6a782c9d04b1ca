"""The scorecard as a page: Markdown with its figure beside it, and one self-contained HTML file. Deterministic."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ndt_ray.analysis.validity import battery, families
from ndt_ray.analysis.validity.scorecard import LEVEL, LEVELS
from ndt_ray.analysis.validity.tasks import BAR_SNR

Row = Mapping[str, Any]
CURVES = (("step", "step"), ("sigmoid_20", "sigmoid, width 20"), ("sigmoid_60", "sigmoid, width 60"), ("kink", "kink"))
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#444444")
"""Okabe and Ito's, which colour-blind readers can tell apart."""


@dataclass(frozen=True)
class Text:
    """A paragraph; with `level`, a heading of that level."""

    text: str
    level: int = 0


@dataclass(frozen=True)
class Grid:
    """A table. Cells are plain text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG file of this name."""

    name: str
    alt: str
    png: bytes


Block = Text | Grid | Picture


def write(card: Row, folder: Path, name: str = "validity") -> tuple[Path, Path]:
    """`name`.md with its figure, and `name`.html, in the folder; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page = blocks(card, name)
    for picture in page:
        if isinstance(picture, Picture):
            (folder / picture.name).write_bytes(picture.png)
    markdown, document = folder / f"{name}.md", folder / f"{name}.html"
    markdown.write_text("\n\n".join(_markdown(b) for b in page) + "\n")
    document.write_text(_html(page))
    return markdown, document


def blocks(card: Row, name: str = "validity") -> list[Block]:
    """The page of a scorecard (as `validate` gives it: `card`, `baselines`, `size`, `provenance`)."""
    judged, others = card["card"], card["baselines"]
    called = judged["detector"]
    missed = [bar for bar in judged["bars"] if bar["met"] is False]
    tested = [bar for bar in judged["bars"] if bar["met"] is not None]
    return [
        Text("Validity: what the detector reports where the truth is known", 1),
        Text(
            f"`{called}` on {judged['series']:,} series of {judged['n']} measurements: "
            f"{len(tested) - len(missed)} of {len(tested)} requirements met. "
            + (f"Events are counted at level {LEVEL:g} per series. " if judged["gives_p"] else "")
            + "Intervals are exact (Clopper-Pearson), 95 %; n is the number of series unless said otherwise. "
            "What the families are and their parameters: `analysis/validity/families.py`."
        ),
        Text(
            f"Run by `{card['provenance']['command']}`"
            + "".join(f", {name} {value}" for name, value in judged["parameters"].items())
            + ". "
            + _provenance(card["provenance"])
        ),
        Text("Requirements", 2),
        Grid(
            ("requirement", "measured", "limit", "n", ""),
            [
                (b["what"], _number(b["value"]), f"{'≤' if b['at_most'] else '≥'} {b['limit']:.3g}", f"{b['n']:,}")
                + ({True: "met", False: "**missed**", None: "not tested"}[b["met"]],)
                for b in judged["bars"]
            ],
        ),
        Text("Where there is no event", 2),
        *_nulls(judged, others),
        *_rates(judged),
        Text("Beyond the requirements", 3),
        Text("Other smooth curves and other memories, on which nothing is required."),
        _null_table(judged, others, "others"),
        Text("Planted events", 2),
        *_power(judged, others),
        Picture(f"{name}_power.png", "Recall and F1 by SNR for each planted shape", power_figure(judged, others)),
        Text("False discoveries over families of 40 series", 2),
        *_fdr(judged),
        Text("ndtracker's own battery", 2),
        *_battery([judged, *others]),
    ]


def _provenance(said: Row) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in said.items() if key != "command") + "."


def _null_table(judged: Row, others: Sequence[Row], which: str) -> Grid:
    """One row a family of `nulls` or `others`: the detector's error rates, and how often the simple rules cry out."""
    header = ["family", "n"]
    if judged["gives_p"]:
        header += ["declined", *(f"P(p ≤ {alpha:g})" for alpha in LEVELS), f"events a series at {LEVEL:g}"]
    else:
        header += ["events a series", "P(any event)"]
    header += [f"events a series, {_label(o)} (P(any))" for o in others]
    rows = []
    for i, row in enumerate(judged[which]):
        cells = [f"{row['family']}: {row['about']}", f"{row['series']:,}"]
        if judged["gives_p"]:
            cells += [_declined(row), *(_share(row[f"p_{alpha:g}"]) for alpha in LEVELS)]
            cells += [_number(row["events_per_series"])]
        else:
            cells += [_number(row["events_per_series"]), _share(row["any_event"])]
        for other in others:
            same = other[which][i]
            cells.append(f"{_number(same['events_per_series'])} ({_percent(same['any_event'])})")
        rows.append(cells)
    return Grid(header, rows)


def _nulls(judged: Row, others: Sequence[Row]) -> list[Block]:
    found: list[Block] = [_null_table(judged, others, "nulls")]
    known = {name: o for o in others if (name := _baseline(o)) is not None}
    if known:
        found += [
            Text(
                "The three simple rules beside what was measured of them before (40 series a family, other random "
                "numbers; the variance of PELT's penalty is ours: from differences): events a series."
            ),
            Grid(
                ["family", *(f"{_label(o)}: here / before" for o in known.values())],
                [
                    [name]
                    + [f"{_number(_row(o, name)['events_per_series'])} / {before[k]:g}" for k, o in known.items()]
                    for name, before in families.BASELINE.items()
                ],
            ),
        ]
    return found


def _rates(judged: Row) -> list[Block]:
    if not judged["rates"]:
        return []
    words = "The same families taken for rates of change, as representation velocity is: there a burst is an event."
    return [Text("As rates", 3), Text(words), _null_table(judged, (), "rates")]


def _baseline(card: Row) -> int | None:
    """Which column of `families.BASELINE` a rule is."""
    if card["detector"] == "rolling_level" and card["parameters"].get("window") == 50:
        return {2.0: 0, 3.0: 1}.get(card["parameters"]["threshold"])
    return 2 if card["detector"] == "pelt" else None


def _row(card: Row, family: str) -> Row:
    found: Row = next(row for row in card["nulls"] if row["family"] == family)
    return found


def _declined(row: Row) -> str:
    if not row["marked"]:
        return "0"
    return f"{row['marked'] / row['series']:.1%} ({', '.join(row['why'])})"


def _power(judged: Row, others: Sequence[Row]) -> list[Block]:
    rows = []
    for row in judged["power"]:
        if row["snr"] != BAR_SNR:
            continue
        at = _judged(row)
        cells = [f"{families.PLANTED[row['shape']].about}", f"{row['phi']:g}", f"{row['series']}"]
        cells += [f"{at['recall']:.3f} ({at['recall_lo']:.3f}-{at['recall_hi']:.3f})", _number(at["f1"])]
        cells += [_number(at["median_error"]), _number(at["median_signed_error"], signed=True)]
        cells += [_number(at["false_per_1000"]), _number(at["covering"])]
        for other in others:
            same = _judged(next(r for r in other["power"] if _where(r) == _where(row)))
            cells.append(f"{same['recall']:.2f} / {_number(same['f1'])}")
        rows.append(cells)
    header = ["shape, 8 SD", "φ", "n", "recall", "F1", "median error", "signed", "false per 1,000", "covering"]
    words = (
        "Noise is AR(1) of marginal SD 1. A found event matches a true one within half its width (steps: 5 "
        "measurements), one to one. Errors are in measurements, of matched events."
        + (" Beside it recall / F1 of simple rules, all of whose alarms count." if others else "")
    )
    return [Text(words), Grid([*header, *(_label(o) for o in others)], rows)]


def _where(row: Row) -> tuple[str, float, float]:
    return row["shape"], row["phi"], row["snr"]


def _judged(row: Row) -> Row:
    found: Row = row.get(f"at_{LEVEL:g}") or row["all"]
    return found


def _fdr(judged: Row) -> list[Block]:
    rows = [
        [
            f"{r['share']:.0%}",
            f"{r['families']}",
            f"{r['discoveries']:,}",
            f"{r['mean_fdp_events']:.4f} ± {_number(r['se_fdp_events'])}",
            f"{r['mean_fdp_series']:.4f} ± {_number(r['se_fdp_series'])}",
            _number(r["power"]),
        ]
        for r in judged["fdr"]
    ]
    found: list[Block] = [
        Text(
            "Series of the calibrated null families, some with one event of 8 SDs of their own noise. "
            + (
                "Series are selected by Benjamini-Hochberg at 0.05, events inside at the Benjamini-Bogomolov level. "
                if judged["gives_p"]
                else "The rule gives no p-values: every alarm is a discovery. "
            )
            + "Mean false-discovery proportion ± SE."
        ),
        Grid(("true events", "families", "discoveries", "of events", "of series", "share of events found"), rows),
    ]
    if needle := judged["needle"]:
        found.append(
            Text(
                f"One 12 SD step among {needle['series']:,} series is found at q < 0.05 in "
                f"{_share(needle['found'])} of {needle['found']['n']} trials; "
                f"median q {_number(needle['median_q'])}, p of its series at most "
                f"{_number(needle['largest_p'])}."
            )
        )
    return found


def _battery(cards: Sequence[Row]) -> list[Block]:
    names = list(cards[0]["battery"]["fixtures"])
    rows = []
    for card in cards:
        said = card["battery"]
        cells = [_label(card), f"{said['recall']:.2f}"]
        cells += [str(said["fixtures"][name]["false_positives"]) for name in names]
        rows.append([*cells, "passes" if said["passed"] else "fails"])
    return [
        Text(
            f"Its bar: mean recall at least {battery.MIN_RECALL}, and at most {battery.MAX_FALSE_PER_1000:g} false "
            "positives per 1,000 steps on the worse null. Its own detector is rolling z > 3."
        ),
        Grid(["detector", "recall", *(f"false: {name}" for name in names), "verdict"], rows),
    ]


def _label(card: Row) -> str:
    p = card["parameters"]
    if card["detector"] == "rolling_level":
        return f"rolling z > {p['threshold']:g}"
    if card["detector"] == "difference_z":
        return f"difference z > {p['threshold']:g}"
    return str(card["detector"]).rpartition("/")[2]


def power_figure(judged: Row, others: Sequence[Row]) -> bytes:
    """Recall and F1 over SNR, one column a shape: the detector at both φ, the others at φ 0.5; a PNG."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(2, len(CURVES), sharex=True, sharey="row", squeeze=False)
    lines = [(judged, 0.0, HUES[0], "--"), (judged, 0.5, HUES[0], "-")]
    lines += [(other, 0.5, HUES[1 + i % (len(HUES) - 1)], "-") for i, other in enumerate(others)]
    for column, (shape, words) in enumerate(CURVES):
        for card, phi, hue, dash in lines:
            rows = [r for r in card["power"] if r["shape"] == shape and r["phi"] == phi]
            x = [r["snr"] for r in rows]
            width = 2.0 if card is judged else 1.0
            for line, measure in enumerate(("recall", "f1")):
                y = [_judged(r)[measure] for r in rows]
                y = [float("nan") if v is None else v for v in y]
                label = f"{_label(card)}, φ = {phi:g}"
                axes[line, column].plot(x, y, dash, color=hue, lw=width, marker=".", ms=4, label=label)
        axes[0, column].set_title(words, fontsize=9)
        axes[1, column].set_xlabel("amplitude / noise SD")
    for line, words in enumerate(("recall", "F1")):
        axes[line, 0].set_ylabel(words)
        for a in axes[line]:
            a.set_ylim(-0.02, 1.02)
            a.axhline(0.95, color="#bbbbbb", lw=0.6, zorder=0)
            a.tick_params(labelsize=8)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    held = io.BytesIO()
    with matplotlib.rc_context({"savefig.dpi": 110}):
        figure.savefig(held, format="png", metadata={"Software": None})
    return held.getvalue()


def _number(value: float | None, signed: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.3g}" if signed else f"{value:.3g}"


def _share(said: Row) -> str:
    if said["share"] is None:
        return "-"
    return f"{said['share']:.4f} ({said['lo']:.4f}-{said['hi']:.4f})"


def _percent(said: Row) -> str:
    return "-" if said["share"] is None else f"{said['share']:.0%}"


def _markdown(block: Block) -> str:
    if isinstance(block, Text):
        return f"{'#' * block.level} {block.text}" if block.level else block.text
    if isinstance(block, Picture):
        return f"![{block.alt}]({block.name})"
    lines = [block.header, ["---"] * len(block.header), *block.rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines)


STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}
th,td{padding:.25rem .6rem;border-bottom:1px solid #8884;text-align:left}
th{font-weight:600}.missed{color:#d55e00;font-weight:600}img{max-width:100%;background:#fff}
"""


def _html(page: Sequence[Block]) -> str:
    body = []
    for block in page:
        if isinstance(block, Text):
            tag = f"h{block.level}" if block.level else "p"
            body.append(f"<{tag}>{_inline(block.text)}</{tag}>")
        elif isinstance(block, Picture):
            data = base64.b64encode(block.png).decode()
            body.append(f'<img alt="{html.escape(block.alt)}" src="data:image/png;base64,{data}">')
        else:
            head = "".join(f"<th>{_inline(c)}</th>" for c in block.header)
            rows = "".join("<tr>" + "".join(f"<td>{_inline(c)}</td>" for c in row) + "</tr>" for row in block.rows)
            body.append(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
    title = html.escape(next(b.text for b in page if isinstance(b, Text)))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>" + "\n".join(body) + "</body></html>\n"
    )


def _inline(text: str) -> str:
    """Plain text with `code` and **what was missed**."""
    pieces = html.escape(text).split("`")
    coded = "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))
    return coded.replace("**missed**", '<span class="missed">missed</span>')
