"""LaTeX from plain text and tables: everything that came from a store passes `escape`, whatever is in it."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from ndt_ray.report.parts import plain
from ndt_ray.report.words import number

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
}  # fmt: skip
_SYMBOLS = {
    "–": r"\textendash{}", "—": r"\textemdash{}", "“": "``", "”": "''", "‘": "`", "’": "'", "…": r"\ldots{}",
    "\u00a0": "~",
    "≤": r"$\le$", "≥": r"$\ge$", "≠": r"$\ne$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "→": r"$\to$",
    "∞": r"$\infty$", "−": "$-$", "²": r"\textsuperscript{2}", "³": r"\textsuperscript{3}", "°": r"$^\circ$",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\varepsilon$", "κ": r"$\kappa$",
    "λ": r"$\lambda$", "μ": r"$\mu$", "µ": r"$\mu$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$",
    "Δ": r"$\Delta$", "Σ": r"$\Sigma$",
}  # fmt: skip
_EXPONENT = re.compile(r"^(-?)([\d.]+)e(-?)(\d+)$")


def escape(text: object) -> str:
    """Any text as LaTeX that prints it: special characters, and those outside Latin that pdfLaTeX does not know.

    A character without a form of its own becomes its code, [U+4E2D]; line ends and other control characters a space.
    """
    made = "".join(_character(c) for c in unicodedata.normalize("NFC", str(text)))
    return re.sub("-(?=-)", "-{}", made)  # two hyphens, as options of a command have them, would print as a dash


def _character(c: str) -> str:
    if c in _SPECIAL:
        return _SPECIAL[c]
    if c in _SYMBOLS:
        return _SYMBOLS[c]
    if unicodedata.category(c).startswith("C") or c.isspace():
        return " "
    # utf8 input with T1 fonts has Latin letters up to U+017F
    return c if ord(c) < 128 or (ord(c) <= 0x17F and c.isalpha()) else f"[U+{ord(c):04X}]"


def amount(value: Any, digits: int = 3) -> str:
    """A number as `report.words.number` writes it, in LaTeX: true minus signs and powers of ten."""
    text = number(value, digits)
    power = _EXPONENT.match(text)
    if power:
        sign, head, minus, tail = power.groups()
        return rf"${sign}{head}\times10^{{{minus}{int(tail)}}}$"
    return escape(text) if not text.startswith("-") else f"$-${escape(text[1:])}"


def percent(part: Any, whole: Any = 1.0) -> str:
    """A share as a percentage, to one decimal place where it is not whole (more below 0.1 %); -- of nothing."""
    if part is None or part != part or not whole:
        return "--"
    value = 100 * float(part) / float(whole)
    if 0 < abs(value) < 0.1:
        return f"{amount(value, 2)}\\,\\%"
    return f"{value:.{0 if abs(value - round(value)) < 1e-9 else 1}f}\\,\\%".replace("-", "$-$")


def between(low: Any, high: Any) -> str:
    """An interval, [low, high]; -- where an end is missing."""
    if low is None or high is None or low != low or high != high:
        return "--"
    return f"[{amount(low)}, {amount(high)}]"


def comment(text: str) -> str:
    """A comment of one line, whatever the text has in it."""
    return "% " + " ".join(text.split())


def cell(value: Any) -> str:
    """A value of a table; -- where it is missing."""
    value = plain(value)
    if value is None:
        return "--"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(value) if isinstance(value, str) else amount(value)


def longtable(
    header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str, alignment: str, note: str = ""
) -> str:
    """A booktabs table that may run over pages; header, cells, caption and note are LaTeX already."""
    assert all(len(row) == len(header) for row in rows), header
    head = " & ".join(header) + r" \\"
    lines = [
        rf"\begin{{longtable}}{{{alignment}}}", rf"\caption{{{caption}}}\label{{{label}}}\\", r"\toprule", head,
        r"\midrule", r"\endfirsthead", r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endlastfoot",
    ]  # fmt: skip
    lines += [" & ".join(row) + r" \\" for row in rows]
    lines.append(r"\end{longtable}")
    return "\n".join([*lines, *([note] if note else []), ""])
