"""Memory of attention: the full table of weights against online softmax.

Run ``python -m benchmarks.attention``. Every case runs in a process of its own, whose
largest memory the system reports; what the process takes without attention is left out.
"""

import resource
import subprocess
import sys

import torch

from lmcore import attention

LENGTHS = (512, 1024, 2048, 4096, 8192)
N_HEADS, WIDTH = 4, 32
KINDS = {
    "none": lambda q, k, v: v,
    "full": lambda q, k, v: attention.scaled_dot_product_attention(q, k, v)[0],
    "online": attention.online_softmax_attention,
}


def measure(kind: str, n_tokens: int) -> float:
    """Largest memory of a process that does it once, in MB."""
    command = [sys.executable, "-m", "benchmarks.attention", kind, str(n_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout) / 1024


def run(kind: str, n_tokens: int) -> None:
    """Do it once and print the process's largest memory in KiB."""
    torch.set_num_threads(1)
    q, k, v = torch.randn(3, 1, N_HEADS, n_tokens, WIDTH)
    with torch.no_grad():
        KINDS[kind](q, k, v)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    """Measure and print."""
    print(f"{N_HEADS} heads of width {WIDTH}, float32; memory beside the inputs")
    print("    T      full    online   ratio")
    for n_tokens in LENGTHS:
        nothing = measure("none", n_tokens)
        full, online = (measure(k, n_tokens) - nothing for k in ("full", "online"))
        ratio = full / max(online, 0.1)
        print(f"{n_tokens:5} {full:6.0f} MB {online:6.1f} MB {ratio:6.1f} x")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run(sys.argv[1], int(sys.argv[2]))
    else:
        main()
