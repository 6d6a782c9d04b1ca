"""Measuring what others train: a tracker for any PyTorch loop, and series of checkpoints that exist already."""
