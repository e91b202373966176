"""What a page of the book says about its own run, measured by the page's own kernel.

The book's build adds a hidden last cell to every page with code; it calls `show`.
"""

import datetime
import platform
import sys
from pathlib import Path

import psutil

MIME_TYPE = "application/vnd.lmcourse.run+json"
NAME = "lmcourse-run"  # under which the build finds it among the page's glued values


def measure() -> dict[str, str | float]:
    """Return when and on what this process runs, and what it has cost so far."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": torch.__version__.partition("+")[0],
        "python": platform.python_version(),
        "device": device_name(),
        "cpu_seconds": round(sum(psutil.Process().cpu_times()[:4]), 1),
        "peak_mb": round(peak_bytes() / 2**20),
    }


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name() -> str:
    """Name what the page's tensors were computed on: the GPU if there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def show() -> None:
    """Leave the record in the notebook, for the build to read."""
    from IPython.display import display

    glued = {"scrapbook": {"name": NAME, "mime_prefix": ""}}
    display({MIME_TYPE: measure()}, raw=True, metadata=glued)
