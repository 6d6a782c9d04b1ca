"""What the figures share: a titled grid of axes, the checks of their rows, and saving."""

import math
import os
import tempfile
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from ndt_ray.errors import NdtError, SpecError, did_you_mean
from ndt_ray.store.schema import TABLES
from ndt_ray.summary import cell_labels

SMALL, NORMAL, LARGE = 7.0, 8.0, 11.0
"""Font sizes in points."""
INK, GREY = "#222222", "#6b6b6b"
HEADER, FOOTER = 0.52, 0.28
"""Inches above and below the axes, for the title and a legend."""
FORMATS = ("png", "pdf", "svg")


@dataclass(frozen=True)
class Canvas:
    """A figure and its axes, row by row."""

    figure: Figure
    axes: list[Axes]


def canvas(
    size: tuple[float, float],
    shape: tuple[int, int],
    count: int,
    title: tuple[str, str],
    handles: Sequence[Any] = (),
    **grid: Any,
) -> Canvas:
    """`count` axes in a grid of `shape` (rows, columns), which takes `size` (inches, width × height).

    Above it stands a title of two lines, below it, in one line, a legend of `handles`, if there are any.
    """
    footer = FOOTER if handles else 0.0
    width, height = size[0], size[1] + HEADER + footer
    figure = Figure(figsize=(width, height), facecolor="white")
    place = (0.0, footer / height, 1.0, size[1] / height)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=place, w_pad=0.06, h_pad=0.05, wspace=0.03))
    found = figure.subplots(*shape, squeeze=False, **grid).ravel()
    for axes in found[count:]:
        axes.remove()
    for axes in found[:count]:
        axes.tick_params(labelsize=SMALL, length=2.5, width=0.6, color=GREY, labelcolor=INK)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set(linewidth=0.6, color=GREY)
    for text, top, points, colour, weight in (
        (title[0], 0.1, LARGE, INK, "bold"),
        (title[1], 0.32, NORMAL, GREY, "normal"),
    ):
        font: dict[str, Any] = {"size": fitted(text, width - 0.16, points), "color": colour, "weight": weight}
        figure.text(0.08 / width, 1 - top / height, text, ha="left", va="top", **font)
    if handles:
        where: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (0.0, footer / 2 / height)}
        style: dict[str, Any] = {"frameon": False, "labelcolor": INK, "columnspacing": 1.4, "handletextpad": 0.5}
        points = fitted("".join(f"{handle.get_label()}......" for handle in handles), width, SMALL)
        figure.legend(handles=handles, ncols=len(handles), fontsize=points, **where, **style)
    return Canvas(figure, list(found[:count]))


def fitted(text: str, inches: float, size: float, least: float = 5.0) -> float:
    """The font size, `size` or smaller, at which a line is no longer than so many inches: 0.64 em a character."""
    return max(least, min(size, inches * 72 / (0.64 * max(len(text), 1))))


def head(axes: Axes, text: str, inches: float) -> None:
    """A panel's title in the width of its column: smaller where it is long, then on several lines."""
    size = fitted(text, inches, NORMAL + 0.5, least=6.0)
    lines = textwrap.wrap(text.replace("/", "/ "), max(8, int(inches * 72 / (0.64 * size)))) if size <= 6.0 else [text]
    axes.set_title("\n".join(lines).replace("/ ", "/"), fontsize=size, color=INK, pad=4)


def step_axis(axes: Axes, last: float, log: bool = False) -> None:
    """Ticks at round training steps; logarithmic from 1 on, with step 0 kept."""
    if log:
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xticks([0, *(10**k for k in range(int(math.log10(max(last, 1))) + 1))])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def save(figure: Figure, path: str | Path, dpi: int = 200) -> Path:
    """Write a figure as PNG, PDF or SVG, by its suffix: whole or not at all, and the same bytes each time.

    Folders on the way are made. SpecError for another suffix, NdtError where it cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise SpecError(f"{path}: a figure is saved as .png, .pdf or .svg, by its suffix{did_you_mean(kind, FORMATS)}")
    varying = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}
    fonts = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "ndt-ray"}  # 42: text that journals accept
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file, rc_context(fonts):
            figure.savefig(file, format=kind, dpi=dpi, metadata={varying[kind]: None})
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise NdtError(
            f"{path}: the figure cannot be written ({error.strerror or error}) - give another path"
        ) from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    return path


def require(rows: pd.DataFrame, columns: Iterable[str], what: str, empty: bool = False) -> None:
    """SpecError for rows without a column that is needed, or (unless `empty`) for no rows at all."""
    for column in columns:
        if column not in rows:
            raise SpecError(f"{what}: no column '{column}'{did_you_mean(column, map(str, rows.columns))}")
    if rows.empty and not empty:
        raise SpecError(f"{what}: no rows to draw - has anything of this sweep been committed?")


def require_number(rows: pd.DataFrame, column: str, what: str) -> None:
    """SpecError, with the nearest name, unless `column` is there and holds numbers."""
    numbers = [str(c) for c in rows.columns if pd.api.types.is_numeric_dtype(rows[c])]
    if column in rows and rows[column].isna().all():
        raise SpecError(f"{what}: every value of '{column}' is null - choose another")
    if column not in numbers:
        raise SpecError(f"{what}: no measure '{column}'{did_you_mean(column, numbers)}")


def words(column: str) -> str:
    """A column's name as prose; of `velocity`, whose names say little alone, what the schema says of it."""
    for known in TABLES["velocity"].columns[4:]:
        if known.name == column:
            return known.doc
    text = (
        column.removesuffix("_uncentred")
        .replace("energy_90", "energy-90")
        .replace("ratio_sv", "ratio of singular values")
    )
    return text.replace("_", " ") + (" (uncentred)" if column.endswith("_uncentred") else "")


def data_words(rows: pd.DataFrame) -> str:
    """`digits`, or `ag_news (subset)`: the data sets, each with what is known of its completeness."""
    if "data_completeness" not in rows:
        return ", ".join(sorted(rows["data"].astype(str).unique()))
    pairs = rows[["data", "data_completeness"]].drop_duplicates().sort_values("data").itertuples(index=False)
    return ", ".join(f"{data} ({known})" if isinstance(known, str) else str(data) for data, known in pairs)


def seeds(rows: pd.DataFrame) -> str:
    """`6 seeds`, or `3-6 seeds` where cells differ; trials, where their four seeds vary apart."""
    counts = rows.groupby("cell")["trial_id"].nunique()
    word = "trial" if "seed" in rows and rows["seed"].isna().any() else "seed"
    number = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()}–{counts.max()}"
    return f"{number} {word}{'' if number == '1' else 's'}"


def stimuli(rows: pd.DataFrame) -> str:
    """`probe of 128 stimuli`; nothing where it is unknown."""
    if "probe_size" not in rows or rows["probe_size"].isna().all():
        return ""
    sizes = sorted({int(n) for n in rows["probe_size"].dropna()})
    return f"probe of {'–'.join(str(n) for n in dict.fromkeys((sizes[0], sizes[-1])))} stimuli"


def with_controls_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose `cell` says their control, where they have one: a control is never averaged with what it controls."""
    if "control" not in rows:
        return rows
    named = rows["cell"].astype(str).where(rows["control"] == "none", rows["cell"] + " " + rows["control"].astype(str))
    return rows.assign(cell=named)


def labels(rows: pd.DataFrame) -> dict[str, str]:
    """A short name of each cell, in order of appearance."""
    return cell_labels(rows[["cell", "data"]].drop_duplicates().itertuples(index=False))
