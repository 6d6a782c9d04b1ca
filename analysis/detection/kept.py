"""What is made once and kept as long as it fits: dictionaries of atoms are large, and series have many lengths."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

T = TypeVar("T")


class Kept:
    """Values by key, up to so many bytes of them; those used longest ago are given up first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.bytes = 0

    def get(self, key: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """The value of a key, made if it is not there; `size` says how many bytes it takes."""
        if key in self.held:
            self.held.move_to_end(key)
            return cast(T, self.held[key][0])
        value = make()
        self.held[key] = value, size(value)
        self.bytes += self.held[key][1]
        while self.bytes > self.most and len(self.held) > 1:
            self.bytes -= self.held.popitem(last=False)[1][1]
        return value
