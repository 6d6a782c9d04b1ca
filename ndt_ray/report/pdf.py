"""The page as PDF: printed by a browser that is on the machine, so that it looks as the page does."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ndt_ray.errors import SpecError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "chrome")
OPTIONS = (
    "--headless", "--disable-gpu", "--disable-sync", "--disable-background-networking", "--disable-component-update",
    "--no-first-run", "--no-pdf-header-footer",
    "--window-size=1032,1400",  # what a landscape A4 sheet holds between its margins: charts keep the width they have
    "--virtual-time-budget=120000",  # milliseconds of the page's own clock: until its charts are drawn
)  # fmt: skip
LONGEST = 180.0
"""Seconds; the demo's page takes 3 on an AMD EPYC core."""


def browser() -> str | None:
    """Path of a browser that prints without a screen: `NDT_BROWSER`, or the first of `BROWSERS` on the PATH."""
    named = os.environ.get("NDT_BROWSER")
    return next((found for name in ([named] if named else BROWSERS) if (found := shutil.which(name))), None)


def printed(html: bytes) -> bytes:
    """A self-contained page as PDF. SpecError where no browser is found, or where it fails."""
    program = browser()
    if program is None and (named := os.environ.get("NDT_BROWSER")):
        raise SpecError(f"a PDF is printed by a browser, and NDT_BROWSER={named} is none that can be run")
    if program is None:
        raise SpecError(
            f"a PDF is printed by a browser, and none of {', '.join(BROWSERS)} is on the PATH: install one, name it in "
            "NDT_BROWSER, or write .html and print that"
        )
    # Children of the browser may still write into its profile when it has ended.
    with tempfile.TemporaryDirectory(prefix="ndt-pdf-", ignore_cleanup_errors=True) as name:
        page, made = Path(name, "report.html"), Path(name, "report.pdf")
        page.write_bytes(html)
        # As root, as in most containers, Chromium does not start with its sandbox; it opens nothing but this page.
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        command = [program, *OPTIONS, *sandbox, f"--user-data-dir={name}/profile", f"--print-to-pdf={made}"]
        try:
            command.append(f"{page.as_uri()}#print")
            done = subprocess.run(command, capture_output=True, timeout=LONGEST, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SpecError(f"{program} did not print the report: {error}") from error
        if done.returncode or not made.exists():
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise SpecError(f"{program} did not print the report (exit {done.returncode}): {' '.join(last)}")
        return made.read_bytes()
