"""`ActivationAnalyzer` of the founding documents: principal components, clusters and shape of what layers give."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score, silhouette_score

from ndt_ray.analysis.mechanisms.twonn import twonn
from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.measurement import measures
from ndt_ray.measurement.velocity import debiased_cka

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PCA:
    """Components `[k, features]`, projections `[n, k]`, their shares of the variance, and the dimension by them."""

    components: Floats
    projections: Floats
    explained_variance_ratio: Floats
    participation_ratio: float


@dataclass(frozen=True)
class Clusters:
    """Cluster of each stimulus, how separate they are (-1..1), and how well they match labels (0..1; NaN without)."""

    assignment: NDArray[np.int64]
    centres: Floats
    silhouette: float
    label_agreement: float


@dataclass(frozen=True)
class Manifold:
    """Shape of the cloud of stimuli. `intrinsic_dimension` is descriptive (see `twonn`)."""

    participation_ratio: float
    intrinsic_dimension: float
    rankme: float
    label_alignment: float
    """Debiased CKA with the label kernel; NaN without labels."""


class ActivationAnalyzer:
    """Analyses of activations by layer: `ActivationAnalyzer(capture.activations, labels).pca_analysis("fc")`.

    Or of any activations, as in the founding documents: `ActivationAnalyzer().pca_analysis(activations)`. These are
    `[n, …]` arrays or tensors; positions and tokens are averaged (`[n, C, H, W]` over the last two axes, `[n, T, D]`
    over the second), so that a row is a stimulus. SpecError where labels and stimuli are not equally many.
    """

    def __init__(self, activations: Mapping[str, Any] | None = None, labels: ArrayLike | None = None) -> None:
        self.labels: NDArray[np.int64] | None = None if labels is None else np.asarray(labels, dtype=np.int64)
        self._rows = {
            str(name): self._labelled(values, f"layer '{name}'") for name, values in (activations or {}).items()
        }

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        return list(self._rows)

    def matrix(self, activations: str | ArrayLike) -> Floats:
        """One row a stimulus, `[n, features]`, of a layer by its name or of the activations given; SpecError for an
        unknown layer, and for activations of several."""
        if isinstance(activations, Mapping):
            raise SpecError(f"activations of layers belong to ActivationAnalyzer(…), but got those of {[*activations]}")
        if not isinstance(activations, str):
            return self._labelled(activations, "activations")
        if activations not in self._rows:
            raise SpecError(f"no activations of layer '{activations}'{did_you_mean(activations, self._rows)}")
        return self._rows[activations]

    def _labelled(self, values: Any, name: str) -> Floats:
        rows = _rows(values, name)
        if self.labels is not None and len(self.labels) != len(rows):
            raise SpecError(f"{name}: there are {len(rows)} stimuli, but {len(self.labels)} labels")
        return rows

    def pca_analysis(self, activations: str | ArrayLike, n_components: int | None = None) -> PCA:
        """Principal components, the largest first; by default all that the stimuli can tell."""
        rows = self.matrix(activations)
        centred = rows - rows.mean(0)
        left, singular, components = np.linalg.svd(centred, full_matrices=False)
        most = min(len(rows) - 1, rows.shape[1])
        if n_components is not None and not 1 <= n_components <= most:
            raise SpecError(f"n_components must lie in 1..{most} for {rows.shape}, but got ({n_components=})")
        k = most if n_components is None else n_components
        power = singular**2
        ratio = power / power.sum() if power.sum() > 0 else np.full_like(power, np.nan)
        dimension = float(measures.participation_ratio(power)) if power.sum() > 0 else float("nan")
        return PCA(components[:k], left[:, :k] * singular[:k], ratio[:k], dimension)

    def clustering(self, activations: str | ArrayLike, n_clusters: int | None = None, seed: int = 0) -> Clusters:
        """k-means of the stimuli; by default as many clusters as there are different labels."""
        rows = self.matrix(activations)
        if n_clusters is None:
            if self.labels is None:
                raise SpecError("without labels, say how many clusters: n_clusters=…")
            n_clusters = len(np.unique(self.labels))
        if not 2 <= n_clusters < len(np.unique(rows, axis=0)):
            raise SpecError(f"n_clusters must lie between 2 and the number of different stimuli, but got {n_clusters}")
        found = KMeans(n_clusters, random_state=seed, n_init=10).fit(rows)
        assignment = found.labels_.astype(np.int64)
        agreement = float("nan") if self.labels is None else normalized_mutual_info_score(self.labels, assignment)
        separate = float(silhouette_score(rows, assignment))
        return Clusters(assignment, np.asarray(found.cluster_centers_), separate, float(agreement))

    def manifold_analysis(self, activations: str | ArrayLike) -> Manifold:
        """Linear and intrinsic dimension, and how much of the shape the labels explain."""
        rows = self.matrix(activations)
        power = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
        flat = not power.sum() > 0
        aligned = float("nan")
        if self.labels is not None:
            aligned = debiased_cka(rows, np.equal.outer(self.labels, np.unique(self.labels)).astype(np.float64))
        return Manifold(
            float("nan") if flat else float(measures.participation_ratio(power)),
            twonn(rows),
            float("nan") if flat else float(measures.rankme(power)),
            aligned,
        )


def _rows(values: Any, name: str) -> Floats:
    detached = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    array = np.asarray(detached, dtype=np.float64)
    if array.ndim < 2 or len(array) < 2:
        raise SpecError(f"{name} must be [n, …] with two or more stimuli, but got {array.shape}")
    axes = {2: (), 3: (1,)}.get(array.ndim, tuple(range(2, array.ndim)))
    return np.asarray(array.mean(axis=axes) if axes else array)
