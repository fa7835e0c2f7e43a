"""Which steps of a long schedule a short sampler visits: rising indices for `schedules.respace`."""

from collections.abc import Callable, Sequence


def sectioned(num_steps: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Cut 0 .. num_steps-1 into len(counts) equal sections and spread counts[i] steps evenly over section i.

    A section's first and last index are both visited (Nichol & Dhariwal 2021, Sec. 4).

    Raises:
        ValueError: if a section is shorter than its count, or a count is below 1.
    """
    if not counts or min(counts) < 1:
        raise ValueError(f"counts must be whole numbers of at least 1, got {tuple(counts)}")
    short, longer = divmod(num_steps, len(counts))
    steps, start = [], 0
    for section, count in enumerate(counts):
        size = short + (section < longer)
        if size < count:
            raise ValueError(f"can't take {count} steps out of {size}: section {section} of {num_steps} steps")
        stride = (size - 1) / (count - 1) if count > 1 else 0.0
        steps += [start + round(i * stride) for i in range(count)]
        start += size
    return tuple(steps)


def even(num_steps: int, counts: Sequence[int]) -> tuple[int, ...]:
    """`sectioned`; with one count, that many steps evenly from 0 to num_steps-1, both included."""
    return sectioned(num_steps, counts)


def ddim(num_steps: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Every k-th step from 0, k = num_steps / count rounded up (Song et al. 2020).

    Raises:
        ValueError: if no whole stride gives that many steps.
    """
    count = _one(counts, "ddim", num_steps)
    for stride in range(1, num_steps + 1):
        if len(range(0, num_steps, stride)) == count:
            return tuple(range(0, num_steps, stride))
    raise ValueError(f"no whole stride through {num_steps} steps gives {count} of them; use even")


def trailing(num_steps: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Evenly back from the last step, which is always visited (Lin et al. 2023, Table 2)."""
    count = _one(counts, "trailing", num_steps)
    return tuple(sorted(round(num_steps - i * num_steps / count) - 1 for i in range(count)))


def _one(counts: Sequence[int], name: str, num_steps: int) -> int:
    if len(counts) != 1 or not 1 <= counts[0] <= num_steps:
        raise ValueError(f"{name} takes one count between 1 and {num_steps}, got {tuple(counts)}")
    return counts[0]


SPACINGS: dict[str, Callable[[int, Sequence[int]], tuple[int, ...]]] = {
    "even": even,
    "ddim": ddim,
    "trailing": trailing,
}
