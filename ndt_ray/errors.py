"""Errors for users: each says what is wrong, where, and what to do, and carries the exit code of the command line."""

import difflib
from collections.abc import Iterable

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""


class NdtError(Exception):
    """Something the user can mend; the message is complete and needs no traceback. Exit code 1."""

    exit_code = 1


class SpecError(NdtError):
    """A bad sweep file, option or argument. Exit code 2."""

    exit_code = 2


class DataError(SpecError):
    """A data file that is missing, truncated or not what its checksum says. Exit code 2."""


class StoreError(NdtError):
    """A store that is not one, is newer, read-only, full or taken. Exit code 3."""

    exit_code = 3


class CheckpointError(StoreError):
    """A checkpoint that is missing, corrupt or belongs to another model. Exit code 3."""


class ClusterError(NdtError):
    """Ray or one of its nodes is not usable. Exit code 4."""

    exit_code = 4


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` - did you mean 'x'?`` for the closest known name, else the list of known names (shortened)."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f" - did you mean '{close[0]}'?"
    listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return f" - known: {listed}" if known else ""
