"""Tensors to safetensors files and back; nothing that comes from another machine is unpickled."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ndt_ray.errors import CheckpointError
from ndt_ray.store.filesystem import Location
from ndt_ray.store.manifests import check_name

Tensors = dict[str, np.ndarray[Any, Any]]

_KEY = "ndt"


def checkpoint_path(sweep: str, trial_id: str, step: int) -> str:
    """Where the checkpoint of a trial at a step stands, below the store's root."""
    return f"checkpoints/{check_name('sweep', sweep)}/{check_name('trial', trial_id)}/step_{step:09d}.safetensors"


def encode_tensors(tensors: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, Any]) -> bytes:
    """One safetensors file; equal tensors and metadata give equal bytes.

    The metadata (JSON values) goes under one key: safetensors writes several in random order.
    """
    arrays = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    # ascontiguousarray makes 0-d arrays 1-d
    arrays = {name: array.reshape(np.shape(tensors[name])) for name, array in arrays.items()}
    data: bytes = save(arrays, metadata={_KEY: json.dumps(dict(metadata), sort_keys=True)})
    return data


def decode_tensors(data: bytes, where: str) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and metadata; CheckpointError if the file is torn or no safetensors file."""
    try:
        tensors: Tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        return tensors, json.loads(header.get("__metadata__", {}).get(_KEY, "{}"))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where} is no complete safetensors file ({error}) - take another checkpoint") from error


def read_checkpoint(location: Location, path: str, sha256: str | None = None) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and metadata of a file below the store; checked against `sha256` from the index, if given.

    CheckpointError if it is missing, torn, or not the file that was committed.
    """
    where = location.absolute(path)
    try:
        data = location.read(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{where} is missing - put it back from a copy, or take another checkpoint") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(f"{where} is corrupt: its SHA-256 is not {sha256[:12]}… - take another checkpoint")
    return decode_tensors(data, where)
