"""The founding study's measurement tools under their names; what each computes stands with its home."""

from typing import Any

from numpy.typing import ArrayLike

from ndt_ray.analysis.mechanisms import attention, units, weights


class MeasurementTools:
    """Six functions of arrays: `MeasurementTools.attention_entropy(patterns)`."""

    @staticmethod
    def attention_entropy(attn: ArrayLike, from_logits: bool = False) -> float:
        """Mean entropy of attention weights (or, `from_logits`, of scores), in nats."""
        return attention.attention_entropy(attn, from_logits)

    @staticmethod
    def attention_specialization(attn: ArrayLike) -> dict[str, float]:
        """Mean, smallest, largest entropy of heads, their SD and range."""
        return attention.attention_specialization(attn)

    @staticmethod
    def cosine_similarity(a: ArrayLike, b: ArrayLike) -> float:
        """Cosine of two arrays taken as vectors; 0 where a norm is 0."""
        return weights.cosine_similarity(a, b)

    @staticmethod
    def weight_change_magnitude(before: ArrayLike, after: ArrayLike) -> dict[str, float]:
        """l2_norm, relative_change, max_change, mean_change and cosine_similarity."""
        return weights.weight_change_magnitude(before, after)

    @staticmethod
    def activation_sparsity(acts: ArrayLike, threshold: float = units.THRESHOLD) -> float:
        """1 - share of activations above the threshold in size."""
        return units.activation_sparsity(acts, threshold)

    @staticmethod
    def activation_selectivity(acts: ArrayLike, labels: ArrayLike) -> Any:
        """Class means, `[features, classes]`."""
        return units.activation_selectivity(acts, labels)
