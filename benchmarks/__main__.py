"""All benchmarks, one after the other, into benchmarks/results.md: ``make bench``."""

import datetime
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import torch

ALL = ("counting", "tokenizer", "attention", "model", "speedrun", "grading")
RESULTS = Path(__file__).with_name("results.md")


def machine() -> str:
    """One line on what the numbers were taken on."""
    names = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    lines = [line for line in names.splitlines() if line.startswith("model name")]
    processor = lines[0].partition(":")[2].strip() if lines else platform.processor()
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{processor}, {psutil.cpu_count()} cores, {memory:.0f} GiB, "
        f"{platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def run(name: str) -> str:
    """Run one benchmark in a process of its own, showing what it prints."""
    command = [sys.executable, "-u", "-m", f"benchmarks.{name}"]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(f"{name} failed")
    return "".join(lines)


def main() -> None:
    """Run those that are named on the command line, or all."""
    chosen = sys.argv[1:] or ALL
    text = [
        "# Benchmarks\n",
        "Written by `make bench`; both sides of a ratio took turns in one run.\n",
        f"{machine()}, {datetime.date.today()}\n",
    ]
    for name in chosen:
        print(f"== {name}", flush=True)
        doc = Path(__file__).with_name(f"{name}.py").read_text().split('"""')[1]
        first = doc.partition("\n")[0]
        text.append(f"## {first}\n\n```\n{run(name).rstrip()}\n```\n")
    if set(chosen) == set(ALL):
        RESULTS.write_text("\n".join(text), "utf8")
        print(f"written to {RESULTS.name}")


if __name__ == "__main__":
    main()
