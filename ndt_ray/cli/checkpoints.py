"""Commands that bring states of trials back, and plan which."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ndt_ray.cli.options import DEFAULT_STORE, JsonOption, StoreOption, opened

if TYPE_CHECKING:
    from ndt_ray.analysis.events.checkpoint_plan import CheckpointPlan
    from ndt_ray.replay import Replay
    from ndt_ray.store.reader import Store

StoredSweep = Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep in the store.")]
MEASURES = ("participation_ratio", "stable_rank", "participation_ratio_corrected")
"""Shown of what a replay measures; --json has them all."""


def register(ndt: typer.Typer) -> None:
    """Adds this module's commands."""
    ndt.command()(replay)
    ndt.command("plan-checkpoints")(plan_checkpoints)


def replay(
    sweep: StoredSweep,
    trial: Annotated[str, typer.Argument(help="A trial's id, or the beginning of it.")],
    step: Annotated[list[int], typer.Option("--step", help="Step to bring back; repeatable.")],
    store: StoreOption = DEFAULT_STORE,
    until: Annotated[
        int | None, typer.Option("--until", help="And every step up to this one (with one --step).")
    ] = None,
    every: Annotated[int | None, typer.Option("--every", min=1, help="Steps between, with --until.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the detect probe at each, too.")] = False,
    out: Annotated[str | None, typer.Option("--out", help="Write files into this folder, not into the sweep.")] = None,
    allow_different: Annotated[
        bool, typer.Option("--allow-different", help="On other numerics too: files that are not verified (with --out).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring any step of a trial back, bit for bit: from the nearest checkpoint, checking every loss on the way."""
    from ndt_ray.errors import SpecError
    from ndt_ray.replay import every as steps_of
    from ndt_ray.replay import replay as bring_back

    if len(step) > 1 and (until is not None or every is not None):
        raise SpecError("--until and --every go with one --step")
    steps = step if len(step) > 1 else list(steps_of(step[0], until, every))
    options: dict[str, Any] = {"out": out, "measure": measure, "allow_different": allow_different}
    found = bring_back(opened(store), sweep, trial, steps, notify=_notice, **options)
    _told(found)
    if as_json:
        rows = {table: [_plain(batch) for batch in batches] for table, batches in found.rows.items()}
        print(json.dumps({**asdict(found), "rows": rows}))
    elif measure:
        _measured(found)


def plan_checkpoints(
    sweep: StoredSweep,
    store: StoreOption = DEFAULT_STORE,
    per_trial: Annotated[int, typer.Option("--per-trial", min=1, help="Events of a trial, at most.")] = 5,
    rule: Annotated[str, typer.Option("--rule", help="How events are chosen: balanced, or founding.")] = "balanced",
    window: Annotated[
        int | None, typer.Option("--window", min=1, help="Steps before and after; by default the event's width.")
    ] = None,
    controls: Annotated[
        int, typer.Option("--controls", min=0, help="Windows without an event beside each, matched to it.")
    ] = 0,
    out: Annotated[str, typer.Option("--out", help="The plan, as `checkpoint: {plan: FILE}` reads it; - for none.")] = (
        "checkpoint_plan.json"
    ),
    replayed_too: Annotated[bool, typer.Option("--replay", help="Bring these states back at once.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Plan checkpoints before, during and after a sweep's events, and say what they cost."""
    from pathlib import Path

    from ndt_ray.analysis.events.checkpoint_plan import planned

    there = opened(store)
    made = planned(there, sweep, per_trial=per_trial, rule=rule, window=window, controls=controls)
    for text in made.notices:
        _notice(text)
    if out != "-" and made.entries:
        Path(out).write_text(json.dumps(made.founding(), indent=1) + "\n", encoding="utf-8")
        _notice(f"plan    {out}")
    chosen = made.steps.items() if replayed_too else ()
    replayed = [bring_back(there, sweep, trial, steps) for trial, steps in chosen]
    if as_json:
        plan = {"source": made.source, "notices": made.notices, "storage": made.storage, "coverage": made.coverage}
        print(json.dumps({**plan, "plan": made.founding(), "replayed": [asdict(r) for r in replayed]}))
    else:
        _planned(made)


def bring_back(there: "Store", sweep: str, trial: str, steps: Iterable[int]) -> "Replay":
    """Replays a trial's states into the sweep, telling of each on stderr."""
    from ndt_ray.replay import replay as again

    found = again(there, sweep, trial, steps, notify=_notice)
    _told(found)
    return found


def _planned(made: "CheckpointPlan") -> None:
    """The entries and their storage, as tables."""
    from ndt_ray.cli.show import records

    shown = ("experiment", "trial_id", "seed", "layer", "measure", "type", "phase_bin", "checkpoints")
    rows = [{k: entry[k] for k in shown} | {"controls": len(entry.get("controls", ()))} for entry in made.entries]
    if not rows:
        print("no events to plan around")
        return
    records(rows, False, header=True)
    print()
    storage = []
    for row in made.storage:
        saved = 1 - row["bytes"] / row["uniform_bytes"] if row["uniform_bytes"] else 0.0
        sizes = {name: f"{row[name] / 1e6:,.1f} MB" for name in ("bytes", "new_bytes", "uniform_bytes")}
        storage.append({**row, **sizes, "saved": f"{saved:.1%}"})
    records(storage, False, header=True)


def _told(found: "Replay") -> None:
    """What was done, on stderr."""
    for state in found.states:
        note = "already there" if not state.new else "written" if state.verified else "written, NOT verified"
        print(f"step {state.step:>7,}  {state.path}  {state.bytes:,} bytes, {note}", file=sys.stderr)
    same = f"{found.compared:,} of {found.updates:,} losses on the way equal the stored ones bit for bit"
    if found.first_difference is not None:
        same += f"; the first difference is at step {found.first_difference}"
    print(f"trial {found.trial_id}: {same}", file=sys.stderr)


def _measured(found: "Replay") -> None:
    import pandas as pd

    from ndt_ray.cli.show import written

    batches = found.rows.get("measurements", [])
    frames = [pd.DataFrame({n: list(b[n]) for n in ("step", "layer", "view", *MEASURES)}) for b in batches]
    sys.stdout.write(written(pd.concat(frames), "table") if frames else "")


def _plain(batch: Any) -> dict[str, Any]:
    """Columns as JSON has them; what is not a number is null."""
    import numpy as np

    def value(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return [value(v) for v in x]
        x = x.item() if isinstance(x, np.generic) else x
        return None if isinstance(x, float) and not np.isfinite(x) else x

    return {name: [value(x) for x in column] for name, column in batch.items()}


def _notice(text: str) -> None:
    print(text, file=sys.stderr)
