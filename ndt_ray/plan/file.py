"""`plan.json`: a plan written and read one pack at a time.

One JSON document; the first line holds everything but the packs, every further line one pack, so that a plan of a
million trials is never one text in memory. A pack is its first trial in full, and of every lane what differs.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from ndt_ray.errors import StoreError
from ndt_ray.plan import Lane, Pack, Plan, pack_id
from ndt_ray.plan.design import planned_power
from ndt_ray.plan.estimate import Estimate
from ndt_ray.spec import SPEC_VERSION, Trial
from ndt_ray.spec.axes import Sweep

FORMAT = 1


def write_plan(plan: Plan, file: TextIO) -> None:
    """Writes the plan, with the packs it keeps on record."""
    file.writelines(plan_lines(plan))


def plan_lines(plan: Plan) -> Iterator[str]:
    """The lines of the document, each with its end."""
    yield json.dumps(_head(plan))[:-1] + _PACKS + "\n"
    packs = [*((pack, False) for pack in plan.packs), *((pack, True) for pack in plan.outside)]
    for i, (pack, outside) in enumerate(packs):
        yield json.dumps(_packed(pack, outside)) + (",\n" if i + 1 < len(packs) else "\n")
    yield "]}\n"


def plan_value(plan: Plan) -> dict[str, Any]:
    """The document as one value: for plans that are not large."""
    packs = [*((pack, False) for pack in plan.packs), *((pack, True) for pack in plan.outside)]
    return {**_head(plan), "packs": [_packed(pack, outside) for pack, outside in packs]}


def read_plan(lines: Iterable[str], origin: str = "plan.json") -> Plan:
    """The plan from the lines of its document (an open file will do), one pack at a time if it is laid out so.

    StoreError where it is not one, is cut short or damaged, or was written by a version whose trials have other ids.
    """
    rows = iter(lines)
    first = next(rows, "")
    try:
        if not first.rstrip().endswith(_PACKS):
            return plan_from_value(json.loads("".join([first, *rows])), origin)
        head = json.loads(first.rstrip().removesuffix(_PACKS) + "}")
    except (ValueError, TypeError) as error:
        raise _damaged(origin, error) from error
    return _plan(head, _packs(rows, origin), origin)


def plan_from_value(value: Any, origin: str = "plan.json") -> Plan:
    """The inverse of `plan_value`; StoreError as `read_plan`."""
    packs = value.get("packs") if isinstance(value, dict) else None
    if not isinstance(packs, list):
        raise _damaged(origin, ValueError("no packs"))
    return _plan(value, packs, origin)


_PACKS = ', "packs": ['


def _head(plan: Plan) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "spec_version": SPEC_VERSION,
        "sweep": plan.sweep.model_dump(mode="json", exclude_defaults=True),
        "workers": plan.workers,
        "device": plan.device,
        "notices": list(plan.notices),
        "power": [entry.to_json() for entry in planned_power(plan)],
    }


def _packs(rows: Iterable[str], origin: str) -> Iterator[Any]:
    for row in rows:
        text = row.strip()
        if text == "]}":
            return
        yield json.loads(text.removesuffix(","))
    raise StoreError(f"{origin}: cut short: plan again")


def _plan(head: dict[str, Any], values: Iterable[Any], origin: str) -> Plan:
    try:
        if head["format"] != FORMAT or head["spec_version"] != SPEC_VERSION:
            raise StoreError(
                f"{origin}: written by another version (format {head['format']}, spec {head['spec_version']}; this one "
                f"reads {FORMAT} and {SPEC_VERSION}): use that version, or another store"
            )
        packs: list[Pack] = []
        outside: list[Pack] = []
        for value in values:
            (outside if value["outside"] else packs).append(_unpacked(value, origin))
        sweep = Sweep.model_validate_json(json.dumps(head["sweep"]))
        notices = tuple(head["notices"])
        return Plan(sweep, tuple(packs), head["workers"], head["device"], notices, tuple(outside))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(origin, error) from error


def _damaged(origin: str, error: Exception) -> StoreError:
    return StoreError(f"{origin}: not a plan, or damaged ({type(error).__name__}: {error}): plan again")


def _packed(pack: Pack, outside: bool) -> dict[str, Any]:
    return {
        "pack_id": pack.pack_id,
        "key": pack.key,
        "claimed": pack.claimed,
        "outside": outside,
        "first": pack.first.model_dump(mode="json"),
        "lanes": pack.lanes,
        "estimate": pack.estimate.to_json() if pack.estimate else None,
    }


def _unpacked(value: dict[str, Any], origin: str) -> Pack:
    lanes = tuple(
        Lane(i, cell, (s[0], s[1], s[2], s[3]), lr, wd, control) for i, cell, s, lr, wd, control in value["lanes"]
    )
    first = Trial.model_validate_json(json.dumps(value["first"]))
    if first.trial_id != lanes[0].trial_id or pack_id(lane.trial_id for lane in lanes) != value["pack_id"]:
        raise StoreError(f"{origin}: pack {value['pack_id']} does not hold the trials that its ids name: plan again")
    estimate = Estimate(**value["estimate"]) if value["estimate"] else None
    return Pack(value["pack_id"], value["key"], first, lanes, value["claimed"], estimate)
