"""Which family of architectures a model is of: what tables group by, and what the founding study speaks of."""

import re

FAMILIES = ("mlp", "cnn", "transformer")
"""Those with a name of their own; every other model is of the family `other`."""
OTHER = "other"
_SAYS = {
    "mlp": re.compile(r"(?i:mlp)"),
    "cnn": re.compile(r"(?i:cnn|resnet)"),
    "transformer": re.compile(r"(?i:transformer)|ViT|(?<![a-zA-Z])(?i:vit)(?![a-zA-Z])"),  # not: activity, invite
}


def family_of(model: str) -> str:
    """mlp, cnn, transformer or other: the one family that a model's name tells of.

    ResNets are CNNs, ViTs and modular transformers are transformers. Of a user's own model (`path/file.py:name`) the
    name counts, else the file's; folders do not. A name that tells of two families, or of none, is `other`: what a
    model is made of is not looked at.
    """
    path, _, function = model.rpartition(":")
    file = path.replace("\\", "/").rpartition("/")[2].removesuffix(".py")
    for name in filter(None, (function, file)):
        told = [family for family, says in _SAYS.items() if says.search(name)]
        if told:
            return told[0] if len(told) == 1 else OTHER
    return OTHER
