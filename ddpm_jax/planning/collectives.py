"""What a compiled program sends between devices, read from its text."""

import collections
import dataclasses
import math
import re

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all", "collective-broadcast")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4} | {
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(")
_LINE = re.compile(rf"^\s+(?:ROOT )?%?[\w.\-]+ = (.+?) (?:ragged-)?({'|'.join(KINDS)})(-start)?\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """All the program's exchanges of one kind among groups of one size."""

    kind: str
    group: int
    """Devices that exchange with each other."""
    count: int
    size: int
    """Bytes of the whole arrays, before they are cut or after they are gathered, a device; all of them together."""

    def sent(self) -> float:
        """Bytes that a device sends at least: a ring's figures (Chan et al. 2007), an all-reduce being two passes."""
        share = (self.group - 1) / self.group
        return self.size * share * (2 if self.kind == "all-reduce" else 1)


def read(text: str, num_devices: int, *, trips: int = 1) -> list[Collective]:
    """Every exchange in a compiled program's text, by kind and size of group, the largest first.

    What is inside a loop counts `trips` times. A TPU's reduce-scatter may be an all-reduce fused with the cut behind
    it; it is counted as what it is.
    """
    looped = _in_loops(text)
    counts: collections.Counter[tuple[str, int]] = collections.Counter()
    sizes: collections.Counter[tuple[str, int]] = collections.Counter()
    computation = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            found = _COMPUTATION.match(line)
            computation = found[1] if found else computation
        elif found := _LINE.match(line):
            result, kind, starts, rest = found.groups()
            arrays = [_size(array) for array in _ARRAY.findall(result) if array[1] or not starts]
            if starts and kind != "all-reduce":
                arrays = arrays[len(arrays) // 2 :]  # the first half are its operands
            group = _group(rest, num_devices)
            if kind == "reduce-scatter":
                arrays = [array * group for array in arrays]
            if "all-reduce-scatter" in computation:
                kind = "reduce-scatter"
            times = trips if computation in looped else 1
            counts[kind, group] += times
            sizes[kind, group] += times * sum(arrays)
    found = [Collective(kind=k, group=g, count=n, size=sizes[k, g]) for (k, g), n in counts.items()]
    return sorted(found, key=lambda each: -each.size)


def _in_loops(text: str) -> set[str]:
    """Computations that a loop's body is, or calls."""
    callers: dict[str, str] = {}
    found: set[str] = set()
    computation = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            named = _COMPUTATION.match(line)
            computation = named[1] if named else computation
            continue
        found.update(re.findall(r"\bbody=%?([\w.\-]+)", line))
        callers |= dict.fromkeys(re.findall(r"\b(?:calls|to_apply)=%?([\w.\-]+)", line), computation)
    for name in callers:
        above = name
        while above in callers and above not in found:
            above = callers[above]
        if above in found:
            found.add(name)
    return found


def _size(array: tuple[str, str]) -> int:
    kind, sides = array
    return _BYTES.get(kind, 4) * math.prod(int(side) for side in sides.split(",") if side)


def _group(rest: str, num_devices: int) -> int:
    """How many devices a group has, in any of the three ways that XLA writes groups."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[(.*?)\].*? \{('[^}]*)\}", rest):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sides[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    return num_devices
