"""Runs analyses over the partitions of a sweep: in which order, where, and what of them is done."""
