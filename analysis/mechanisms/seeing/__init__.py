"""Seeing what units answer to: images that drive them most, made or found, and what of an image a decision rests on."""
