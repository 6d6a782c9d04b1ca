"""Activations of Hugging Face models, layer by layer, as rows for dictionaries (the extra `hf`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ndt_ray.analysis.mechanisms.sae.activation_files import texts_digest, write_activations
from ndt_ray.analysis.mechanisms.sae.activations import Rows
from ndt_ray.errors import NdtError, SpecError
from ndt_ray.measurement.capture import evaluating

BATCH = 8
"""Sequences of one forward pass."""


def read_texts(path: Path) -> list[str]:
    """Texts of a file, one a line, without empty ones; SpecError where there are none or it cannot be read."""
    try:
        found = [line.strip() for line in path.expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"--texts {path} cannot be read: {error}") from error
    if not any(found):
        raise SpecError(f"--texts {path} has no texts: one a line is needed")
    return [text for text in found if text]


def load_model(name: str) -> tuple[nn.Module, Any]:
    """(model, tokenizer) of a name on the hub or a local folder, in float32; NdtError without the extra `hf`."""
    try:
        from transformers import AutoModel, AutoTokenizer  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise NdtError("models of Hugging Face need its package: pip install -e '.[hf]'") from error
    try:
        return AutoModel.from_pretrained(name, dtype=torch.float32), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise NdtError(f"'{name}' cannot be loaded: {str(error).partition(chr(10))[0]}") from error


def tokenized(tokenizer: Any, texts: Sequence[str], length: int = 128) -> tuple[Tensor, Tensor]:
    """(ids, mask), int64 [n, up to `length`], padded on the right."""
    if not texts:
        raise SpecError("there are no texts to show the model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    found = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    return found["input_ids"], found["attention_mask"]


def hidden_states(
    model: nn.Module, ids: Tensor, mask: Tensor | None = None, layers: Sequence[int] | None = None
) -> dict[int, Rows]:
    """Residual stream behind each block, float32 [tokens, d] by layer number, text after text, padding left out.

    `layers`: 0 is the embedding, n the n-th block's output; default: all. SpecError for one that is not there.
    """
    mask = torch.ones_like(ids) if mask is None else mask
    parts: dict[int, list[Rows]] = {}
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(ids), BATCH):
            piece, kept = ids[start : start + BATCH], mask[start : start + BATCH]
            output = model(input_ids=piece, attention_mask=kept, output_hidden_states=True)
            states = output.hidden_states
            wanted = range(len(states)) if layers is None else layers
            for layer in wanted:
                if not 0 <= layer < len(states):
                    raise SpecError(f"the model has layers 0 to {len(states) - 1}, but got ({layer=})")
                parts.setdefault(layer, []).append(states[layer][kept.bool()].float().cpu().numpy())
    return {layer: np.concatenate(found) for layer, found in parts.items()}


def capture(
    folder: Path,
    name: str,
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    task: str = "",
    length: int = 128,
    metadata: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write one file of activations a layer (of a task), each with its metadata: what `hidden_states` gives.

    Texts of which the tokenizer makes no token are an error: their places in other models would shift.
    """
    ids, mask = tokenized(tokenizer, texts, length)
    lengths = mask.sum(1).tolist()
    if 0 in lengths:
        raise SpecError(f"the tokenizer of {name} makes no token of the text {texts[lengths.index(0)][:40]!r}")
    found = hidden_states(model, ids, mask, layers)
    note = {"tokens": int(mask.sum()), "length": length, "tokenizer": type(tokenizer).__name__, **(metadata or {})}
    digest = texts_digest(texts)
    return [
        write_activations(folder, name, layer, rows, lengths, digest, task=task, metadata=note)
        for layer, rows in found.items()
    ]
