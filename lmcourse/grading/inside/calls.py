"""Refuse the system calls that no homework needs, with a seccomp filter.

Namespaces hide files, processes and networks; they do not hide the kernel. This filter
takes away three kinds of calls: those with which one process reaches into another
(``ptrace``, ``prlimit`` of another), those that hold memory or secrets which no limit
counts (``memfd_create``, System V memory, key rings), and those in which most holes of
the kernel were found (``bpf``, ``io_uring``, ``mount``, new user namespaces).

The filter is a program for the kernel's classic BPF machine: a list of compare-and-jump
instructions, run before every system call. Written out here in fifty lines, it needs no
library in the jail. Numbers differ between processors: where they are not known, there
is no filter, and the jail has its namespaces and limits only.
"""

import ctypes
import errno
import platform
import struct

PR_SET_SECCOMP, FILTER_MODE = 22, 2
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, ARGUMENT = 0, 4, 16  # places in the kernel's seccomp_data
NAMESPACES = 0x7E020000  # the flags of clone that make namespaces
LOCAL = 1  # the family of sockets between processes of one machine
X32 = 0x40000000  # a second set of numbers for the same calls, on x86_64
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

REFUSED = {  # name: (number on x86_64, number on aarch64)
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setns": (308, 268),
    "setsid": (112, 157),  # a session of its own gets a processor's share of its own
    "shmget": (29, 194),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
CLONE, CLONE3 = (56, 220), (435, 435)
SOCKET, PRLIMIT = (41, 198), (302, 261)


def program(machine: str) -> bytes:
    """The filter for a processor, ``x86_64`` or ``aarch64``."""
    column = list(AUDIT).index(machine)
    lines = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, AUDIT[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, REFUSE | errno.ENOSYS),
    ]
    for numbers in REFUSED.values():
        lines += _refuse(numbers[column], errno.EPERM)
    # The C library then uses clone, whose flags can be seen.
    lines += _refuse(CLONE3[column], errno.ENOSYS)
    lines += _by_argument(CLONE[column], (ANY_BIT, 1, 0, NAMESPACES), errno.EPERM)
    lines += _by_argument(SOCKET[column], (EQUAL, 0, 1, LOCAL), errno.EAFNOSUPPORT)
    lines += _by_argument(PRLIMIT[column], (EQUAL, 0, 1, 0), errno.EPERM)
    lines.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


Line = tuple[int, int, int, int]  # instruction, jump if true, jump if false, operand


def _refuse(number: int, error: int) -> list[Line]:
    return [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE | error)]


def _by_argument(number: int, allowed_unless: Line, error: int) -> list[Line]:
    """Look at a call's first argument; a jump of one instruction refuses it."""
    return [
        (EQUAL, 0, 4, number),
        (LOAD, 0, 0, ARGUMENT),
        allowed_unless,
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, REFUSE | error),
    ]


def refuse_needless() -> bool:
    """Put the filter on this process and all it forks; False where none is known.

    Raises:
        OSError: if the kernel takes no filter.
    """
    if platform.machine() not in AUDIT:
        return False
    code = ctypes.create_string_buffer(program(platform.machine()))
    n_lines = (len(code) - 1) // 8
    described = struct.pack("HL", n_lines, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, FILTER_MODE, described, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")
    return True
