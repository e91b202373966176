"""Run the cells of a notebook and the statements of a check, in either world.

The student's world and the reference world run cells with the same functions and the
same seeds; only what stands in ``lmcore`` and in the cells differs.
"""

import ast
import base64
import contextlib
import io
import linecache
import marshal
import random
import sys
import traceback
import types
import warnings
from typing import Any

import numpy as np
import torch

from lmcore.homework import checks

MAX_TEXT = 10_000  # characters of a cell's output that are kept
MAX_MESSAGE = 500  # characters of an error's message


class Output(io.TextIOBase):
    """Keeps the first characters of what a cell prints."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.room = MAX_TEXT

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.room > 0:
            self.parts.append(text[: self.room])
            self.room -= len(text)
        return len(text)

    def text(self) -> str:
        note = "\n[more was printed and is left out]" if self.room < 0 else ""
        return "".join(self.parts) + note


def new_namespace() -> dict[str, Any]:
    """The empty notebook: a module ``__main__`` of its own."""
    main = types.ModuleType("__main__")
    main.__dict__["display"] = print
    sys.modules["__main__"] = main
    checks._world = checks.Recorder(seed=0, question="")
    return main.__dict__


def use(device: str) -> None:
    """Have tensors made on a device unless a cell says otherwise, in this process.

    Raises:
        RuntimeError: if it cannot be used here.
    """
    if device == "cpu":
        return
    try:
        torch.empty(1, device=device).sum().item()
    except Exception as error:
        cause = str(error).splitlines()[0]
        raise RuntimeError(f"{device} cannot be used here: {cause}") from None
    torch.set_default_device(device)
    torch.backends.cudnn.allow_tf32 = False  # all digits, as on a processor


def set_seed(seed: int) -> None:
    """Bring every source of random numbers to the same state."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # torch.manual_seed takes milliseconds to ask
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def parse_cell(source: str) -> ast.Module:
    """Parse a cell; IPython's own commands (``%``, ``!``, ``?``) are left out.

    Raises:
        SyntaxError: if it is no Python; ValueError, RecursionError and MemoryError for
            text that Python's parser refuses for another reason.
    """
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.parse("\n".join(map(_without_command, source.split("\n"))))


def compile_cell(source: str, name: str) -> types.CodeType:
    """Compile a cell, so that errors and `inspect` can show its lines."""
    filename = f"<cell {name}>"
    tree = parse_cell(source)
    linecache.cache[filename] = (
        len(source),
        None,
        source.splitlines(keepends=True),
        filename,
    )
    return compile(tree, filename, "exec")


def _without_command(line: str) -> str:
    bare = line.lstrip()
    if bare.startswith(("%", "!", "?")) or bare.rstrip().endswith("?"):
        return line[: len(line) - len(bare)] + "pass"
    return line


def run_cell(source: str, name: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """Run a cell as a notebook would.

    Returns:
        ``output``, what it printed, shortened, and ``error``, the error that ended it
        (see `describe`) or None.
    """
    output = Output()
    error = None
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            with warnings.catch_warnings():
                exec(compile_cell(source, name), namespace)
        except BaseException as problem:
            error = describe(problem)
    return {"output": output.text(), "error": error}


def describe(problem: BaseException) -> dict[str, Any]:
    """An error as plain text: its type, whether that is Python's own, its message."""
    kind = type(problem)
    builtin = kind.__module__ == "builtins" and kind.__qualname__ in dir(
        sys.modules["builtins"]
    )
    try:
        message = str(problem)[:MAX_MESSAGE]
    except BaseException:
        message = ""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(problem.__traceback__)
        if frame.filename.startswith("<cell ")
    ]
    return {
        "error": kind.__name__[:100],
        "builtin": builtin,
        "message": message,
        "line": lines[-1] if lines else None,
    }


def unpacked(statement: str) -> types.CodeType:
    """A statement that ``cells.bare_tests`` has compiled, by the same Python."""
    return marshal.loads(base64.b64decode(statement))


class Test:
    """One test cell, run statement by statement, so that one error costs one check."""

    def __init__(self, question: str, seed: int, namespace: dict[str, Any]) -> None:
        self.seed = seed
        self.statements = 0
        self.namespace = dict(namespace)
        self.recorder = checks.Recorder(seed=seed, question=question)

    def run(
        self, statement: types.CodeType
    ) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """Run the next statement.

        Random numbers are seeded anew for each statement: a solution that draws more
        or fewer of them than the reference changes no later input.

        Returns:
            What it recorded, and the error that ended it or None.
        """
        checks._world = self.recorder
        self.recorder.statement, self.recorder._nth = self.statements, 0
        set_seed(self.seed + self.statements)
        self.statements += 1
        known = len(self.recorder.records)
        error = None
        nowhere = Output()
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    exec(statement, self.namespace)
            except BaseException as problem:
                error = describe(problem)
        return self.recorder.records[known:], error
