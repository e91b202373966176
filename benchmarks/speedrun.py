"""The speed run: two minutes of training against counting, on held-out Shakespeare.

Run ``python -m benchmarks.speedrun``. The same last 5 % of the characters are foreseen
by the best n-gram model and by ``lmcore train --preset shakespeare-2min``.
"""

import re
import subprocess
import sys
import tempfile

from lmcore import data, ngram, presets

PRESET = "shakespeare-2min"
ORDERS = (5, 6, 7, 8)
DISCOUNT = 0.95


def counting(held_out: float) -> dict[int, float]:
    """Held-out bits per character of Kneser–Ney, by order."""
    text = data.load_text("shakespeare")
    cut = int(len(text) * (1 - held_out))
    found = {}
    for order in ORDERS:
        fitted = ngram.NGramModel(order, discount=DISCOUNT).fit([text[:cut]])
        scores = fitted.score(text[cut:])
        found[order] = ngram.bits_per_character(scores, text[cut:])
    return found


def training() -> tuple[float, str]:
    """Held-out bits per character of the preset, and what it said of itself."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lmcore", "train", "--preset", PRESET]
        done = subprocess.run(
            [*command, "--folder", folder], capture_output=True, text=True, check=True
        )
    said = done.stdout.strip().splitlines()
    return float(re.search(r"([\d.]+) bits per character", said[-1])[1]), said[-2]


def main() -> None:
    """Measure and print."""
    by_order = counting(presets.PRESETS[PRESET].held_out)
    for order, bits in by_order.items():
        print(f"Kneser–Ney of order {order}, discount {DISCOUNT}: {bits:.3f} bits")
    bits, said = training()
    print(f"{PRESET}: {bits:.3f} bits ({said})")
    least = min(by_order.values())
    verdict = "fewer" if bits < least else "more"
    print(
        f"{abs(bits / least - 1):.1%} {verdict} than the best count, {least:.3f} bits"
    )


if __name__ == "__main__":
    main()
