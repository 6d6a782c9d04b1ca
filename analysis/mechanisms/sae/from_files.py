"""Sparse autoencoders of captured activations: the rows of `sae` and `sae_transfer` without a sweep."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ndt_ray.analysis.api import conform, module_hash
from ndt_ray.analysis.mechanisms.context import Layer
from ndt_ray.analysis.mechanisms.sae.activation_files import Captured, read_folder, sampled_rows
from ndt_ray.analysis.mechanisms.sae.files import Shelf
from ndt_ray.analysis.mechanisms.sae.model import Config, configurations
from ndt_ray.analysis.mechanisms.sae.networks import Activations, Choice, Node, Sampling, chosen_layers, sampled, sides
from ndt_ray.analysis.mechanisms.sae.relations import Networks, Pair, check, pairs
from ndt_ray.analysis.mechanisms.sae.rows import Skipped, nothing, quality_rows, transfer_row
from ndt_ray.analysis.mechanisms.sae.tables import SAE, TRANSFER
from ndt_ray.analysis.running.stored import StoredSweep
from ndt_ray.errors import SpecError
from ndt_ray.store.outputs import Outputs
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import register_table
from ndt_ray.store.sweep import create_sweep, list_sweeps

RELATIONS = ("layers", "architectures", "data")
"""Of captured activations: layers of a model, models on the same texts, tasks of the same model."""


@dataclass(frozen=True)
class Result:
    """What was written, by table; what there is to tell; and whether all of it was there before."""

    rows: Mapping[str, int]
    notes: tuple[str, ...] = ()
    skipped: bool = False


def transfer_files(
    folder: str | Path,
    store: Store,
    sweep: str = "activations",
    *,
    config: str = "default",
    changes: Mapping[str, Any] | None = None,
    configs: Sequence[str | Mapping[str, Any]] | None = None,
    sampling: Mapping[str, int] | None = None,
    layers: Choice = None,
    relations: Sequence[str] | None = None,
    across: str = "matched",
) -> Result:
    """Train dictionaries on all files of a folder, judge them, and compare layers, models and tasks.

    Rows go to `sae` and `sae_transfer` of a sweep of this name; dictionaries are kept with it, and used again. Files of
    different widths are aligned; of different texts, skipped with that reason. What is there already is not made again.
    """
    check(relations, across)
    chosen, wanted = configurations(config, changes, configs), sampled(**(sampling or {}))
    captured = read_folder(folder)
    asked = [
        {name: asdict(one) for name, one in chosen.items()},
        asdict(wanted),
        layers,
        relations,
        across,
        module_hash(__name__),
    ]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for one in captured:
        digest.update(f"{one.network} {one.layer} {one.texts} {one.lengths.tolist()}".encode() + one.rows.tobytes())
    key = digest.hexdigest()[:16]
    # Registered with the analyses of these names, which nothing here imports.
    outputs = {register_table(table).name: Outputs(store, sweep, table.name) for table in (SAE, TRANSFER)}
    before = {name: there.entries() for name, there in outputs.items()}
    if all("sweep" in entries and entries["sweep"].cache_key == key for entries in before.values()):
        rows = {name: sum(p.rows for p in entries["sweep"].parts) for name, entries in before.items()}
        return Result(rows, skipped=True)
    if sweep not in list_sweeps(store):
        about = f"Captured activations of {', '.join(sorted({c.model for c in captured}))}."
        create_sweep(store, sweep, f"name: {sweep}\nabout: {json.dumps(about)}\n", {})
    elif not any(before.values()) and store.manifests(sweep):
        raise SpecError(f"sweep '{sweep}' holds trained networks: give another --sweep for captured activations")
    notes: list[str] = []
    shelf = Shelf(StoredSweep(store, sweep), notes.append)
    found = tables(captured, chosen, wanted, layers, relations, across, shelf, notes)
    for name, table in found.items():
        outputs[name].commit([outputs[name].write("sweep", {name: table}, cache_key=key)])
    return Result({name: table.num_rows for name, table in found.items()}, tuple(notes))


def tables(
    captured: Sequence[Captured],
    configs: Mapping[str, Config],
    sampling: Sampling,
    layers: Choice,
    relations: Sequence[str] | None,
    across: str,
    shelf: Shelf | None,
    notes: list[str],
) -> dict[str, pa.Table]:
    """Rows of both tables, by name; `configs` by theirs."""
    networks: dict[str, list[Captured]] = {}
    for one in captured:
        networks.setdefault(one.network, []).append(one)
    rows: dict[Node, Activations] = {}
    chosen: dict[tuple[str, int], list[Layer]] = {}
    quality: list[dict[str, Any]] = []
    broken: dict[tuple[str, int], str] = {}
    for name, files in networks.items():
        try:
            picked = chosen_layers([f.layer for f in files], layers, sampling.layers, notes.append)
            last = max(1, max(f.layer.index for f in files))
            own = {Node(name, 0, f.layer, f.layer.index / last): f for f in files if f.layer in picked}
            rows |= {node: sampled_rows(file, sampling) for node, file in own.items()}
        except SpecError as error:  # too few texts, or none of the layers: the other models go on
            broken[name, 0] = str(error)
            notes.append(f"{name}: {error}")
            quality += [nothing(name, 0, "no_layer", how) for how in configs]
            continue
        chosen[name, 0] = picked
    firsts = {name: files[0] for name, files in networks.items()}
    known = Networks(
        {name: (name,) for name in firsts},
        dict.fromkeys(firsts, 0),
        {},
        {name: name for name in firsts},
        {name: f.model for name, f in firsts.items()},
        {name: f.task for name, f in firsts.items()},
    )

    def shown(pair: Pair) -> Activations:
        """Of one model, a layer's rows on the target's texts are those of its file for these texts."""
        source, target = (known.models[n.trial_id] for n in (pair.source, pair.target))
        there = Node(pair.target.trial_id, pair.target.step, pair.source.layer)
        if source != target or there not in rows:
            raise Skipped(f"texts_differ: {pair.source.trial_id} and {pair.target.trial_id} were shown other texts")
        return rows[there]

    compared = list(pairs(known, chosen, RELATIONS if relations is None else relations, across))
    found: list[dict[str, Any]] = []
    for name, config in configs.items():
        made = sides(rows, config, sampling, shelf)
        for node, activations in rows.items():
            quality += quality_rows(node, activations, made.get(node), config, configuration=name)
        how = {"configuration": name, "config": json.dumps(asdict(config), sort_keys=True)}
        found += [transfer_row(p, known.cells, rows, made, broken, shown) | how for p in compared]
    return {
        SAE.name: conform(SAE, pd.DataFrame(quality)),
        TRANSFER.name: conform(TRANSFER, pd.DataFrame(found)),
    }
