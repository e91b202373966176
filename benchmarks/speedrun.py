"""The speed run: two minutes of training against counting, on held-out Shakespeare.

Run ``python -m benchmarks.speedrun``. The same last 5 % of the characters are foreseen
by the best n-gram model of characters and by ``lmcore train --preset
shakespeare-2min``: its model alone, and together with counts of the same tokens.
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


def training() -> tuple[dict[str, float], str]:
    """Held-out bits per character of the preset, and what it said of itself."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lmcore", "train", "--preset", PRESET]
        done = subprocess.run(
            [*command, "--folder", folder], capture_output=True, text=True, check=True
        )
    said, *bits = done.stdout.strip().splitlines()[-3:]
    alone, together = (float(re.search(r"([\d.]+) bits", line)[1]) for line in bits)
    return {"alone": alone, "together with counted tokens": together}, said


def main() -> None:
    """Measure and print."""
    by_order = counting(presets.PRESETS[PRESET].held_out)
    for order, bits in by_order.items():
        print(f"Kneser–Ney of order {order}, discount {DISCOUNT}: {bits:.3f} bits")
    least = min(by_order.values())
    by_way, said = training()
    print(f"{PRESET}: {said}")
    for way, bits in by_way.items():
        verdict = "fewer" if bits < least else "more"
        print(
            f"{way}: {bits:.3f} bits, {abs(bits / least - 1):.1%} {verdict} than the "
            f"best count, {least:.3f}"
        )


if __name__ == "__main__":
    main()
