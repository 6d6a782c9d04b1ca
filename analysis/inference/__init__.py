"""Inference over seeds: multiplicity, intervals, effect sizes, concordance, comparisons, power, the multiverse."""
