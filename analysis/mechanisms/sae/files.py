"""Dictionaries as files: safetensors with their configuration, no pickle."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ndt_ray.analysis.mechanisms.sae.model import Config, Saes
from ndt_ray.errors import CheckpointError

TENSORS = ("encoder", "encoder_bias", "atoms", "bias", "mean", "scale")


def save_saes(saes: Saes, path: str | Path) -> Path:
    """Write dictionaries with their losses and configuration; folders on the way are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(getattr(saes, name).numpy()) for name in TENSORS}
    save_file(arrays | {"losses": saes.losses}, path, metadata={"config": json.dumps(asdict(saes.config))})
    return path


def load_saes(path: str | Path) -> Saes:
    """What `save_saes` wrote; CheckpointError for a file that is missing, torn or of something else."""
    try:
        with safe_open(str(path), framework="np") as opened:  # type: ignore[no-untyped-call, unused-ignore]
            config = Config(**json.loads((opened.metadata() or {})["config"]))
            tensors = [torch.from_numpy(opened.get_tensor(name)) for name in TENSORS]
            losses = np.asarray(opened.get_tensor("losses"), np.float64)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no dictionaries ({error}): give a file that save_saes wrote") from error
    encoder, encoder_bias, atoms, bias, mean, scale = tensors
    return Saes(config, encoder, encoder_bias, atoms, bias, mean, scale, losses)
