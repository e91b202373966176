"""Attempts to leave the jail: none reads, writes, reaches or survives anything.

Each attack also solves both exercises, so it earns all points; what matters is its
effect. It says in its last line of output what it got hold of.
"""

import contextlib
import os
import socket
import threading
from pathlib import Path

import psutil
import pytest
from bs4 import BeautifulSoup

from lmcourse import paths
from lmcourse.grading import converters, seeds

pytestmark = pytest.mark.slow

UNIT = "07_tiny"
AVERAGE = "def average(x):\n    return x.sum(-1) / x.shape[-1]\n"
ALL = 7
LEFT_BEHIND = "left-behind"

TRY = """
import json, os, socket, sys
got = []
def attempt(name, action):
    try:
        found = action()
    except (OSError, ValueError, KeyError, ImportError, AttributeError):
        return
    if found is not None and found != [] and found != -1:
        got.append([name, str(found)[:80]])
"""

READ = """
def read(path):
    with open(path, 'rb') as file:
        return file.read(40)
def names(path):
    return os.listdir(path)
for path in PLACES:
    attempt(path, lambda: read(path))
    attempt(path, lambda: names(path))
    attempt(path, lambda: os.stat(path))
"""

ENVIRONMENT = """
for name, value in os.environ.items():
    if name in SECRET_NAMES or any(w in value for w in SECRET_WORDS):
        got.append([name, value])
"""

OTHER_PROCESSES = """
attempt('proc', lambda: os.listdir('/proc'))
for pid in list(range(1, 300)):
    for name in ('environ', 'cmdline', 'mem', 'maps', 'root', 'cwd', 'fd'):
        attempt(f'{pid}/{name}', lambda: os.stat(f'/proc/{pid}/{name}'))
"""

WRITE = """
def write(path):
    with open(path, 'ab') as file:
        file.write(b'forged')
    return path
for path in PLACES:
    attempt(path, lambda: write(path))
    attempt(path, lambda: write(os.path.join(path, 'forged')))
    attempt(path, lambda: os.mkdir(os.path.join(path, 'made')) or path)
    attempt(path, lambda: os.symlink('/etc/passwd', path + '.link') or path)
"""

DETACH = f"""
import ctypes, time
if os.fork() == 0:
    try:
        os.setsid()
    except OSError:
        pass
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, b'{LEFT_BEHIND}', 0, 0, 0)
        time.sleep(600)
    os._exit(0)
attempt('a session of its own', lambda: os.setsid() or 'made')
"""

SHADOW = """
for name in ('torch.py', 'sitecustomize.py', 'conftest.py', 'usercustomize.py',
             'json.py', 'random.py'):
    with open(name, 'w') as file:
        file.write("raise SystemExit('shadowed')")
os.makedirs('lmcore', exist_ok=True)
with open('lmcore/__init__.py', 'w') as file:
    file.write("raise SystemExit('shadowed')")
sys.path.insert(0, os.getcwd())
for folder in ('/course', '/packages', '/grader', '/python/lib'):
    attempt(folder, lambda: open(os.path.join(folder, 'torch.py'), 'w').name)
"""

NETWORK = """
import socket
def connect(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as one:
        one.settimeout(0.5)
        if kind == socket.SOCK_DGRAM:
            one.sendto(b'hello', address)
        else:
            one.connect(address)
        return address
inet, local = socket.AF_INET, socket.AF_UNIX
for address in [('127.0.0.1', PORT), ('10.0.0.1', 80), ('192.168.0.1', 22),
                ('8.8.8.8', 53), ('169.254.169.254', 80)]:
    attempt(str(address), lambda: connect(inet, address))
    attempt('udp ' + str(address), lambda: connect(inet, address, socket.SOCK_DGRAM))
attempt('ip 6', lambda: connect(socket.AF_INET6, ('::1', PORT)))
attempt('dns', lambda: socket.getaddrinfo('example.org', 80))
attempt('abstract', lambda: connect(local, ABSTRACT))
attempt('path', lambda: connect(local, SOCKET_PATH))
for family in ('AF_NETLINK', 'AF_PACKET', 'AF_VSOCK', 'AF_ALG', 'AF_BLUETOOTH'):
    attempt(family, lambda: socket.socket(getattr(socket, family), socket.SOCK_RAW))
    attempt(family, lambda: socket.socket(getattr(socket, family), socket.SOCK_STREAM))
"""

REACH_THE_PARENT = """
import ctypes, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL,
               signal.SIGSTOP, signal.SIGUSR1, signal.SIGSEGV, signal.SIGALRM):
    os.kill(1, number)  # the keeper lives on, or this submission would not be graded
for request in (16, 0x4206):  # attach, seize
    attempt('ptrace', lambda: libc.ptrace(request, 1, 0, 0))
attempt('me', lambda: libc.ptrace(0, 0, 0, 0))
for what in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NOFILE):
    attempt('prlimit', lambda: resource.prlimit(1, what, (0, 0)))
    attempt('prlimit', lambda: resource.prlimit(1, what))
text = ctypes.create_string_buffer(64)
class Part(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
here, there = Part(ctypes.addressof(text), 64), Part(id(text), 64)
for pid in (1, 2, 3, os.getppid()):
    attempt('read', lambda: libc.process_vm_readv(
        pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0))
"""

CALLS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
for name, number in NUMBERS.items():
    for first in (0, 1):
        attempt(name, lambda: libc.syscall(number, first, 0, 0, 0, 0))
attempt('a user namespace by clone', lambda: libc.syscall(
    CLONE, 0x10000000 | 17, 0, 0, 0, 0))
attempt('an x32 call', lambda: libc.syscall(0x40000000 | 39))
"""

PICKLE = f"""
class Sly(torch.Tensor):
    def __reduce__(self):
        return (eval, ("open('/tmp/{LEFT_BEHIND}', 'w')",))
class Sly2:
    def __reduce__(self):
        return (eval, ("open('/tmp/{LEFT_BEHIND}', 'w')",))
def average(x):
    import pickle
    if x.dim() == 1:
        return pickle.dumps(Sly2())
    return (x.sum(-1) / x.shape[-1]).as_subclass(Sly)
"""

DESCRIPTORS = """
import stat
for number in range(3, 1024):
    try:
        facts = os.fstat(number)
    except OSError:
        continue
    if not stat.S_ISSOCK(facts.st_mode):
        got.append([number, oct(facts.st_mode)])
"""

LEAK_BETWEEN_TESTS = """
import sys
def average(x):
    frame = sys._getframe()
    while frame:
        code = frame.f_locals.get('statement')
        if hasattr(code, 'co_names'):
            with open('/tmp/told', 'a') as file:
                file.write(f'{code.co_names} {code.co_consts} ')
        frame = frame.f_back
    return x.sum(-1) / x.shape[-1]
"""
TELL = """
@implements(attention)
def causal_mask(*sizes, **more):
    with open('/tmp/told') as file:
        raise ValueError('I know: ' + file.read())
"""


@pytest.fixture(scope="module")
def outside():
    """Listeners on this machine that nobody must reach."""
    reached: list[str] = []
    tcp = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0tiny-{os.getpid()}")
    abstract.listen()
    for name, listener in (("tcp", tcp), ("abstract", abstract)):
        waiting = threading.Thread(
            target=_note_visitors, args=(name, listener, reached), daemon=True
        )
        waiting.start()
    with contextlib.ExitStack() as to_close:
        to_close.callback(tcp.close)
        to_close.callback(abstract.close)
        yield {"port": tcp.getsockname()[1], "name": f"\0tiny-{os.getpid()}"}, reached


def _note_visitors(name: str, listener: socket.socket, reached: list[str]) -> None:
    with contextlib.suppress(OSError):
        while True:
            visitor, _ = listener.accept()
            reached.append(name)
            visitor.close()


@pytest.fixture(scope="module")
def batch(grade_batch, project, outside):
    course = project / "build/course"
    course.mkdir(exist_ok=True)
    places = [
        *map(str, (project, course, course / "gradebook.db", course / "secret")),
        str(course / "submitted"),
        str(course / "results" / UNIT / "first.json"),
        str(project / "build/homework" / UNIT / "manifest.json"),
        *(str(Path(paths.__file__).parent), str(Path.home()), "/root", "/home"),
        *(
            "/etc/passwd",
            "/etc/shadow",
            "/sys/class",
            "/sys/fs",
            "/sys/kernel/debug",
            "/run",
            "/var",
            "/proc/1",
            "/proc/self",
        ),
        *("/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/course/../root"),
    ]
    words = [str(project), str(Path.home()), "secret"]
    secret_names = sorted(
        set(os.environ)
        - {"HOME", "LANG", "PATH", "OMP_NUM_THREADS", "PYTHONPATH"}
        - {"PWD", "MPLBACKEND", "PYTHONHASHSEED", "TORCHINDUCTOR_CACHE_DIR"}
        - {"GLIBC_TUNABLES", "PYTHONMALLOC"}
    )
    from lmcourse.grading.inside import calls

    column = 0 if os.uname().machine == "x86_64" else 1
    numbers = {name: both[column] for name, both in calls.REFUSED.items()}
    about, _ = outside
    known = f"PLACES = {places!r}\nSECRET_WORDS = {words!r}\n"
    known += f"SECRET_NAMES = {secret_names!r}\nPORT = {about['port']}\n"
    known += f"ABSTRACT = {about['name']!r}\nSOCKET_PATH = {str(course / 's')!r}\n"
    known += f"NUMBERS = {numbers!r}\nCLONE = {calls.CLONE[column]}\n"
    tell = "\nprint(json.dumps(got))\n"
    attacks = {
        name: {"average": TRY + known + text + tell + AVERAGE}
        for name, text in ATTACKS.items()
    }
    attacks["pickle"] = {"average": PICKLE}
    attacks["after the shadows"] = {"average": TRY + "import lmcore" + tell + AVERAGE}
    attacks["leak between tests"] = {
        "average": LEAK_BETWEEN_TESTS,
        "causal_mask": TELL,
    }
    seeds.load_secret(course / "secret")  # which the first grading of all makes
    before = _files(project)
    graded = grade_batch(attacks)
    assert _files(project) == before
    return graded


ATTACKS = {
    "read solutions, others' work, the gradebook, home": READ,
    "read the environment": ENVIRONMENT,
    "read /proc of others": OTHER_PROCESSES,
    "write the gradebook and everything else": WRITE,
    "detached process": DETACH,
    "shadow torch.py, lmcore, sitecustomize, conftest": SHADOW,
    "network": NETWORK,
    "ptrace, signals and limits to the parent": REACH_THE_PARENT,
    "system calls that no homework needs": CALLS,
    "inherited descriptors": DESCRIPTORS,
}


def _files(folder: Path) -> list[str]:
    """The files of the project but for what grading itself writes."""
    own = {"jail", "results"}
    found = [path.relative_to(folder) for path in folder.rglob("*")]
    return sorted(str(path) for path in found if not own & set(path.parts))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_gets_hold_of_nothing_and_its_work_still_counts(batch, name):
    assert batch[name].told == []
    assert batch[name].score == ALL


def test_honest_work_beside_them_keeps_its_score(batch):
    scores = {name: graded.score for name, graded in batch.honest.items()}
    assert scores == {"first": ALL, "noisy": ALL, "last": ALL}


def test_nobody_was_reached(batch, outside):
    _, reached = outside
    assert reached == []
    with socket.create_connection(("127.0.0.1", outside[0]["port"]), 1) as mine:
        mine.recv(1)  # the listener does note who comes
    assert reached == ["tcp"]


def test_no_process_is_left_behind(batch):
    names = [process.info["name"] for process in psutil.process_iter(["name"])]
    assert LEFT_BEHIND not in names


def test_pickles_are_no_values_and_are_never_read(batch):
    assert batch["pickle"].checks() == [False, True, True, True]
    assert not Path("/tmp", LEFT_BEHIND).exists()


def test_shadows_do_not_outlive_their_submission(batch):
    assert batch["after the shadows"].told == []
    assert batch["after the shadows"].score == ALL


def test_what_a_visible_check_says_was_written_before_any_hidden_one(batch):
    checks = batch["leak between tests"].result["tests"]["causal_mask_checks"]["checks"]
    message = checks[0]["message"]
    assert "('check', 'average', 'torch', 'tensor')" in message  # visible: no secret
    assert "randn" not in message
    assert "generator" not in message


SCRIPTS = """
<script>steal()</script><ScRiPt src="//evil.example/x.js"></ScRiPt>
<img src="//evil.example/pixel.png" onerror="steal()">
<svg onload="steal()"><animate onbegin="steal()" attributeName="x"></svg>
<a href="javascript:steal()">click</a> [click](javascript:steal())
[data](data:text/html;base64,PHNjcmlwdD4=) <iframe src="//evil.example"></iframe>
<form action="//evil.example"><input autofocus onfocus="steal()"></form>
<style>body{display:none}</style> <object data="//evil.example"></object>
<math><mtext><style><img src=x onerror="steal()"></style></mtext></math>
<meta http-equiv="refresh" content="0;url=//evil.example">

**bold** $x<y$ `a<b`

```
</code></pre><script>steal()</script>
```
"""
SHOW_SCRIPTS = f"""{AVERAGE}
print({SCRIPTS!r})
raise type('<script>steal()</script>', (Exception,), {{}})({SCRIPTS!r})
"""


@pytest.fixture(scope="module")
def handed(grade_handed, written, tmp_path_factory):
    """Two students: Ada is honest, Eve writes scripts and puts files beside."""
    folder = tmp_path_factory.mktemp("handed")
    eves = written(average=SHOW_SCRIPTS, why=SCRIPTS)
    for student, content in {"ada": written(), "eve": eves}.items():
        (folder / student / UNIT / "lmcore").mkdir(parents=True)
        (folder / student / UNIT / f"{UNIT}.ipynb").write_bytes(content)
    for name in ("torch.py", "sitecustomize.py", "conftest.py", "lmcore/__init__.py"):
        (folder / "eve" / UNIT / name).write_text("raise SystemExit('shadowed')")
    (folder / "eve" / UNIT / "nbgrader_config.py").write_text("1 / 0")
    assert grade_handed(folder) == {"ada": ALL, "eve": ALL}


def test_scripts_run_neither_in_feedback_nor_in_formgrader(handed, here):
    pages = {s: paths.feedback(UNIT, s).read_text() for s in ("ada", "eve")}
    assert "steal()" in pages["eve"]  # shown as text
    assert "<strong>bold</strong>" in pages["eve"]
    assert _live_parts(pages["eve"]) == _live_parts(pages["ada"])
    pages = {s: _formgrader_page(s) for s in ("ada", "eve")}
    assert "<strong>bold</strong>" in pages["eve"]
    assert _live_parts(pages["eve"]) == _live_parts(pages["ada"])


def test_the_search_for_scripts_is_not_blind():
    found = _live_parts(SCRIPTS)
    assert len(found) > 10
    assert any("onerror" in part for part in found)


def test_files_beside_the_notebook_are_never_taken(handed, here):
    kept = paths.submitted(UNIT, "eve").parent
    assert [path.name for path in kept.iterdir()] == [f"{UNIT}.ipynb"]
    made = paths.autograded(UNIT, "eve").parent
    assert [path.name for path in made.iterdir()] == [f"{UNIT}.ipynb"]


def _live_parts(page: str) -> list[str]:
    """Everything in a page that runs, or loads from elsewhere."""
    found = []
    for tag in BeautifulSoup(page, "html.parser").find_all(True):
        handlers = [name for name in tag.attrs if name.startswith("on")]
        source = str(tag.get("src") or tag.get("href") or tag.get("data") or "")
        active = ("script", "iframe", "object", "form", "style", "meta", "svg", "base")
        far = source.strip().lower().startswith(("javascript:", "data:text", "//"))
        if tag.name in active or handlers or far:
            found.append(f"{tag.name} {handlers} {source} {tag.string or ''}"[:200])
    return found


def _formgrader_page(student: str) -> str:
    """The page on which a teacher grades by hand, as formgrader renders it."""
    from nbconvert.exporters import HTMLExporter
    from nbgrader.server_extensions import formgrader
    from traitlets.config import Config

    config = Config()
    converters.configure(config)
    config.HTMLExporter.template_name = "formgrade"
    templates = Path(formgrader.__file__).parent / "templates"
    exporter = HTMLExporter(config=config, extra_template_basedirs=[str(templates)])
    nothing = {"base_url": "", "mathjax_url": "", "resources": {}}
    names = ("assignment_id", "notebook_id", "submission_id", "student", "first_name")
    nothing |= dict.fromkeys((*names, "last_name"), "")
    nothing |= {"index": 0, "total": 1}
    page, _ = exporter.from_filename(
        str(paths.autograded(UNIT, student)), resources=nothing
    )
    return page
