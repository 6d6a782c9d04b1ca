"""Weights out of checkpoint files of any origin: tensors only, nothing is unpickled that could run code."""

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ndt_ray.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
STATE_KEYS = ("model_state_dict", "state_dict", "model")
STEP_KEYS = ("step", "global_step", "iteration")
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and training frameworks put before every name."""
LISTED = 8


@dataclass(frozen=True)
class Weights:
    """A state dict as the file names it, and the step if the file says one."""

    path: Path
    state: dict[str, Tensor]
    step: int | None


def read_step(path: Path) -> int | None:
    """The step that a file says, its tensors left on the disk; CheckpointError as in `read_weights`."""
    if path.suffix == ".safetensors":
        return _safetensors(path, tensors=False).step
    return _step_in(_mapping(path, mmap=True))


def read_weights(path: Path) -> Weights:
    """Weights of a .safetensors file or of one that torch.save wrote, on the CPU.

    The latter holds a state dict, or one under model_state_dict, state_dict or model. CheckpointError where the file
    is missing, damaged, holds no state dict, or holds objects that only unpickling would restore.
    """
    if path.suffix == ".safetensors":
        return _safetensors(path)
    held = _mapping(path)
    inner = next((held[key] for key in STATE_KEYS if isinstance(held.get(key), Mapping)), held)
    state = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(
            f"{path} holds no weights: neither at the top nor under {', '.join(STATE_KEYS)}; its keys are "
            f"{_listed(map(str, held)) or 'none'}"
        )
    return Weights(path, state, _step_in(held))


def _safetensors(path: Path, tensors: bool = True) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}
            meta = dict(file.metadata() or {})
        meta |= json.loads(meta.get("ndt", "{}"))  # our own
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is no complete safetensors file ({error}): take it out of the series") from error
    return Weights(path, state, _step_in(meta))


def _mapping(path: Path, mmap: bool = False) -> Mapping[str, Any]:
    try:
        # Files of before 2020 cannot be mapped.
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise CheckpointError(f"{path} is damaged ({_first_line(error)}): take it out of the series") from error
        raise CheckpointError(
            f"{path} holds more than weights ({found[1]}), which is not unpickled, since that could run code: save "
            "{'step': step, 'model_state_dict': model.state_dict()} with plain numbers beside it"
        ) from error
    except Exception as error:  # torch raises anything on a torn file: RuntimeError, EOFError, KeyError, ...
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}): take it out of the series") from error
    if not isinstance(held, Mapping):
        raise CheckpointError(f"{path} holds a {type(held).__name__}, not a state dict")
    return held


def _step_in(held: Mapping[str, Any]) -> int | None:
    for key in STEP_KEYS:
        value = held.get(key)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value == int(value):
            return int(value)
    return None


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Put weights into a model; CheckpointError that lists what is missing, unexpected or of another shape.

    Prefixes of wrappers are taken off, tied parameters need to be there once, and of this package's own checkpoints
    (`model.*`, `buffer.*` and optimizer moments) weights and buffers are taken.
    """
    wanted = model.state_dict()
    named = [_with_tied(model, names) for names in _namings(model, weights.state)]
    state = min(named, key=lambda names: len(names.keys() ^ wanted.keys()))
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = [
        f"{name} {list(state[name].shape)}, not {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    wrong = [
        f"{what}: {_listed(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if wrong:
        raise CheckpointError(f"{weights.path} is no checkpoint of this {type(model).__name__}: {'; '.join(wrong)}")
    model.load_state_dict(state)


def _namings(model: nn.Module, state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state under every set of names that it may mean."""
    yield state
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        yield state
    yield {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    own = {name[6:]: value for name, value in state.items() if name.startswith("model.")}
    buffers = {name[7:]: value for name, value in state.items() if name.startswith("buffer.")}
    passing = dict(model.named_buffers()).keys() - model.state_dict().keys()
    yield own | {name: value for name, value in buffers.items() if name not in passing}


def _with_tied(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With every name of a parameter that the state holds under another of its names."""
    by_parameter: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_parameter.setdefault(id(parameter), []).append(name)
    more = dict(state)
    for names in by_parameter.values():
        held = next((state[name] for name in names if name in state), None)
        if held is not None:
            more |= {name: held for name in names if name not in state}
    return more


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
