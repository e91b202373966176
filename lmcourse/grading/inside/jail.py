"""Namespaces and limits of one submission, asked from the kernel through ``ctypes``.

The warm parent already lives in bubblewrap's read-only root without network and
capabilities. Each submission gets a user, process, mount, network and IPC namespace of
its own on top: it sees no process but its own, and writes to nothing but an empty
folder in memory that disappears with it.
"""

import ctypes
import os
import resource
import signal

from . import calls

NEWNS, NEWUTS, NEWIPC = 0x00020000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
READ_ONLY, NOSUID, NODEV = 0x1, 0x2, 0x4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
NOBODY = 65534
WORKPLACE = "/tmp"
N_FILES = 128  # open ones of one process, sockets and pipes included
N_PROCESSES = 28  # and threads, of one submission; three of them are ours


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def become_nobody() -> None:
    """Give up the rights of root, with which bubblewrap had to be started."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)  # to write one's own uid map


def enter(disk_mb: int = 64, hide_proc: bool = True) -> None:
    """Return in a new process, the first one of namespaces of its own.

    The calling process waits for that process and then ends; it never returns.

    Args:
        disk_mb: how much the two folders in memory may hold, each
        hide_proc: put an empty folder in the place of ``/proc``

    Raises:
        OSError: if the kernel refuses.
    """
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", NEWUSER | NEWPID | NEWNS | NEWNET | NEWIPC | NEWUTS)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if (first := os.fork()) != 0:
        os.waitpid(first, 0)
        os._exit(0)
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    size = f"size={disk_mb}m,nr_inodes=4096,mode=0700"
    if hide_proc:
        _mount_empty("/proc", "size=4k,nr_inodes=1,mode=0555", READ_ONLY)
    for folder in ("/dev/shm", WORKPLACE):
        _mount_empty(folder, size)
    os.chdir(WORKPLACE)
    drop_capabilities()
    calls.refuse_needless()
    # Without this, other processes of the same user could read this one's memory.
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


def _mount_empty(folder: str, options: str, flags: int = 0) -> None:
    """Put an empty folder, which lives in memory, over another one."""
    flags |= NOSUID | NODEV
    _call("mount", b"tmpfs", folder.encode(), b"tmpfs", flags, options.encode())


def drop_capabilities() -> None:
    """Give up, for good, the powers over the new namespaces."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails beyond the last one
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def address_space() -> int:
    """The bytes of address space this process has now; 0 where nobody can say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def limit_submission(memory_bytes: int, seconds: float) -> None:
    """Set what no process of the submission may exceed.

    ``seconds`` is what one process may compute, all its cells together; what one cell
    may, `limit_work` says.
    """
    _limit(resource.RLIMIT_CORE, 0, 0)
    _limit(resource.RLIMIT_FSIZE, 64 << 20, 64 << 20)
    _limit(resource.RLIMIT_NOFILE, N_FILES, N_FILES)
    _limit(resource.RLIMIT_NPROC, N_PROCESSES, N_PROCESSES)
    whole = int(seconds) + 1
    _limit(resource.RLIMIT_CPU, whole, whole)
    if memory_bytes:
        _limit(resource.RLIMIT_AS, memory_bytes, memory_bytes)


def limit_work(memory_bytes: int, seconds: float) -> None:
    """Set how much more this process may compute, and its memory."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _limit(resource.RLIMIT_CPU, int(used + seconds) + 1, None)
    if memory_bytes:
        _limit(resource.RLIMIT_AS, memory_bytes, None)


def _limit(what: int, soft: int, hard: int | None) -> None:
    most = resource.getrlimit(what)[1]
    hard = most if hard is None else hard
    if most != resource.RLIM_INFINITY:
        hard = min(hard, most)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(what, (soft, hard))
