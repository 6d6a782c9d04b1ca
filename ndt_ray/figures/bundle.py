"""Files of a sweep's mechanistic analyses in one folder with an index, or in one archive that says what is in it."""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ndt_ray.analysis.events.significant import of_primary_family
from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.figures import (
    at_events,
    founding,
    founding_phase1,
    founding_phase3,
    founding_tables,
    grokking,
    modular,
    networks,
    side_by_side,
    transfer,
)
from ndt_ray.figures.album import Album, to_json
from ndt_ray.figures.moments import Moment, chosen_trials, moments
from ndt_ray.report.data_sets import data_sets
from ndt_ray.store.reader import Store
from ndt_ray.store.sweep import open_sweep

if TYPE_CHECKING:
    from ndt_ray.analysis.mechanisms.context import Contexts

GROKKING = (
    "grokking_measures", "grokking_onsets", "scale_metrics", "specialisation_timeline", "scale_questions",
    "evaluations", "measurements", "events",
)  # fmt: skip
LOOKED_AT = ("trials", "checkpoints", "events", "event_families", "attention_metrics", "features")


@dataclass(frozen=True)
class Wanted:
    """What is drawn: trials by the beginning of their ids (default: of each cell those with events, or one), layers by
    path, events a cell, units a layer with a made image, and how modular networks' neurons are shown."""

    trials: Sequence[str] = ()
    layers: Sequence[str] = ()
    events: int = 2
    units: int = 8
    limit: int | None = None
    format: str = "png"
    networks: bool = True
    """Whether checkpoints are loaded; without, only what tables hold is drawn."""
    view: modular.View = field(default_factory=modular.View)
    founding: bool = False
    """Whether the founding plan's files are written, too, of `experiments` (cells; by default all)."""
    experiments: Sequence[str] = ()


def write_mechanisms(store: Store, sweep: str, folder: str | Path, wanted: Wanted | None = None) -> Album:
    """Figures, matrices and sentences of a sweep's networks and of whatever has been analysed, with an `index.html`.

    What cannot be drawn stands in the index with its reason. StoreError for an unknown sweep, SpecError for trials or
    layers that it does not have; no files where there is nothing at all.
    """
    wanted = wanted or Wanted()
    album = empty_album(store, sweep, folder, wanted)
    trials = _table(store, sweep, "trials")
    ran = {name for of, name, _ in store.snapshot().outputs if of == sweep}
    at_events.write(album, {name: _table(store, sweep, name) for name in at_events.TABLES}, ran)
    _transfer(album, store, sweep)
    _grokking(album, store, sweep, wanted)
    if wanted.founding:
        tables = {name: _table(store, sweep, name) for name in founding_tables.TABLES}
        founding.write(album, tables, wanted.experiments)
        _phases(album, store, sweep)
    if wanted.networks and len(trials):
        _networks(album, store, sweep, wanted)
    if album.entries:
        title = f"Mechanisms: {sweep}"
        index = album.index(title)
        album.text("Index", "index.json", to_json(album), "This index as JSON.")
        album.add("Index", [index], title)
    return album


def empty_album(store: Store, sweep: str, folder: str | Path, wanted: Wanted) -> Album:
    """What the files will be listed in; errors as in `write_mechanisms`, before anything is computed or drawn."""
    open_sweep(store, sweep)
    trials = _table(store, sweep, "trials")
    if len(trials):
        _check(trials, _table(store, sweep, "measurements", ("layer",)), wanted)
    return Album(Path(folder), wanted.format, wanted.limit, sweep, data_sets(trials))


def write_phases(store: Store, sweep: str, folder: str | Path) -> Album:
    """The founding study's first and third phase under its names; StoreError for an unknown sweep."""
    open_sweep(store, sweep)
    album = Album(Path(folder), sweep=sweep)
    _phases(album, store, sweep)
    return album


def _phases(album: Album, store: Store, sweep: str) -> None:
    for phase in (founding_phase1, founding_phase3):
        phase.write(album, {name: _table(store, sweep, name) for name in phase.TABLES})


def _table(store: Store, sweep: str, name: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Rows of a table, none where it does not exist yet; `columns`: different rows of these alone."""
    if name not in set(store.names()):
        return pd.DataFrame()
    if columns:
        chosen = ", ".join(columns)
        return store.arrow(f'SELECT DISTINCT {chosen} FROM "{name}" WHERE sweep = ?', [sweep]).to_pandas()
    return store.table(name, sweep)


def _check(trials: pd.DataFrame, layers: pd.DataFrame, wanted: Wanted) -> None:
    chosen_trials(trials, wanted.trials)
    known = list(layers["layer"].astype(str)) if len(layers) else []
    for path in wanted.layers:
        if known and path not in known:
            raise SpecError(f"no network of this sweep has a layer '{path}'{did_you_mean(path, known)}")


def _transfer(album: Album, store: Store, sweep: str) -> None:
    rows, trained = _table(store, sweep, "sae_transfer"), _table(store, sweep, "sae")
    if len(rows):
        transfer.write(rows, trained, album)
    if len(trained):
        name = transfer.SUMMARY
        album.text(transfer.SECTION, name, transfer.summary_json(trained), transfer.CAPTIONS[name])
    if not len(rows):
        album.skip(
            transfer.SECTION,
            "heat maps",
            f"`ndt analyze {sweep} sae sae_transfer` trains dictionaries and compares them",
        )


def _grokking(album: Album, store: Store, sweep: str, wanted: Wanted) -> None:
    trials = _table(store, sweep, "trials")
    if not len(trials) or not (trials["data"] == "modular_addition").any():
        return
    tables = {
        name: _table(store, sweep, name)
        for name in (*GROKKING, "grokking_comparison", "scale_answers", "grokking_lags", "trials")
    }
    # One measure is drawn, so that events of others would stand where it does nothing.
    tables["events"] = of_primary_family(tables["events"], _table(store, sweep, "event_families"))
    if not len(tables["grokking_measures"]):
        why = f"`ndt analyze {sweep} grokking grokking_timeline grokking_comparison grokking_lags`"
        album.skip(grokking.SECTION, "transitions, timelines and comparisons", why)
    else:
        shown = chosen_trials(trials, wanted.trials)["trial_id"]
        own = {n: t[t["trial_id"].isin(shown)] if "trial_id" in t else t for n, t in tables.items()}
        grokking.write(own, album)
        side_by_side.write(own, album, _table(store, sweep, "fourier_spectra"))


def _networks(album: Album, store: Store, sweep: str, wanted: Wanted) -> None:
    """Pictures from reloaded checkpoints; torch is imported only here."""
    from ndt_ray.analysis.mechanisms.context import Contexts
    from ndt_ray.analysis.running.stored import StoredSweep

    tables = {name: _table(store, sweep, name) for name in LOOKED_AT}
    found, left = moments(
        tables["trials"],
        tables["checkpoints"],
        tables["events"],
        tables["event_families"],
        wanted=wanted.trials,
        per_cell=wanted.events,
    )
    if not len(tables["events"]):
        album.skip("Events", "before, during and after", f"none were sought: `ndt analyze {sweep} events`")
    for what in left:
        album.skip("Events", what.what, what.reason)
    contexts = Contexts(StoredSweep(store, sweep), kept=1)
    for moment in found:
        networks.draw(album, moment, contexts, tables, layers=wanted.layers, units=wanted.units)
    _maps(album, store, sweep, wanted, contexts, tables)


def _maps(
    album: Album, store: Store, sweep: str, wanted: Wanted, contexts: "Contexts", tables: dict[str, pd.DataFrame]
) -> None:
    trials = tables["trials"][tables["trials"]["data"] == "modular_addition"]
    if not len(trials):
        return
    nothing = tables["events"].iloc[:0]
    along: list[Moment] = moments(trials, tables["checkpoints"], nothing, nothing, wanted=wanted.trials)[0]
    scales, timeline = (_table(store, sweep, name) for name in ("scale_metrics", "specialisation_timeline"))
    for moment in along:
        own, over_time = (t[t["trial_id"] == moment.trial] if len(t) else t for t in (scales, timeline))
        modular.draw(album, moment, contexts, own, over_time, wanted.view)


def archive(files: Sequence[Path], path: str | Path, root: str | Path | None = None) -> Path:
    """One zip of the files with `manifest.json`: name, bytes and SHA-256 of each. Equal files give equal bytes.

    `root`: names are relative to it; by default files go side by side.
    """
    path = Path(path)
    named = {(f.name if root is None else f.relative_to(root).as_posix()): f for f in sorted(files)}
    contents = {name: file.read_bytes() for name, file in named.items()}
    manifest = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
    }
    contents["manifest.json"] = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in sorted(contents.items()):
            made.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return path
