"""Values are kept while they fit, and the least recently used are given up."""

from ndt_ray.analysis.detection.kept import Kept


def test_what_was_used_longest_ago_is_made_again() -> None:
    made: list[str] = []

    def value(name: str) -> str:
        made.append(name)
        return name

    kept = Kept(10)
    for name in ("aaaa", "bbbb", "aaaa", "cccc", "aaaa", "bbbb"):
        assert kept.get(name, lambda name=name: value(name), len) == name
    assert made == ["aaaa", "bbbb", "cccc", "bbbb"]  # with c, b had to go; a was used since
    assert kept.bytes == 8
    assert kept.get("far too long", lambda: value("far too long"), len) == "far too long"
    assert list(kept.held) == ["far too long"]
