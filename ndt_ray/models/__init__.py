"""Architectures: a factory takes an `InputSpec` and keyword parameters and returns an nn.Module."""

from ndt_ray.models.build import build, sketch
from ndt_ray.models.describe import Description, describe, outline
from ndt_ray.models.init import init_parameters
from ndt_ray.models.layers import Dropout, Model, PositionalEmbedding, number_dropouts
from ndt_ray.models.user import load_user_factory, source_hash

__all__ = [
    "Description",
    "Dropout",
    "Model",
    "PositionalEmbedding",
    "build",
    "describe",
    "init_parameters",
    "load_user_factory",
    "number_dropouts",
    "outline",
    "sketch",
    "source_hash",
]
