"""Numbers as text: as many digits as they deserve, thousands apart, intervals, p and q."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

IRREGULAR = {"series": "series", "hypothesis": "hypotheses", "is": "are", "has": "have", "was": "were", "it": "they"}


def number(value: Any, digits: int = 3) -> str:
    """Whole numbers in full with thousands apart; others to so many significant digits; – for none."""
    if value is None or value != value:
        return "–"
    value = float(value)
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.{1 if abs(value) < 10**digits else 0}f}"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-")
    return f"{value:.{digits}g}"


def fixed(value: Any, places: int) -> str:
    """With so many places; – for none."""
    return "–" if value is None or value != value else f"{float(value):,.{places}f}"


def interval(low: Any, high: Any, places: int | None = None) -> str:
    """[low, high]; empty where one is missing."""
    if low is None or high is None or low != low or high != high:
        return ""
    both = (number(low), number(high)) if places is None else (fixed(low, places), fixed(high, places))
    return f"[{both[0]}, {both[1]}]"


def count(n: int, word: str) -> str:
    """A number and its word: 1 event, 2 events."""
    return f"{n:,} {word if n == 1 else plural(word)}"


def plural(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    last = word.split()[-1]
    if last in IRREGULAR:
        return word[: -len(last)] + IRREGULAR[last]
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


def share(part: float, whole: float) -> str:
    """Percentage; – of nothing."""
    return f"{100 * part / whole:.0f} %" if whole else "–"


def level(p: Any) -> str:
    """= 0.031, or < 0.001; what is missing is – ."""
    if p is None or p != p:
        return "= –"
    return "< 0.001" if float(p) < 0.001 else f"= {float(p):.2g}"


def listed(words: Iterable[str], most: int = 6) -> str:
    """a, b and c; of many, the first and how many more."""
    found = list(words)
    if len(found) > most:
        found = [*found[:most], f"{len(found) - most} more"]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}" if found else "none"


def span(values: Sequence[Any]) -> str:
    """One number, or the smallest and the largest."""
    known = sorted({float(v) for v in values if v is not None and v == v})
    if not known:
        return "–"
    return number(known[0]) if len(known) == 1 else f"{number(known[0])}–{number(known[-1])}"


def readable(name: str) -> str:
    """A column's or analysis' name as words."""
    return name.replace("_", " ")
