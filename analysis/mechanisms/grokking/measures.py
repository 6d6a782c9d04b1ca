"""One checkpoint of a modular network as rows: progress measures, Fourier spectra and structure at several scales."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ndt_ray.analysis.mechanisms.grokking import fourier, progress, scale
from ndt_ray.analysis.mechanisms.grokking.maps import ModularBundle

SPECIALISED, HIGHLY = 0.85, 0.9


def progress_row(found: ModularBundle, keys: Sequence[int]) -> dict[str, Any]:
    """Columns of `grokking_measures` but trial and step; restricted and excluded loss by the given `keys`."""
    logits, train = found.logits, found.train
    energy = fourier.sum_energy(logits)
    on_train, on_test = progress.scores(logits, train), progress.scores(logits, ~train)
    row: dict[str, Any] = {
        "p": found.p,
        "train_loss": on_train.loss,
        "test_loss": on_test.loss,
        "train_accuracy": on_train.accuracy,
        "test_accuracy": on_test.accuracy,
        "margin": progress.scores(logits).margin,
        "explained_any": float(energy.sum()),
        "squared_weights": found.squared_weights,
        "gini_logits": fourier.gini(energy),
        "key_frequencies": list(fourier.key_frequencies(energy)),
        "flag": None,
    }
    names = ("restricted_loss", "excluded_loss", "explained")
    if len(keys):
        row |= {
            "restricted_loss": progress.scores(progress.restricted(logits, keys)).loss,
            "excluded_loss": progress.scores(progress.excluded(logits, keys), train).loss,
            "explained": float(energy[[k - 1 for k in keys]].sum()),
        }
    else:
        row |= dict.fromkeys(names, np.nan) | {"flag": "no_key_frequencies"}
    return row | _of_parts(found)


def _of_parts(found: ModularBundle) -> dict[str, Any]:
    """What only the transformer has; null, with a flag, for other networks."""
    fractions, heads, weights = found.neuron_fractions, found.head_fractions, found.weights
    names = ("gini_embedding", "specialised_neurons", "highly_specialised_neurons", "dead_neurons")
    if fractions is None or heads is None or weights is None:
        lists: dict[str, Any] = {"learned_frequencies": [], "dominant_embedding_rows": []}
        none = dict.fromkeys((*names, "phase_agreement", "head_specialisation"), np.nan)
        return none | lists | {"flag": "no_block"}
    frequency, share = fourier.dominant(fractions)
    filled = np.nan_to_num(share)
    chosen = filled >= SPECIALISED
    inputs = weights["embedding"] @ weights["ov"] @ weights["w_in"][:, chosen]
    outputs = weights["w_out"][chosen] @ weights["unembed"]
    top = np.nan_to_num(heads).max(1)
    return {
        "gini_embedding": fourier.gini(fourier.band_energy(weights["embedding"])[1:]),
        "specialised_neurons": float(chosen.mean()),
        "highly_specialised_neurons": float((filled >= HIGHLY).mean()),
        "dead_neurons": float(np.isnan(share).mean()),
        "phase_agreement": float(fourier.neuron_phases(inputs, outputs, frequency[chosen])[2]),
        "head_specialisation": float(top.mean()),
        "learned_frequencies": list(fourier.learned_frequencies(fractions)),
        "dominant_embedding_rows": fourier.dominant_rows(weights["embedding"]).tolist(),
    }


def spectra_rows(found: ModularBundle) -> pd.DataFrame:
    """Columns of `fourier_spectra` but trial and step."""
    parts: dict[str, NDArray[np.float64]] = {"logits": fourier.sum_energy(found.logits)}
    if found.weights is not None and found.neuron_fractions is not None and found.head_fractions is not None:
        weights = found.weights
        parts["embedding"] = fourier.shares(fourier.band_energy(weights["embedding"]))
        parts["unembedding"] = fourier.shares(fourier.band_energy(weights["unembed"], axis=1))
        parts["neuron_logit"] = fourier.shares(fourier.band_energy(weights["w_out"] @ weights["unembed"], axis=1))
        alive = found.neuron_fractions[~np.isnan(found.neuron_fractions).any(1)]
        if len(alive):
            parts["neurons"] = alive.mean(0)
        for head, values in enumerate(found.head_fractions):
            parts[f"attention:{head}"] = values
            queries = weights["embedding"] @ weights["queries"][head]
            parts[f"query_key:{head}"] = fourier.query_key_spectrum(
                queries, weights["embedding"] @ weights["keys"][head]
            )
    known = fourier.frequencies(found.p).astype(np.int32)
    frames = [pd.DataFrame({"part": part, "frequency": known, "share": share}) for part, share in parts.items()]
    return pd.concat(frames, ignore_index=True)


def scale_rows(found: ModularBundle, ablation: Sequence[dict[str, float]] = ()) -> pd.DataFrame:
    """Columns of `scale_metrics` but trial and step; `ablation` by head, as `maps.head_ablation` gives it."""
    frames = []
    if found.neurons is not None and found.neuron_fractions is not None:
        frames.append(_scales("neuron", found.neurons, found.neuron_fractions))
    for to, maps in (found.attention or {}).items():
        fractions = found.head_fractions if to == "a" else None
        rows = _scales(f"head_to_{to}", maps, fourier.map_spectrum(maps)[0] if fractions is None else fractions)
        rows["label"] = scale.head_labels(rows["fft_no_dc"].to_numpy(), rows["relative_gradient"].to_numpy())
        if len(ablation):
            rows["ablation_zero"] = [head["zero"] for head in ablation]
            rows["ablation_mean"] = [head["mean"] for head in ablation]
        frames.append(rows)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _scales(kind: str, maps: NDArray[np.float32], fractions: NDArray[np.float64]) -> pd.DataFrame:
    fft, edges = scale.fft_ratio(maps), scale.relative_gradient(maps)
    frequency, share = fourier.dominant(fractions)
    regions = scale.blobs(maps)
    kinds = [scale.structure(float(f), float(g)) for f, g in zip(fft, edges, strict=True)]
    return pd.DataFrame(
        {
            "kind": kind,
            "unit": np.arange(len(maps), dtype=np.int32),
            "fft_no_dc": fft,
            "fft_dc": scale.fft_ratio(maps, dc=True),
            "variance_preservation": scale.variance_preservation(maps),
            "gradient": scale.gradient_magnitude(maps),
            "relative_gradient": edges,
            "coarseness": scale.coarseness(fractions),
            "frequency": frequency.astype(np.int32),
            "fraction": share,
            "structure": kinds,
            "label": [None if k is None else scale.WORDS[k] for k in kinds],
            "blobs": regions[:, 0].astype(np.int32),
            "blob_area": regions[:, 1],
            "largest_blob": regions[:, 2],
            "ablation_zero": np.nan,
            "ablation_mean": np.nan,
        }
    )
