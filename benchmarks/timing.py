"""How the benchmarks take time: the sides of a ratio in turns, the best of each."""

import time
from collections.abc import Callable


def best_times(*sides: Callable[[], object], rounds: int = 3) -> list[float]:
    """Seconds that each side takes, the least of some rounds.

    The sides take turns, so that all of them meet the same machine.
    """
    times = [[] for _ in sides]
    for _ in range(rounds):
        for side, seen in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            seen.append(time.perf_counter() - start)
    return [min(seen) for seen in times]
