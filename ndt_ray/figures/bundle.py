"""Files of a sweep's mechanistic analyses in one folder, or in one archive that says what is in it."""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ndt_ray.figures import grokking, transfer
from ndt_ray.store.reader import Store
from ndt_ray.store.sweep import open_sweep

GROKKING = (
    "grokking_measures", "grokking_onsets", "scale_metrics", "specialisation_timeline", "scale_questions",
    "evaluations", "measurements", "events",
)  # fmt: skip


def write_mechanisms(store: Store, sweep: str, folder: str | Path) -> list[Path]:
    """Figures, matrices and sentences of whatever of `sae`, `sae_transfer` and `grokking` has been computed.

    StoreError for an unknown sweep; no files where nothing has been computed.
    """
    open_sweep(store, sweep)
    folder = Path(folder)
    known = set(store.names())
    written: list[Path] = []
    if "sae_transfer" in known and len(rows := store.table("sae_transfer", sweep)):
        written += transfer.write(rows, folder)
    if "sae" in known and len(rows := store.table("sae", sweep)):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "multilayer_training_summary.json"
        file.write_text(transfer.summary_json(rows))
        written.append(file)
    tables = {name: store.table(name, sweep) if name in known else store.table("trials").iloc[:0] for name in GROKKING}
    if len(tables["grokking_measures"]):
        written += grokking.write(tables, folder)
    return written


def archive(files: Sequence[Path], path: str | Path) -> Path:
    """One zip of the files with `manifest.json`: name, bytes and SHA-256 of each. Equal files give equal bytes."""
    path = Path(path)
    contents = {file.name: file.read_bytes() for file in sorted(files)}
    manifest = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
    }
    contents["manifest.json"] = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in sorted(contents.items()):
            made.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return path
