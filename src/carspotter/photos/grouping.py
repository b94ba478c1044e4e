"""Groups of photos that belong together, and which of them add up to an exact number."""

from collections import defaultdict
from collections.abc import Iterable


class Groups:
    """Sets of photos, listings and clusters that belong together, each on one side or on none yet (union-find)."""

    def __init__(self):
        self._parent: dict[str, str] = {}
        self._side: dict[str, str] = {}
        # Keys that photos of a second side carry too: a cluster may come to join what was split before it was known.
        self._torn: dict[str, set[str]] = defaultdict(set)

    def root(self, key: str) -> str:
        parent = self._parent
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    def side_of(self, key: str) -> str | None:
        return self._side.get(self.root(key))

    def sides_of(self, keys: Iterable[str]) -> set[str]:
        return {self.side_of(key) for key in keys}.union(*(self._torn.get(key, ()) for key in keys)) - {None}

    def join(self, keys: Iterable[str], side: str | None = None) -> None:
        """Join all keys to the first; those that already lie on another side are only marked as torn."""
        first, *others = keys
        if side:
            self._side[self.root(first)] = side
        for key in others:
            here, there = self.root(first), self.root(key)
            sides = {self._side.get(here), self._side.get(there)} - {None}
            if len(sides) > 1:
                self._torn[key].add(self._side[here])
            elif here != there:
                low, high = sorted((here, there))
                self._parent[high] = low
                if sides:
                    self._side[low] = sides.pop()


def name_clusters(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the cluster of every photo in `pairs` of hashes, named by the first digits of its lowest hash."""
    groups, pairs = Groups(), list(pairs)
    for pair in pairs:
        groups.join(pair)
    return {sha256: groups.root(sha256)[:12] for pair in pairs for sha256 in pair}


def pick_sizes(sizes: list[int], wanted: int, at_least: int = 0) -> list[int]:
    """Choose positions, early ones first, whose sizes add up to `wanted` or the nearest sum not below `at_least`."""
    if wanted <= 0 or not sizes:
        return []
    # Bit s of reachable[i] says whether sizes[i:] has a subset of sum s.
    mask = (1 << (wanted + max(sizes) + 1)) - 1
    reachable = [1]
    for size in reversed(sizes):
        reachable.append((reachable[-1] | reachable[-1] << size) & mask)
    reachable.reverse()
    left = min(
        (total for total in range(at_least, wanted + max(sizes) + 1) if reachable[0] >> total & 1),
        key=lambda total: abs(total - wanted),
    )
    picked = []
    for position, size in enumerate(sizes):
        if size <= left and reachable[position + 1] >> (left - size) & 1:
            picked.append(position)
            left -= size
    return picked
