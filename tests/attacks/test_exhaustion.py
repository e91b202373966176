"""Attempts to use up the machine: each costs its own question, and nobody else's.

All limits of the tiny unit are two seconds and 512 MB. The second exercise of each
attack is right and earns its three points, unless the attack goes for it as well.
"""

import shutil
import signal

import psutil
import pytest

from lmcourse.grading.inside import jail

pytestmark = pytest.mark.slow

RIGHT = "def average(x):\n    return x.sum(-1) / x.shape[-1]\n"
ALL, SECOND_ONLY, NOTHING = 7, 3, 0

SLEEP = "import time\ntime.sleep(29)\n"

IGNORED_SIGNALS = """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
def average(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
"""

KILL_EVERYTHING = """
def average(x):
    import os, signal
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(-1, signal.SIGKILL)
    return x.sum(-1) / x.shape[-1]
"""

MANY_LARGE_PROCESSES = """
import json, os, signal
children, (end, _) = [], os.pipe()
for _ in range(5):
    child = os.fork()
    if child == 0:
        kept = b'x' * (400 << 20)
        os.read(end, 1)
        os._exit(0)
    children.append(child)
first, how = os.wait()
for child in children:
    if child != first:
        os.kill(child, signal.SIGKILL)
print(json.dumps({'of': len(children), 'killed by': os.WTERMSIG(how)}))
"""

FORK_BOMB = """
def average(x):
    import os
    while True:
        try:
            os.fork()
        except OSError:
            pass
"""

COUNTED_FORKS = """
import json, os, time
n = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        n += 1
except OSError:
    print(json.dumps({'forks': n}))
os.kill(0, 0)
"""

THREAD_BOMB = """
def average(x):
    import threading, time
    while True:
        threading.Thread(target=time.sleep, args=(60,)).start()
"""

DISK = """
import errno, json, os
def fill(folder):
    written = number = 0
    try:
        while True:
            number += 1
            with open(f'{folder}/{number}', 'wb') as file:
                while file.tell() < 60 << 20:
                    written += file.write(bytes(1 << 20))
    except OSError as error:
        return [written >> 20, errno.errorcode[error.errno]]
def litter(folder):
    number = 0
    try:
        while number < 10**6:
            open(f'{folder}/empty{number}', 'w').close()
            number += 1
    except OSError:
        return number
told = {folder: fill(folder) for folder in ('/tmp', '/dev/shm')}
told['files'] = litter('/tmp')
try:
    with open('/dev/shm/large', 'wb') as file:
        file.truncate(10**12)
except OSError as error:
    told['large'] = errno.errorcode[error.errno]
print(json.dumps(told))
"""

SURROGATES = """
print('\\ud800 \\udfff')
class Odd(Exception):
    pass
Odd.__name__ = Odd.__qualname__ = 'Odd\\ud800'
def average(x):
    if x.dim() == 1:
        return {'\\ud800': ['\\udc00', '\\x00', '\\u202e']}
    raise Odd('\\ud800\\x00\\x1b[2J')
"""

AT_EXIT = """
import atexit, os, signal, threading
def forever():
    while True:
        pass
atexit.register(forever)
threading._register_atexit(forever)
os.register_at_fork(after_in_child=lambda: None)
for number in (signal.SIGTERM, signal.SIGXCPU, signal.SIGALRM):
    signal.signal(number, lambda *a: None)
class Stays:
    def __del__(self):
        forever()
stays = Stays()
"""

SLOW_TO_JUDGE = """
def average(x):
    return [[0.5] * 400 for _ in range(400)]
"""

ENDLESS_ERROR = """
class Slow(Exception):
    def __str__(self):
        while True:
            pass
def average(x):
    raise Slow
"""

FLOOD_THE_PIPE = """
def average(x):
    import os
    for number in range(3, 256):
        try:
            os.set_blocking(number, True)
            os.write(number, bytes([255]) * (1 << 20))
        except OSError:
            pass
"""

DEEP = """
def average(x):
    value = []
    for _ in range(100_000):
        value = [value]
    return value
"""

ATTACKS = {  # name: (the cell of the first exercise, the points of all)
    "endless loop in a cell": ("while True:\n    pass", SECOND_ONLY),
    "endless loop": ("def average(x):\n    while True:\n        pass", SECOND_ONLY),
    "ignored signals": (IGNORED_SIGNALS, SECOND_ONLY),
    "endless error message": (ENDLESS_ERROR, SECOND_ONLY),
    "os._exit in a cell": (RIGHT + "import os\nos._exit(0)", SECOND_ONLY),
    "SIGKILL": (
        "def average(x):\n    import os\n    os.kill(os.getpid(), 9)",
        SECOND_ONLY,
    ),
    "SIGKILL to all": (KILL_EVERYTHING, SECOND_ONLY),
    "segfault": (
        "def average(x):\n    import ctypes\n    ctypes.string_at(0)",
        SECOND_ONLY,
    ),
    "stack overflow": (
        "def average(x):\n    import sys\n    sys.setrecursionlimit(10**9)\n"
        "    f = lambda n: sorted([n], key=f)\n    f(1)",
        SECOND_ONLY,
    ),
    "memory": ("def average(x):\n    return torch.ones(10**9).sum()", SECOND_ONLY),
    "memory of lists": (
        "def average(x):\n    kept = []\n    while 1:\n        kept.append([1] * 999)",
        SECOND_ONLY,
    ),
    "memory of many processes": (RIGHT + MANY_LARGE_PROCESSES, ALL),
    "fork bomb": (FORK_BOMB, SECOND_ONLY),
    "counted forks": (RIGHT + COUNTED_FORKS, None),
    "thread bomb": (THREAD_BOMB, SECOND_ONLY),
    "disk": (RIGHT + DISK, ALL),
    "200 MB on one line": (RIGHT + "print('x' * 200_000_000)", ALL),
    "a million lines": (RIGHT + "for i in range(10**6):\n    print(i)", ALL),
    "a flood past Python": (
        RIGHT + "import os\nfor _ in range(200):\n    os.write(1, bytes(10**6))",
        ALL,
    ),
    "lone surrogates": (SURROGATES, SECOND_ONLY),
    "atexit": (RIGHT + AT_EXIT, ALL),
    "slow to judge": (SLOW_TO_JUDGE, SECOND_ONLY),
    "too many values": ("def average(x):\n    return [0] * 10**7", SECOND_ONLY),
    "too large a tensor": (
        "def average(x):\n    return torch.zeros(30_000_000)",
        SECOND_ONLY,
    ),
    "too deep a value": (DEEP, SECOND_ONLY),
    "flood the pipe": (FLOOD_THE_PIPE, SECOND_ONLY),
    "CUDA is absent": (
        "def average(x):\n    return x.to('cuda').sum(-1) / x.shape[-1]",
        SECOND_ONLY,
    ),
}
SLEEPS = {"average": SLEEP + RIGHT, "causal_mask": SLEEP}


def worlds() -> set[psutil.Process]:
    """The processes of students' worlds that this one has started."""
    return {
        process
        for process in psutil.Process().children(recursive=True)
        if "inside.student" in " ".join(process.cmdline())
    }


@pytest.fixture(scope="module")
def worlds_of_others() -> set[psutil.Process]:
    """Students' worlds that other files' tests keep warm in this process."""
    return worlds()


@pytest.fixture(scope="module")
def batch(worlds_of_others, grade_batch):
    attacks = {name: {"average": text} for name, (text, _) in ATTACKS.items()}
    return grade_batch(attacks | {"sleeps in every cell": SLEEPS})


@pytest.mark.parametrize("name", [n for n, (_, p) in ATTACKS.items() if p is not None])
def test_the_attack_costs_its_own_question_only(batch, name):
    assert batch[name].result["status"] == "graded"
    assert batch[name].score == ATTACKS[name][1]


def test_honest_work_beside_them_keeps_its_score(batch):
    scores = {name: graded.score for name, graded in batch.honest.items()}
    assert scores == {"first": ALL, "noisy": ALL, "last": ALL}


def test_sleeping_cells_are_left_out(batch):
    graded = batch["sleeps in every cell"]
    assert graded.score == NOTHING
    ends = {graded.result["cells"][name]["end"] for name in ("average", "causal_mask")}
    assert ends == {"timeout"}


def test_all_processes_together_have_a_limit_of_memory(batch):
    told = batch["memory of many processes"].told
    assert told == {"of": 5, "killed by": signal.SIGKILL}


def test_processes_are_few(batch):
    assert 0 < batch["counted forks"].told["forks"] < jail.N_PROCESSES


def test_the_disk_is_small_and_is_none_of_ours(batch):
    told = batch["disk"].told
    for folder in ("/tmp", "/dev/shm"):
        megabytes, error = told[folder]
        assert 32 <= megabytes <= 64
        assert error == "ENOSPC"
    assert 0 < told["files"] < 10_000
    assert told["large"] == "EFBIG"
    assert shutil.disk_usage("/tmp").free > 0


def test_output_is_cut(batch):
    for name in ("200 MB on one line", "a million lines"):
        assert 9_000 < len(batch[name].output) < 13_000, name


def test_the_report_names_why(batch):
    def end(name: str) -> str:
        return batch[name].result["tests"]["average_checks"]["end"]

    assert end("endless loop") == end("ignored signals") == "timeout"
    assert end("SIGKILL") == end("segfault") == "crash"
    assert end("SIGKILL to all") == "done"  # there is nobody whom they could kill


def test_nothing_goes_on_running(batch, worlds_of_others):
    assert worlds() - worlds_of_others == set()
