"""What a homework notebook imports: put your work into lmcore, and check it.

A check runs in one of two ways. In your notebook it compares your value with the
expected one and explains what is wrong. When the homework is graded it only writes your
value down as plain data; somewhere else the same cell runs with the reference, and the
two records are compared. Inputs drawn from `generator` are other ones then, so the
hidden checks vary what your code is given, never what it must do.

A notebook meets `checks` alone. Behind it stand `notebook` (judge and explain), `plain`
and `compare` (values as data, and how two of them differ), `forbidden` (calls that
would bypass an exercise), `unwritten` (what a stub says) and `my_work` (what earlier
notebooks hold).
"""

from .checks import (
    Recorder,
    check,
    generator,
    implements,
    load_my_work,
    progress,
    question,
    refusal,
    value,
)
from .notebook import CheckFailed

__all__ = [
    "CheckFailed",
    "Recorder",
    "check",
    "generator",
    "implements",
    "load_my_work",
    "progress",
    "question",
    "refusal",
    "value",
]
