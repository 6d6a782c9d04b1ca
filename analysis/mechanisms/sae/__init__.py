"""Sparse autoencoders of layers, and how far the features of one serve another."""
