"""Run a benchmark, or all of them: `python -m benchmarks [NAME] [options]`."""

import importlib
import sys

NAMES = (
    "lanes",
    "workers",
    "measuring",
    "everything",
    "triggers",
    "tracker",
    "orchestration",
    "store",
    "battery",
    "detection",
)


def main(arguments: list[str]) -> int:
    """Exit status 1 where a bar was missed."""
    chosen = arguments[:1] if arguments and not arguments[0].startswith("-") else ["all"]
    options = arguments[1:] if arguments and not arguments[0].startswith("-") else arguments
    if chosen[0] not in (*NAMES, "all"):
        print(f"unknown benchmark '{chosen[0]}': one of {', '.join((*NAMES, 'all'))}", file=sys.stderr)
        return 2
    status = 0
    for name in NAMES if chosen == ["all"] else chosen:
        status |= importlib.import_module(f"benchmarks.{name}").main(options)
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
