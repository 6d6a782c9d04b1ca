"""Analyses: pure functions of tables, and the runner that calls them for every partition of a sweep."""

if __name__ != "ndt_ray.analysis":
    raise ImportError(
        f"this folder is imported as ndt_ray.analysis, not as {__name__!r}: under two names every analysis would exist"
        " twice. Import ndt_ray.analysis, and leave the repository's root out of PYTHONPATH."
    )
