"""Which analyses of a sweep are done, pending or without rows, from what is on disk: nothing is run or imported."""

import ast
from typing import Any, cast

from ndt_ray import registry
from ndt_ray.analysis.api import Partition, Per
from ndt_ray.analysis.running.stored import StoredSweep
from ndt_ray.store.outputs import Outputs
from ndt_ray.store.reader import Store


def analysis_states(store: Store, sweep: str, names: list[str] | None = None) -> list[dict[str, Any]]:
    """A row an analysis (all that are registered): state, partitions in place and in all, rows, and what to do.

    done: an output of every partition is in place, and has rows; inapplicable: in place, but without any row (other
    data, other architectures); partial and pending: some or none is there. Whether code or inputs have changed since
    is for `ndt analyze` to say, which computes only that.
    """
    tables = StoredSweep(store, sweep)
    partitions: dict[tuple[Per, bool], set[str]] = {}
    rows = []
    for name in names or registry.names("analysis"):
        per, context = declared(name)
        if (per, context) not in partitions:
            found = set(tables.partitions(per))
            if context and per == "checkpoint":
                found |= {Partition(p.trial_id, 0) for p in tables.partitions("trial")}
            partitions[per, context] = {str(p) for p in found}
        wanted = partitions[per, context]
        there = {key: o for key, o in Outputs(store, sweep, name).entries().items() if key in wanted}
        count = sum(part.rows for output in there.values() for part in output.parts)
        if wanted and len(there) == len(wanted):
            state = "done" if count else "inapplicable"
        else:
            state = "partial" if there else "pending"
        todo = f"ndt analyze {sweep} {name}" if state in ("partial", "pending") else ""
        rows.append({"analysis": name, "state": state, "done": len(there), "of": len(wanted), "rows": count,
                     "todo": todo})  # fmt: skip
    return rows


def declared(name: str) -> tuple[Per, bool]:
    """(per, whether it wants networks) of a registered analysis, read from its source: importing some takes seconds."""
    for node in registry.definitions("analysis", name):
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "analysis":
                words = {k.arg: k.value for k in decorator.keywords}
                per = words["per"]
                assert isinstance(per, ast.Constant), name
                context = words.get("context")
                wants = context is not None and not (isinstance(context, ast.Constant) and context.value is False)
                return cast(Per, per.value), wants
    found = cast(Any, registry.resolve("analysis", name))
    return found.per, found.context is not None
