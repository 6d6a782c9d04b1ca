"""One detector through the whole battery, beside the simple rules: scorecard and page."""

import importlib.metadata
import importlib.util
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ndt_ray.analysis.validity import page
from ndt_ray.analysis.validity.scorecard import Results, scorecard
from ndt_ray.analysis.validity.subject import for_rates, subject
from ndt_ray.analysis.validity.tasks import QUICK, Progress, Size, plan, plan_rates, run

BASELINES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rolling_level", {"threshold": 2.0}),
    ("rolling_level", {"threshold": 3.0}),
    ("difference_z", {"threshold": 2.0}),
    ("difference_z", {"threshold": 3.0}),
    ("local_contrast", {}),
    ("pelt", {}),
    ("binseg", {}),
)
"""Simple rules beside every scorecard; rolling z > 3 against 50 values is ndtracker's own detector."""
FROM_RUPTURES = ("pelt", "binseg")
"""Those that need the package ruptures, and are left out without it."""
BASELINE_SIZE = QUICK


def validate(
    name: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    size: Size,
    out: Path,
    workers: int = 1,
    baselines: bool = True,
    command: str = "",
    progress: Callable[[str, Progress], None] | None = None,
) -> dict[str, Any]:
    """The scorecard of a detector (by name, or `file.py:function`); files go to `out`.

    `out`/scorecard.json, validity.md with its figure, validity.html, and `parts/`: what each task gave, from which a
    run that was stopped goes on. The same detector, size and versions give the same files, byte for byte; only the CPU
    seconds, in cost.json, differ. SpecError for an unknown detector or one that returns no list of places.
    """
    wanted = [(name, dict(parameters or {}), size)]
    if baselines:
        there = importlib.util.find_spec("ruptures") is not None
        wanted += [(other, params, BASELINE_SIZE) for other, params in BASELINES if there or other not in FROM_RUPTURES]
    cards: list[dict[str, Any]] = []
    cost: dict[str, dict[str, float]] = {}
    for i, (each, params, how_many) in enumerate(wanted):
        judged = subject(each, params)
        if i and (judged.name, dict(judged.parameters)) == (cards[0]["detector"], cards[0]["parameters"]):
            continue
        tell = None if progress is None else _telling(progress, judged.label)
        results, cpu = run(judged, plan(how_many), out / "parts", workers, tell)
        cost[judged.label] = {"cpu_seconds": round(cpu, 1), "series": sum(map(len, results.values()))}
        rates: Results | None = None
        if not i and (twin := for_rates(judged)) is not None:
            rates, cpu = run(twin, plan_rates(how_many), out / "parts", workers, tell)
            cost[twin.label] = {"cpu_seconds": round(cpu, 1), "series": sum(map(len, rates.values()))}
        cards.append(scorecard(judged, how_many, results, rates=rates))
    card = {"card": cards[0], "baselines": cards[1:], "size": vars(size), "provenance": provenance(command)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "scorecard.json").write_text(json.dumps(card, indent=1, allow_nan=False) + "\n")
    (out / "cost.json").write_text(json.dumps(cost, indent=1) + "\n")
    page.write(card, out)
    return card


def _telling(progress: Callable[[str, Progress], None], label: str) -> Callable[[Progress], None]:
    return lambda p: progress(label, p)


def provenance(command: str) -> dict[str, str]:
    """How the scorecard came about: command, commit of the code where there is one, versions that numbers depend on."""
    said = {"command": command or "ndt_ray.analysis.validity.validate"}
    try:
        here = Path(__file__).parent
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        if commit.returncode == 0:
            said["commit"] = commit.stdout.strip()[:12]
    except (OSError, subprocess.TimeoutExpired):
        pass
    for package in ("numpy", "scipy"):
        said[package] = importlib.metadata.version(package)
    return said


def missed(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The requirements that the detector did not meet."""
    return [bar for bar in card["card"]["bars"] if bar["met"] is False]
