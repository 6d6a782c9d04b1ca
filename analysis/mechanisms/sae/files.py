"""Dictionaries as files: safetensors with their configuration, no pickle; and where analyses keep theirs."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ndt_ray.analysis.api import Artifacts, module_hash
from ndt_ray.analysis.mechanisms.sae import model
from ndt_ray.analysis.mechanisms.sae.model import Config, Saes
from ndt_ray.errors import CheckpointError
from ndt_ray.lanes.numerics import fingerprint

TENSORS = ("encoder", "encoder_bias", "atoms", "bias", "mean", "scale")
KIND = "dictionaries"


def save_saes(saes: Saes, path: str | Path) -> Path:
    """Write dictionaries with their losses and configuration; folders on the way are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dumped(saes))
    return path


def load_saes(path: str | Path) -> Saes:
    """What `save_saes` wrote; CheckpointError for a file that is missing, torn, altered or of something else."""
    try:
        return parsed(Path(path).read_bytes(), str(path))[0]
    except OSError as error:
        raise CheckpointError(f"{path} holds no dictionaries ({error}): give a file that save_saes wrote") from error


def dumped(saes: Saes, key: str = "") -> bytes:
    """Dictionaries as the bytes of a file; `key`: what they were made from."""
    arrays = {name: np.ascontiguousarray(getattr(saes, name).numpy()) for name in TENSORS}
    arrays["losses"] = np.ascontiguousarray(saes.losses)  # safetensors writes the memory of any other order as it is
    note = {"config": asdict(saes.config), "key": key, "sha256": _digest(arrays)}
    # One entry: safetensors writes several in any order, and equal dictionaries are to be equal files.
    made: bytes = save(arrays, metadata={"ndt": json.dumps(note, sort_keys=True)})
    return made


def parsed(data: bytes, where: str) -> tuple[Saes, str]:
    """(dictionaries, key) of a file's bytes; CheckpointError where they are not what was written."""
    try:
        size = int.from_bytes(data[:8], "little")
        note = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["ndt"])
        config = Config(**note["config"])
        arrays = load(data)
        tensors = [torch.from_numpy(arrays[name]) for name in TENSORS]
        losses = np.asarray(arrays["losses"], np.float64)
        key, digest = str(note["key"]), str(note["sha256"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where} holds no dictionaries ({error}): give a file that save_saes wrote") from error
    if digest != _digest(arrays):
        raise CheckpointError(f"{where} is damaged: its numbers are not those that were written")
    encoder, encoder_bias, atoms, bias, mean, scale = tensors
    return Saes(config, encoder, encoder_bias, atoms, bias, mean, scale, losses), key


@dataclass(frozen=True)
class Shelf:
    """Where an analysis keeps the dictionaries that it trained, so that no other trains them again.

    The key is a hash of all that their bits depend on: rows, names of their random numbers, configuration, the code
    that trains, and the machine's numerics. Hence rows made with what is found here equal those made without.
    """

    artifacts: Artifacts
    tell: Callable[[str], None]
    """Says what was found but not trusted."""

    def key(self, rows: NDArray[np.float32], names: Sequence[str], frozen: Sequence[bool], config: Config) -> str:
        """Of the dictionaries that are trained, one a name, on these rows [n, d]."""
        made_from: list[Any] = [list(rows.shape), list(names), list(map(bool, frozen)), asdict(config)]
        made_from += [module_hash(model.__name__), fingerprint(torch.device("cpu"))]
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(rows).tobytes())
        return digest.hexdigest()[:32]

    def find(self, key: str) -> tuple[Saes, str] | None:
        """(dictionaries, path) kept under a key; None where there are none, or none that can be trusted."""
        found = self.artifacts.artifact(KIND, key)
        if found is None:
            return None
        path, data = found
        try:
            saes, own = parsed(data, path)
            if own != key:
                raise CheckpointError(f"{path} is of other dictionaries ({own or 'no key'})")
        except CheckpointError as error:
            self.tell(f"{str(error).partition(': give a file')[0]}: trained again")
            return None
        return saes, path

    def put(self, key: str, saes: Saes) -> str:
        """Keep them; the path."""
        return self.artifacts.keep_artifact(KIND, key, dumped(saes, key))


def _digest(arrays: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
