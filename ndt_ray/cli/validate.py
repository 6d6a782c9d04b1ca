"""`ndt validate`: a detector on series whose truth is known."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ndt_ray.cli.options import JsonOption
from ndt_ray.errors import SpecError

if TYPE_CHECKING:
    from ndt_ray.analysis.validity.tasks import Progress


def register(ndt: typer.Typer) -> None:
    """Adds this module's command."""
    ndt.command()(validate)


def validate(
    detector: Annotated[
        str, typer.Option("--detector", metavar="NAME|FILE.py:FUNCTION", help="A detector, or a function of your own.")
    ] = "profile",
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the detector; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the series.")] = False,
    share: Annotated[
        float | None, typer.Option("--share", min=0.001, max=1, help="So much of the series, instead of all.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; a stopped run goes on there.")] = Path(
        "validity"
    ),
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    baselines: Annotated[bool, typer.Option(help="Judge simple rules beside it.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Judge a detector where the truth is known: false positives, recall, localisation, power, false discoveries.

    A function of your own is called with (steps, values) and returns the steps of its events. Exit code 1 where a
    requirement was missed.
    """
    from ndt_ray.analysis.validity.tasks import FULL, QUICK
    from ndt_ray.analysis.validity.validate import missed
    from ndt_ray.analysis.validity.validate import validate as run

    if quick and share is not None:
        raise SpecError("--quick is --share 0.1: give one of the two")
    size = QUICK if quick else FULL if share is None else FULL.fraction(share)
    asked = [f"--detector {detector}", *(f"--set {a}" for a in assignments or ())]
    asked += ["--quick"] if quick else [] if share is None else [f"--share {share:g}"]
    parameters = dict(_assignment(a) for a in assignments or ())
    card = run(
        detector,
        parameters,
        size=size,
        out=out,
        workers=workers,
        baselines=baselines,
        command=" ".join(["ndt validate", *asked, *([] if baselines else ["--no-baselines"])]),
        progress=_shown(),
    )
    failed = missed(card)
    if as_json:
        print(json.dumps(card))
    else:
        for bar in card["card"]["bars"]:
            sign = {True: "✓", False: "✗", None: "-"}[bar["met"]]
            value = "-" if bar["value"] is None else f"{bar['value']:.4g}"
            print(
                f"{sign} {bar['what']}: {value} ({'<=' if bar['at_most'] else '>='} {bar['limit']:.4g}, n={bar['n']})"
            )
        print(out / "validity.html")
    raise typer.Exit(1 if failed else 0)


def _shown() -> Any:
    """A printer of progress to stderr: one line a tenth of the way."""
    last: dict[str, int] = {}

    def show(label: str, at: "Progress") -> None:
        tenth = 10 * at.done // max(at.total, 1)
        if last.get(label) != tenth:
            last[label] = tenth
            before = f", {at.skipped} from before" if at.skipped else ""
            print(f"{label}: {at.done}/{at.total} tasks{before}, {at.cpu_seconds:.0f} CPU s", file=sys.stderr)

    return show


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise SpecError(f"--set {text}: give NAME=VALUE")
    from ndt_ray.spec.loader import parse_value

    return name, parse_value(value, f"--set {name}")
