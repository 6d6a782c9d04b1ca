"""Where things are kept between runs that can be made or fetched again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`NDT_CACHE`, else `$XDG_CACHE_HOME/ndt-ray`, else `~/.cache/ndt-ray`; it need not exist."""
    given = os.environ.get("NDT_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ndt-ray"
