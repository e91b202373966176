"""The homework: from ``solutions/*.md`` and lmcore to what students get.

lmcore/attention.py ─┐
solutions/08_….md  ──┴─► build/course/source ─► nbgrader ─► exercises/, student kit
                                   └─► manifest: what the grader needs to know
"""

from ..paths import manifest as manifest_path
from .builder import Built, build, check_released, units
from .kit import blank_lmcore, build_kit
from .ladder import Step, ladder
from .manifest import Manifest
from .manifest import load as load_manifest
from .text import SourceError

__all__ = [
    "Built",
    "Manifest",
    "SourceError",
    "Step",
    "blank_lmcore",
    "build",
    "build_kit",
    "check_released",
    "ladder",
    "load_manifest",
    "manifest_path",
    "units",
]
