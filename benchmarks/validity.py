"""The default detector on every series whose truth is known: `make validate`.

    python -m benchmarks.validity [--quick] [--workers 2] [--out build/validity]

An hour on two cores, and not part of `python -m benchmarks`; stopped, it goes on where it was. Writes a record, and
the page of results as docs/validity.md with its figure. The exit status is 1 where a requirement was missed.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import Bar, finish, parser, report
from ndt_ray.analysis.validity.tasks import FULL, QUICK, SMALL_BATCHES, Progress
from ndt_ray.analysis.validity.validate import validate

DOCS = Path(__file__).resolve().parents[1] / "docs"
DEFAULT = "profile"


def main(arguments: list[str] | None = None) -> int:
    p = parser(__doc__, rounds=1, seconds=0)
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    p.add_argument("--out", type=Path, default=Path("build/validity"), help="where parts and pages go")
    options = p.parse_args(arguments)
    load = os.getloadavg()
    command = "make validate" if not options.quick else "python -m benchmarks.validity --quick"
    out = options.out / ("quick" if options.quick else "full")
    card = validate(
        DEFAULT,
        SMALL_BATCHES,
        size=QUICK if options.quick else FULL,
        out=out,
        workers=options.workers,
        command=command,
        progress=_say,
    )
    keep = not options.quick if options.record is None else options.record
    if keep:
        DOCS.mkdir(exist_ok=True)
        for name in ("validity.md", "validity_power.png"):
            shutil.copy(out / name, DOCS / name)
    judged = card["card"]
    bars = [Bar(f"{b['what']} (n={b['n']:,})", b["value"], b["limit"], b["at_most"]) for b in judged["bars"]]
    cost = f"{judged['series']:,} series judged; CPU seconds by detector: {(out / 'cost.json').read_text()}"
    return finish("validity", options, rows(judged), bars, load, [" ".join(cost.split())])


def rows(judged: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a null family, and one a planted shape, φ and SNR; shares with their exact 95 % intervals."""
    found = []
    for r in judged["nulls"]:
        row: dict[str, Any] = {"what": r["family"], "n": r["series"], "declined": r["marked"]}
        row |= {"events_per_series": r["events_per_series"], "recall": "", "median_error": ""}
        for alpha in ("0.01", "0.05"):
            row |= {f"p_{alpha}{suffix}": r[f"p_{alpha}"][key] for suffix, key in _INTERVAL}
        found.append(row)
    for r in judged["power"]:
        at = r.get("at_0.01") or r["all"]
        row = {"what": f"{r['shape']} phi {r['phi']:g} snr {r['snr']:g}", "n": r["series"], "declined": r["marked"]}
        row |= {"events_per_series": "", "recall": at["recall"], "median_error": at["median_error"]}
        found.append(row | {f"p_{alpha}{suffix}": "" for alpha in ("0.01", "0.05") for suffix, _ in _INTERVAL})
    return found


_INTERVAL = (("", "share"), ("_lo", "lo"), ("_hi", "hi"))
_LAST: dict[str, int] = {}


def _say(label: str, at: Progress) -> None:
    part = 20 * at.done // max(at.total, 1)
    if _LAST.get(label) != part:
        _LAST[label] = part
        report(f"{label}: {at.done}/{at.total} tasks, {at.cpu_seconds:.0f} CPU s")


if __name__ == "__main__":
    sys.exit(main())
