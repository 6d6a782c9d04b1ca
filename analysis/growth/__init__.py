"""Growth curves of dimensionality over training."""
