"""Tables of the hypotheses: each with what the sweep says of it, and what is the same in all architectures."""

from ndt_ray.store.schema import Column, Table

HYPOTHESES = Table(
    "hypotheses",
    "Hypotheses with what they predict and what the sweep says: every verdict computed.",
    (
        Column("hypothesis", "string", "its name"),
        Column("scope", "string", "cell; mlp, cnn or transformer: trials of this family; or * for the whole sweep"),
        Column("statement", "string", "what it says"),
        Column("metric", "string", "what is compared"),
        Column("prediction", "string", "increase, decrease, |r| > 0.6, or R² > 0.4 on trials left out"),
        Column("n", "int32", "trials: the unit"),
        Column("estimate", "float64", "mean difference, correlation or R²"),
        Column("lo", "float64", "95 % interval; null where there is none"),
        Column("hi", "float64", "upper end of it"),
        Column("p", "float64", "two-sided: sign flips, permutations for r and R²; of mechanism_tests its t test"),
        Column("p_t", "float64", "paired t test of the same mean, beside p, which decides; null: no mean"),
        Column("r2_in_sample", "float64", "R² on the trials it was fitted to; the estimate decides; null: no R²"),
        Column("q", "float64", "Benjamini-Hochberg over all hypotheses of the sweep that could be tested"),
        Column("verdict", "string", "supported, weaker_than_predicted, contradicted, not_shown or no_data"),
        Column("confidence", "string", "high (q <= .01, 6 trials), medium (q <= .05) or low"),
        Column("why", "string", "in words made of these numbers; of no_data what is missing"),
    ),
    ("hypothesis", "scope"),
)

PATTERNS = Table(
    "mechanism_patterns",
    "Which changes at events are the same in all architectures, and which belong to some.",
    (
        Column("metric", "string", "name of the metric, or of a hypothesis: then of its estimate in every family"),
        Column("n_cells", "int32", "cells in which it was tested, of a hypothesis families"),
        Column("up", "int32", "of these, with events raising it more than matched windows, q <= alpha"),
        Column("down", "int32", "those in which they lower it"),
        Column("architectures", "string", "those with a significant change, comma-separated"),
        Column("heterogeneity_p", "float64", "Cochran's Q: are their differences one? null for one, and for R²"),
        Column("pattern", "string", "universal, specific, opposed or none"),
    ),
    ("metric",),
)
