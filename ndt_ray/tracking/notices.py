"""What is said about a run while it goes on: each thing once, as a warning of the logger `ndt_ray`."""

import logging
from collections.abc import Mapping
from typing import Any

from ndt_ray.tracking.meter import NOT_RUN

log = logging.getLogger(__name__)


class Notices:
    """What is said about a run, each thing once. Not part of the tracker, so that nothing keeps that alive."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._told: set[Any] = set()

    def lost(self, reasons: Mapping[str, str]) -> None:
        """Say why the rows of layers are flagged `lost`."""
        by_reason: dict[str, list[str]] = {}
        for layer, reason in reasons.items():
            if (layer, reason) not in self._told:
                self._told.add((layer, reason))
                by_reason.setdefault(reason, []).append(layer)
        for reason, layers in by_reason.items():
            why = reason
            if reason == NOT_RUN:
                why = (
                    "not run in a recorded forward pass since the last log (recorded is: training mode with gradients, "
                    "unless passes= says otherwise; a model compiled and run before its tracker was made needs a probe)"
                )
            log.warning("run %s: rows flagged lost of %s: %s (said once)", self._run, ", ".join(layers), why)

    def tell(self, key: str, message: str, error: Exception | None = None) -> None:
        if key not in self._told:
            self._told.add(key)
            told = f": {type(error).__name__}: {error}" if error else ""
            log.warning("run %s: %s%s (said once)", self._run, message, told)
