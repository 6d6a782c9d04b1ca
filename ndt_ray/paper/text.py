"""`paper.tex`: the template with what the sweep has - its kinds of architecture and its figures."""

from typing import Any

from ndt_ray.paper.claims import KINDS, kinds
from ndt_ray.paper.latex import escape
from ndt_ray.paper.macros import Macros
from ndt_ray.report.source import Source
from ndt_ray.report.words import readable

CAPTIONS = {
    "layers": "Dimensionality of each layer (rows) by training step (columns), mean over seeds where there are "
    "several; marks are jumps of an uncalibrated threshold rule, and noise gives such marks too.",
}
"""Of pictures that ndt-ray draws beside a sweep; others are called by their names."""
TITLES = {"cnn": "CNNs", "transformer": "Transformers", "mlp": "MLPs"}
FOUND = {"cnn": "cascades of jumps", "transformer": "discrete transitions", "mlp": "smooth growth"}
"""What the founding draft says of each kind; stands in the text as its claim alone."""


def paper_text(source: Source, macros: Macros, figures: list[str]) -> str:
    """LaTeX of the paper; every number in it is a macro of `macros`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    env = Environment(
        loader=PackageLoader("ndt_ray.paper", "templates"),
        undefined=StrictUndefined,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    there: list[dict[str, Any]] = [
        {"name": KINDS[kind], "title": TITLES[kind], "claim": FOUND[kind]} for kind in kinds(source)
    ]
    drawn = [_figure(name) for name in figures]
    did = {
        "events": macros.has("Events"),
        "plans": macros.has("RunsSmooth"),
        "mechanisms": source.ran("mechanisms"),
        "lesions": bool(macros.value("DropLanes")),
    }
    return env.get_template("paper.tex").render(kinds=there, figures=drawn, did=did, sweep=escape(source.sweep))


def _figure(name: str) -> dict[str, str]:
    stem = name.rpartition(".")[0]
    caption = escape(CAPTIONS.get(stem) or f"{readable(stem.replace('-', ' ')).capitalize()}.")
    return {"path": f"figures/{name}", "label": f"fig:{stem}", "caption": caption}
