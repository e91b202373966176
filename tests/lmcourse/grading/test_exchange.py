"""nbgrader's exchange: the users of one machine, and what students may put into it.

The users are real: other numbers, other homes, folders of their own. They and their
machine's exchange exist in a mount namespace only, which goes with the test. What they
type is what `book/teachers.md` says, and so is the configuration of the JupyterHub that
they use in a second test, by HTTP as their browsers would.
"""

import contextlib
import importlib.util
import json
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from nbgrader.coursedir import CourseDirectory
from nbgrader.exchange import ExchangeFactory

from lmcourse import homework, paths
from lmcourse.grading import (
    converters,
    engine,
    exchange,
    gradebook,
    intake,
    receipts,
    sample_class,
)

UNIT = "07_tiny"
COURSE = gradebook.COURSE
REPOSITORY = Path(__file__).parents[3]
TEACHERS = REPOSITORY / "book" / "teachers.md"
USERS = {"teacher": 60101, "ada": 60102, "bob": 60103, "carl": 60104}
PLACE = f"/usr/local/share/nbgrader/exchange/{COURSE}"
NEEDED = ("unshare", "nsenter", "setpriv", "mount", "install")
PASSWORD = "a password"
SHADOW = (  # the same, as the system keeps it
    "$6$bythebook$JRat8qbQllKvnFMW/Gip0hZrFWQLMnRocnRVpUXXED/dqT5"
    "c3IFRV7JlADao.s4i229/W2.6VlFaYUHau0NhD/"
)
SECONDS = 240  # for the hub, or somebody's server, to start


class Machine:
    """A machine of our own, as far as files and users go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lines = ["set -e", *self._users(), *self._way_to_python()]
        lines += ["mount -t tmpfs none /usr/local/share", "echo ready", "exec cat"]
        self.process = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--propagation=private",
                "sh",
                "-c",
                "\n".join(lines),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.ready = self.process.stdout.readline() == "ready\n"

    def stop(self) -> str:
        """End it; gives what it complained about."""
        return self.process.communicate()[1].strip()

    def _users(self) -> Iterator[str]:
        passwd = Path("/etc/passwd").read_text(encoding="utf-8")
        yield "mount -t tmpfs none /home"
        for name, number in USERS.items():
            passwd += f"{name}:x:{number}:{number}::/home/{name}:/bin/sh\n"
            yield f"install -d -m 700 -o {number} -g {number} /home/{name}"
        shadow = "".join(f"{name}:{SHADOW}:20000::::::\n" for name in USERS)
        for name, text in (("passwd", passwd), ("shadow", shadow)):
            (self.folder / name).write_text(text, encoding="utf-8")
            yield f"mount --bind {self.folder / name} /etc/{name}"

    def _way_to_python(self) -> Iterator[str]:
        """Let everybody reach Python and the project, also inside a private home."""
        for i, path in enumerate({sys.base_prefix, sys.prefix, str(REPOSITORY)}):
            above = [*reversed(Path(path).parents), Path(path)]
            closed = [p for p in above if not p.stat().st_mode & 0o001]
            if not closed:
                continue
            kept, target = self.folder / f"kept{i}", shlex.quote(path)
            kept.mkdir()
            yield f"mount --bind {target} {kept}"
            yield f"[ -d {target}/. ] && mount -t tmpfs -o mode=755 none {closed[0]}"
            yield f"mkdir -p {target} && mount --bind {kept} {target}"

    def _typed(self, user: str, command: str, where: str) -> dict[str, Any]:
        """What a command is to `subprocess`, typed by a user below their home."""
        inside = ["nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt"]
        if user != "root":
            number = USERS[user]
            inside += ["setpriv", f"--reuid={number}", f"--regid={number}"]
            inside += ["--clear-groups"]
        home = "/root" if user == "root" else f"/home/{user}"
        folder = str(Path(sys.executable).parent)
        environment = {
            "HOME": home,
            "PATH": os.pathsep.join([folder, os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(
                [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "OMP_NUM_THREADS": "1",
            "LANG": "C.UTF-8",
        }
        text = f"cd {home}/{where} && {command}"
        return {"args": [*inside, "sh", "-c", text], "env": environment}

    def run(
        self, user: str, command: str, where: str = ""
    ) -> subprocess.CompletedProcess:
        """Type a command, as a user in a folder below their home, or as root."""
        return subprocess.run(
            **self._typed(user, command, where),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def start(self, user: str, command: str, log: Path) -> subprocess.Popen:
        """Type a command that goes on; what it says goes to a file."""
        with log.open("w") as file:
            typed = self._typed(user, f"exec {command}", "")
            return subprocess.Popen(**typed, stdout=file, stderr=file)

    def must(self, user: str, command: str, where: str = "") -> str:
        """Type a command that works; gives all that it says."""
        done = self.run(user, command, where)
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{user}: {command}\n{said}"
        return said

    def as_told(self, user: str, command: str, where: str = "") -> str:
        """Type a command of the page for teachers, for our tiny unit."""
        assert command in TEACHERS.read_text(encoding="utf-8"), command
        python = shlex.quote(sys.executable)
        typed = command.replace("08_attention", UNIT).removeprefix("sudo ")
        typed = typed.removeprefix(".venv/bin/")
        typed = typed.replace("lmcourse ", f"{python} -m lmcourse.cli ", 1)
        if typed.startswith("nbgrader "):
            typed = f"{python} -m {typed}"
        return self.must(user, typed, where)


def missing() -> str:
    """Why there can be no other users here, if so."""
    if os.getuid() != 0:
        return "only root can become two other users: nothing was tried with users"
    if lacking := [name for name in NEEDED if shutil.which(name) is None]:
        return f"{', '.join(lacking)} not installed: nothing was tried with users"
    return ""


@pytest.fixture
def machine(tmp_path) -> Iterator[Machine]:
    """A machine with a teacher and three students."""
    if reason := missing():
        pytest.skip(reason)
    made = Machine(tmp_path)
    if not made.ready:
        pytest.skip(f"no mount namespace of our own here: {made.stop()}")
    yield made
    made.stop()


WHEN = "2026-03-02 14:20:56.795510 UTC"


@pytest.fixture
def inbound(here, hand_in, tmp_path) -> Path:
    """The folder of an exchange that students can write into."""
    gradebook.make_assignment(UNIT, {"cells": homework.load_manifest(UNIT).cells})
    folder = tmp_path / "exchange" / COURSE / "inbound"
    folder.mkdir(parents=True)
    folder.parents[1].chmod(0o777)
    return folder


def submit(inbound: Path, name: str, content: bytes | None) -> Path:
    """What ``nbgrader submit`` leaves there."""
    folder = inbound / name
    folder.mkdir()
    (folder / "timestamp.txt").write_text(WHEN)
    (folder / "submission_secret.txt").write_text(f"of {name}")
    if content is not None:
        (folder / f"{UNIT}.ipynb").write_bytes(content)
    return folder


def collect(inbound: Path) -> dict[str, bytes | intake.Refusal]:
    """Collect as nbgrader's command does; gives what is there to be graded."""
    config = gradebook.settings()
    converters.configure(config)
    config.Exchange.root = str(inbound.parents[1])
    config.ExchangeCollect.update = True
    course = CourseDirectory(config=config)
    course.assignment_id = UNIT
    ExchangeFactory(config=config).Collect(coursedir=course, config=config).start()
    return engine.find_submissions(UNIT, paths.course() / "submitted", [])


def test_a_strange_submission_leads_nowhere_and_stops_nobody(inbound, handed_in):
    good, private = handed_in(), inbound.parents[1] / "private.ipynb"
    private.write_bytes(handed_in(why="Nobody else may see this."))
    end = f"+{UNIT}+{WHEN}+random"
    ada = submit(inbound, f"ada{end}", good)
    bob = submit(inbound, f"bob{end}", None)
    (bob / f"{UNIT}.ipynb").symlink_to(private)
    carl = submit(inbound, f"carl{end}", None)
    os.mkfifo(carl / f"{UNIT}.ipynb")
    dora = submit(inbound, f"dora{end}", None)
    os.link(private, dora / f"{UNIT}.ipynb")
    (inbound / f"eve{end}").symlink_to(ada)
    (inbound / f"fay{end}").symlink_to("/nowhere")
    gil = submit(inbound, f"gil{end}", good)
    (gil / "timestamp.txt").write_text("tomorrow, or so")
    (gil / "submission_secret.txt").write_bytes(b"\xff\xfe")
    (gil / "more.py").symlink_to("/etc/passwd")
    submit(inbound, f"..{end}", good)
    submit(inbound, f"hal+{UNIT}+no time", good)
    for _ in range(2):  # and once more, when there is something to update
        found = collect(inbound)
        kinds = {
            name: content.kind if isinstance(content, intake.Refusal) else content
            for name, content in found.items()
        }
        missing = dict.fromkeys(("bob", "carl", "dora", "eve", "fay"), "missing")
        assert kinds == {"ada": good, "gil": good, "unknown": good} | missing
    submitted = paths.course() / "submitted"
    found = receipts.read(submitted / "ada" / UNIT)
    assert found["timestamp.txt"].decode() == WHEN
    assert found["submission_secret.txt"].decode() == f"of ada{end}"
    assert {p.name for p in (submitted / "gil" / UNIT).iterdir()} == {f"{UNIT}.ipynb"}
    assert not (paths.course() / UNIT).exists()


def test_work_belongs_to_the_owner_of_its_folder(inbound, handed_in, monkeypatch):
    good, forged = handed_in(), handed_in(average="x = 1")
    submit(inbound, f"ada+{UNIT}+{WHEN}+a", good)
    submit(inbound, f"ada+{UNIT}+{WHEN.replace('2026', '2027')}+b", forged)
    owners = {"a": "ada", "b": "mallory"}
    monkeypatch.setattr(exchange, "_owner", lambda path: owners[path[-1]])
    assert collect(inbound) == {"ada": good, "mallory": forged}


def test_the_owner_is_the_system_s_word(tmp_path):
    assert exchange._owner(str(tmp_path)) is None  # we ourselves
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to others")
    os.chown(tmp_path, pwd.getpwnam("nobody").pw_uid, -1)
    assert exchange._owner(str(tmp_path)) == "nobody"
    os.chown(tmp_path, 4_000_000, -1)
    assert exchange._owner(str(tmp_path)) is None  # nobody we know


def test_what_the_exchange_needs_stands_beside_the_feedback(sandboxed, hand_in):
    folder = hand_in("ada").parent
    hand_in("bob")
    for secret in ("first", "second"):  # the same notebook, handed in twice
        (folder / "timestamp.txt").write_text(WHEN.replace("02", f"0{len(secret)}"))
        (folder / "submission_secret.txt").write_text(secret)
        engine.grade_folder(UNIT)
        for made in (paths.feedback, paths.autograded):
            beside = made(UNIT, "ada").parent
            assert receipts.read(beside) == receipts.read(folder)
            assert (beside / "submission_secret.txt").read_text() == secret
        with gradebook.open_gradebook() as book:
            day = book.find_submission(UNIT, "ada").timestamp.day
        assert day == len(secret)
    assert not (paths.feedback(UNIT, "bob").parent / "timestamp.txt").exists()


@pytest.fixture
def course_of_theirs(machine, project) -> None:
    """The teacher has the project in a folder of their home."""
    machine.must("root", f"cp -r {project} /home/teacher/course")
    machine.must("root", "chown -R teacher:60101 /home/teacher/course")
    probe = "from lmcourse.grading import sandbox; print(sandbox.why_unavailable())"
    reason = machine.must("teacher", f"{sys.executable} -c '{probe}'").strip()
    if reason != "None":
        pytest.skip(f"an ordinary user cannot lock code in here: {reason}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("course_of_theirs")
def test_release_hand_in_grade_and_give_back_between_users(machine, project):
    _release(machine)
    notebooks = _fetch(machine, project)
    _hand_in(machine, notebooks)
    _nobody_sees_others_work(machine)
    _collect_and_grade(machine)
    _give_back(machine)
    _hand_in_again(machine, notebooks)


def _prepare(machine: Machine) -> None:
    machine.as_told(
        "root", "sudo install -d -m 1777 /usr/local/share/nbgrader/exchange"
    )
    machine.as_told("teacher", "chmod 700 .", "course")
    machine.as_told("teacher", ".venv/bin/lmcourse release 08_attention", "course")


def _release(machine: Machine) -> None:
    _prepare(machine)
    said = machine.as_told(
        "teacher", ".venv/bin/nbgrader release_assignment 08_attention", "course"
    )
    assert f"Released as: {COURSE} {UNIT}" in said


def _fetch(machine: Machine, project: Path) -> dict[str, bytes]:
    """Three students fetch; gives what each will hand in."""
    for student in ("ada", "bob", "carl"):
        machine.as_told(
            student, f"nbgrader fetch_assignment 08_attention --course {COURSE}"
        )
        text = machine.must(student, f"cat {UNIT}/{UNIT}.ipynb")
        assert "return x.sum(-1)" not in text  # the solution stays with the teacher
    return _made_up(project)


def _made_up(project: Path) -> dict[str, bytes]:
    """What three students will hand in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        made = sample_class.submissions(UNIT)
    mistaken = next(name for name in made if name.startswith("mistake-"))
    return {"ada": made["all-right"], "bob": made[mistaken], "carl": made["blank"]}


def _write(machine: Machine, student: str, content: bytes) -> None:
    """A student works on the fetched notebook."""
    path = machine.folder / "work.ipynb"
    path.write_bytes(content)
    machine.must("root", f"cp {path} /home/{student}/{UNIT}/{UNIT}.ipynb")


def _submit(machine: Machine, student: str, more: str = "") -> str:
    command = f"nbgrader submit 08_attention --course {COURSE}"
    if more:
        python = shlex.quote(sys.executable)
        command = command.replace("08_attention", UNIT)
        return machine.must(student, f"{python} -m {command} {more}")
    return machine.as_told(student, command)


def _hand_in(machine: Machine, notebooks: dict[str, bytes]) -> None:
    for student in ("ada", "bob"):
        _write(machine, student, notebooks[student])
        assert "Submitted as" in _submit(machine, student)
    # Carl hands in his blank notebook as Ada's.
    _write(machine, "carl", notebooks["carl"])
    _submit(machine, "carl", "--student=ada")


def _nobody_sees_others_work(machine: Machine) -> None:
    inbound = machine.must("teacher", f"ls {PLACE}/inbound").splitlines()
    assert len(inbound) == 3
    forbidden = [
        f"ls {PLACE}/inbound",
        f"cat {PLACE}/inbound/*/*.ipynb",
        "ls /home/ada",
        "ls /home/teacher/course",
        "cat /home/teacher/course/build/course/gradebook.db",
        f"cat /home/teacher/course/build/course/source/{UNIT}/{UNIT}.ipynb",
        # Nor can a student put another course in the place of ours.
        f"mv {PLACE} {PLACE}-away",
        f"rm -r {PLACE}/outbound/{UNIT}",
        f"sh -c 'echo x > {PLACE}/outbound/{UNIT}/{UNIT}.ipynb'",
    ]
    for command in forbidden:
        done = machine.run("bob", command)
        assert done.returncode != 0, command
        assert done.stdout == "", command


def _collect_and_grade(machine: Machine) -> None:
    said = machine.as_told(
        "teacher", ".venv/bin/nbgrader collect 08_attention --update", "course"
    )
    assert "belongs to carl, so it counts as theirs" in said
    # Somebody who handed in another way is graded with them.
    other = "build/course/submitted"
    machine.must("teacher", f"mkdir -p {other}/dora/{UNIT}", "course")
    machine.must(
        "teacher", f"cp {other}/ada/{UNIT}/{UNIT}.ipynb {other}/dora/{UNIT}", "course"
    )
    said = machine.as_told("teacher", ".venv/bin/lmcourse grade 08_attention", "course")
    assert f"{UNIT}: 4 submissions, 4 graded now, 0 refused" in said
    assert "without a sandbox" not in said
    assert _scores(machine) == {"ada": 7, "bob": 3, "carl": 0, "dora": 7}


def _scores(machine: Machine) -> dict[str, float]:
    read = f"cat build/course/results/{UNIT}"
    return {
        student: json.loads(
            machine.must("teacher", f"{read}/{student}.json", "course")
        )["result"]["score"]
        for student in ("ada", "bob", "carl", "dora")
    }


def _give_back(machine: Machine) -> None:
    machine.as_told("teacher", ".venv/bin/lmcourse feedback 08_attention", "course")
    said = machine.as_told(
        "teacher", ".venv/bin/nbgrader release_feedback 08_attention", "course"
    )
    assert "Not handed in through the exchange, left out: dora" in said
    for student, points in (("ada", "7 of 9"), ("bob", "3 of 9"), ("carl", "0 of 9")):
        (page,) = _fetch_feedback(machine, student)
        assert f"{points} points" in page
        assert f">{student}<" in page or f" {student}" in page
    assert machine.run("bob", f"ls {PLACE}/feedback").returncode != 0


def _fetch_feedback(machine: Machine, student: str) -> list[str]:
    """The pages that a student has after fetching, the oldest submission's first."""
    machine.as_told(student, f"nbgrader fetch_feedback 08_attention --course {COURSE}")
    found = machine.must(student, f"find {UNIT}/feedback -name '*.html' | sort")
    return [machine.must(student, f"cat '{p}'") for p in found.splitlines()]


def _hand_in_again(machine: Machine, notebooks: dict[str, bytes]) -> None:
    """Bob has learnt from his feedback; Ada hands in the same notebook once more."""
    _write(machine, "bob", notebooks["ada"])
    for student in ("ada", "bob"):
        _submit(machine, student)
    machine.as_told(
        "teacher", ".venv/bin/nbgrader collect 08_attention --update", "course"
    )
    said = machine.as_told("teacher", ".venv/bin/lmcourse grade 08_attention", "course")
    assert "4 submissions, 1 graded now" in said
    assert _scores(machine)["bob"] == 7
    machine.as_told(
        "teacher", ".venv/bin/nbgrader release_feedback 08_attention", "course"
    )
    for student in ("ada", "bob"):
        pages = _fetch_feedback(machine, student)
        assert len(pages) == 2
        assert "7 of 9 points" in pages[-1]


class Hub:
    """A JupyterHub on the machine, configured as the page for teachers says."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        page = TEACHERS.read_text(encoding="utf-8")
        (config,) = re.findall(r"```python\n([^`]*JupyterHub\.bind_url[^`]*)```", page)
        port, proxy, own = _free_ports(3)
        assert config.count("8000") == 1
        # Nothing but the numbers of ports is another than in the page.
        config = config.replace("8000", str(port)) + (
            f'c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy}"\n'
            f'c.JupyterHub.hub_bind_url = "http://127.0.0.1:{own}"\n'
        )
        (folder / "jupyterhub_config.py").write_text(config, encoding="utf-8")
        self.address, self.log = f"http://127.0.0.1:{port}", folder / "hub.log"
        start = f"env --chdir={folder} {sys.executable} -m jupyterhub"
        self.process = machine.start("root", start, self.log)

    def wait(self) -> None:
        """Wait until people can log in."""
        _until(lambda: requests.get(f"{self.address}/hub/login", timeout=10).ok, self)

    def stop(self) -> None:
        """End it, and with it all users' servers."""
        servers = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        for process in (self.process, *servers):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


class Browser:
    """Somebody who has logged in and whose server runs."""

    def __init__(self, hub: Hub, user: str) -> None:
        self.hub, self.session = hub, requests.Session()
        self.server = f"{hub.address}/user/{user}"
        login = f"{hub.address}/hub/login"
        self.session.get(login, timeout=60)
        form = {"username": user, "password": PASSWORD, "_xsrf": self.token("/hub/")}
        assert self.session.post(login, data=form, timeout=60).ok
        self.session.get(f"{hub.address}/hub/spawn", timeout=60)
        _until(lambda: self.reaches(f"{self.server}/courses"), hub)

    def token(self, path: str) -> str | None:
        return self.session.cookies.get("_xsrf", path=path)

    def reaches(self, address: str) -> bool:
        answer = self.session.get(address, timeout=60)
        return answer.ok and answer.url == address

    def post(self, path: str, **data: str) -> Any:
        """Press a button of nbgrader's; gives its answer."""
        own = self.server.removeprefix(self.hub.address) + "/"
        answer = self.session.post(
            f"{self.server}/{path}",
            data=data,
            headers={"X-XSRFToken": self.token(own)},
            timeout=600,
        )
        assert answer.ok, f"{path}: {answer.text}\n{self.hub.log.read_text()[-3000:]}"
        found = answer.json()
        assert found["success"], f"{path}: {found}"
        return found

    def get(self, path: str) -> Any:
        answer = self.session.get(f"{self.server}/{path}", timeout=60)
        assert answer.ok, answer.text
        return answer.json()


def _until(done: Callable[[], bool], hub: Hub) -> None:
    """Wait for something that takes a hub a while."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and hub.process.poll() is None:
        try:
            if done():
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.5)
    raise AssertionError(hub.log.read_text(encoding="utf-8")[-3000:])


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def hub(machine, course_of_theirs, tmp_path) -> Iterator[Hub]:
    """A hub, and the server of the teacher's own environment."""
    if importlib.util.find_spec("jupyterhub") is None:
        pytest.skip("jupyterhub is not installed: no hub was tried")
    folder = Path(sys.executable).parent
    places = os.pathsep.join([str(folder), os.environ["PATH"]])
    for program in ("configurable-http-proxy", "jupyterhub-singleuser"):
        if shutil.which(program, path=places) is None:
            pytest.skip(f"{program} is not installed: no hub was tried")
    theirs = "/home/teacher/course/.venv/bin"
    machine.must("teacher", f"mkdir -p {theirs}")
    server = shutil.which("jupyterhub-singleuser", path=places)
    machine.must("teacher", f"ln -s {server} {theirs}/jupyterhub-singleuser")
    (tmp_path / "hub").mkdir()
    running = Hub(machine, tmp_path / "hub")
    try:
        running.wait()
        yield running
    finally:
        running.stop()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_same_through_a_jupyterhub(machine, hub, project):
    _prepare(machine)
    teacher, ada, bob = (Browser(hub, name) for name in ("teacher", "ada", "bob"))
    own = {"assignment_id": UNIT, "course_id": COURSE}
    unit = f"formgrader/api/assignment/{UNIT}"
    teacher.post(f"{unit}/release")
    notebooks = _made_up(project)
    for name, browser in (("ada", ada), ("bob", bob)):
        (listed,) = browser.post("assignments/fetch", **own)["value"]
        assert (listed["assignment_id"], listed["status"]) == (UNIT, "fetched")
        _write(machine, name, notebooks[name])
        found = browser.post("assignments/submit", **own)["value"]
        assert "submitted" in {entry["status"] for entry in found}
    assert not bob.reaches(f"{ada.server}/courses")
    teacher.post(f"{unit}/collect")
    for name in ("ada", "bob"):
        teacher.post(f"formgrader/api/submission/{UNIT}/{name}/autograde")
    scores = {
        entry["student"]: entry["score"]
        for entry in teacher.get(f"formgrader/api/submissions/{UNIT}")
    }
    assert scores == {"ada": 7, "bob": 3}
    teacher.post(f"{unit}/generate_feedback")
    teacher.post(f"{unit}/release_feedback")
    for name, browser, points in (("ada", ada, "7 of 9"), ("bob", bob, "3 of 9")):
        browser.post("assignments/fetch_feedback", **own)
        found = machine.must(name, f"find {UNIT}/feedback -name '*.html'").split("\n")
        (page,) = filter(None, found)
        assert f"{points} points" in machine.must(name, f"cat '{page}'")
