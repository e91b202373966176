"""The student's world holds nothing to steal; the judge runs no student's code.

A submission searches its world and prints what it finds. The same searches are run over
the grader's own files, where they do find something, so that none of them is blind.
"""

import ast
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lmcourse import paths
from lmcourse.grading import reference, worker
from lmcourse.grading.inside import world

UNIT = "07_tiny"
GRADING = Path(worker.__file__).parent

SEARCH_FILES = """
import os
found = []
for folder, folders, files in os.walk('/', followlinks=False):
    if folder.startswith(('/dev', '/lib', '/packages', '/python', '/usr')):
        continue
    for name in files:
        try:
            with open(os.path.join(folder, name), errors='replace') as file:
                found.append((os.path.join(folder, name), file.read(10**6)))
        except OSError:
            pass
"""


@pytest.fixture
def see(worker, handed_in):
    """Run code in the student's world and return what it prints as JSON."""

    def look(code: str):
        text = f"import json\n{code}\nprint(json.dumps(answer))\n" + (
            "def average(x):\n    return x.sum(-1) / x.shape[-1]"
        )
        cell = worker.grade(handed_in(average=text))["cells"]["average"]
        assert cell["message"] == "", cell["message"]
        return json.loads(cell["output"].splitlines()[-1])

    return look


def test_no_solution_expected_value_or_other_work_lies_in_the_file_system(see, project):
    secrets = {
        "a reference body": "key_position[None, :] <= query_position[:, None]",
        "a known mistake": "You divided by one " + "too few",
        "a hidden check": "with tokens " + "read before",
        "a title of a check": "double " + "precision",
        "the manifest": '"hidden": ',
    }
    # The search is not blind: all of it is found in the teacher's project and lmcore.
    import lmcore.attention

    files = [*project.rglob("*.md"), *project.rglob("*.py"), *project.rglob("*.json")]
    ours = "".join(path.read_text() for path in files)
    ours += Path(lmcore.attention.__file__).read_text()
    assert [name for name, text in secrets.items() if text not in ours] == []
    backwards = {name: text[::-1] for name, text in secrets.items()}
    answer = see(
        SEARCH_FILES
        + f"backwards = {backwards!r}\n"
        + "answer = {k: [p for p, t in found if v[::-1] in t] "
        "for k, v in backwards.items()}"
    )
    assert answer == {name: [] for name in secrets}


def test_the_files_it_sees_are_the_interpreter_packages_lmcore_and_ours(see):
    answer = see("import os; answer = sorted(os.listdir('/'))")
    assert set(answer) <= {
        *("course", "dev", "grader", "lib", "lib64", "packages", "proc", "python"),
        *("sys", "tmp", "usr"),
    }
    answer = see(
        "import os; answer = [f for _, folders, _ in os.walk('/sys') for f in folders]"
    )
    assert set(answer) <= {"kernel", "mm", "transparent_hugepage", "khugepaged"}
    answer = see("import os; answer = [os.listdir(p) for p in ('/course', '/grader')]")
    assert answer == [["lmcore"], ["inside"]]
    answer = see("import os; answer = os.listdir('/proc') + os.listdir('/tmp')")
    assert answer == []


def test_no_home_no_course_no_environment(see):
    answer = see(
        "import os\n"
        f"places = ['/home', '/root', '/work', {str(Path(paths.__file__))!r}]\n"
        "answer = [[p for p in places if os.path.exists(p)], sorted(os.environ)]"
    )
    assert answer[0] == []
    assert set(answer[1]) <= {
        *("CUBLAS_WORKSPACE_CONFIG", "GLIBC_TUNABLES", "HOME", "LANG"),
        *("LD_LIBRARY_PATH", "MPLBACKEND"),
        *("OMP_NUM_THREADS", "PATH", "TORCHINDUCTOR_CACHE_DIR"),
        *("PWD", "PYTHONHASHSEED", "PYTHONHOME", "PYTHONPATH"),
    }


def test_nothing_but_its_own_folder_can_be_written(see):
    answer = see(
        "import os\nanswer = []\n"
        "for p in ('/', '/course/lmcore', '/grader/inside', '/packages/torch', '/dev',"
        " '/python/lib'):\n"
        "    try:\n"
        "        open(os.path.join(p, 'x'), 'w')\n"
        "        answer.append(p)\n"
        "    except OSError:\n"
        "        pass\n"
        "open('/tmp/mine', 'w').write('x')"
    )
    assert answer == []
    assert see("import os; answer = os.listdir('/tmp')") == []  # the next submission's


def test_no_network_and_no_capability(see):
    answer = see(
        "import ctypes, os, socket\nanswer = []\n"
        "for address in (('127.0.0.1', 80), ('192.0.2.1', 80), ('8.8.8.8', 53)):\n"
        "    try:\n"
        "        socket.create_connection(address, 1)\n"
        "        answer.append(address)\n"
        "    except OSError:\n"
        "        pass\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "answer.append(libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None))\n"
        "answer.append(libc.umount(b'/proc'))\n"
        "answer.append(os.getuid() == 0)"
    )
    assert answer == [-1, -1, False]


def test_no_process_but_its_own_can_be_seen_or_reached(see):
    answer = see(
        "import os, signal\nanswer = []\n"
        "os.kill(1, signal.SIGKILL)  # the keeper: the kernel protects it\n"
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "answer.append(libc.ptrace(16, 1, 0, 0))\n"
        "answer.append(os.getpid() < 100)"
    )
    assert answer == [-1, True]


def test_memory_holds_no_check_and_no_solution(see):
    answer = see(
        "import gc, sys, types\n"
        "backwards = ['rebmun ylenol', 'daer snekot', '[noitisop_yreuq']\n"
        "backwards.append('niaga sdrow')\n"
        "kept = 'words again'[:0].join(['words ', 'again'])\n"
        "texts = [str(o)[:10**5] for o in gc.get_objects()"
        " if isinstance(o, (dict, list)) and len(o) < 100]\n"
        "frame = sys._getframe()\n"
        "while frame:\n"
        "    texts.append(repr(frame.f_locals))\n"
        "    frame = frame.f_back\n"
        "texts += [str(c) for m in list(sys.modules.values()) for f in "
        "list(vars(m).values()) if isinstance(f, types.FunctionType) "
        "for c in f.__code__.co_consts]\n"
        "modules = [m for m in sys.modules if m.startswith('lmcourse')]\n"
        "answer = [[w for w in backwards if any(w[::-1] in t for t in texts)], modules]"
    )
    # It finds what it has kept itself, so the search is not blind; and nothing else.
    assert answer == [["niaga sdrow"], []]


def test_the_reference_is_blank_in_the_student_s_world(worker, handed_in):
    steal = (
        "import importlib, lmcore.attention\n"
        "importlib.reload(lmcore.attention)\n"
        "causal_mask = lmcore.attention.causal_mask"
    )
    result = worker.grade(handed_in(causal_mask=steal))
    assert result["questions"]["causal_mask"]["score"] == 0
    checks = result["tests"]["causal_mask_checks"]["checks"]
    assert {check["message"] for check in checks} == {"Not written yet."}


def test_what_enters_the_jail_imports_nothing_of_the_grader(here):
    for path in (GRADING / "inside").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                inside = node.level == 1 or node.module.split(".")[0] in (
                    *sys.stdlib_module_names,
                    "lmcore",
                )
                assert inside, f"{path.name}: {ast.unparse(node)}"
            if isinstance(node, ast.Import):
                for item in node.names:
                    known = {*sys.stdlib_module_names, "torch", "numpy"}
                    assert item.name.split(".")[0] in known, path.name


def test_the_statements_that_enter_the_jail_hold_no_expected_value(worker):
    bare = [
        world.unpacked(text)
        for parts in worker.tests.values()
        for text in parts["visible"] + parts["hidden"]
    ]
    known = "check(average(torch.tensor([1.0, 3.0])))"
    assert compile(known, "<check>", "exec") in bare
    words = ("expected", "title", "atol", "at_least", "two numbers")
    said = [texts_in(code) for code in bare]
    assert any("average" in text for text in said)
    assert [text for text in said if any(word in text for word in words)] == []


def texts_in(code: types.CodeType) -> str:
    """All names and constants of a piece of compiled code, and of what it defines."""
    parts = [*code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars]
    for constant in code.co_consts:
        inner = isinstance(constant, types.CodeType)
        parts.append(texts_in(constant) if inner else repr(constant))
    return " ".join(parts)


def test_the_judge_never_runs_a_student_s_code(here, worker, handed_in, tmp_path):
    """Code that would leave a mark wherever it runs outside the jail leaves none."""
    mark = tmp_path / "mark"
    touch = f"open({str(mark)!r}, 'w').close()"
    text = (
        f"try:\n    {touch}\nexcept OSError:\n    pass\n\n"
        "class Sly(torch.Tensor):\n"
        "    def __reduce__(self):\n"
        f"        return (exec, ({touch!r},))\n\n"
        "def average(x):\n"
        f"    try:\n        {touch}\n    except OSError:\n        pass\n"
        "    return (x.sum(-1) / x.shape[-1]).as_subclass(Sly)"
    )
    result = worker.grade(handed_in(average=text))
    assert result["questions"]["average"]["score"] == 4  # plain data is what counts
    assert not mark.exists()


def judge_apart(code: str) -> str:
    """Run code on the unit's ``manifest`` in a process that a reference may change."""
    before = (
        "import json\n"
        "from lmcourse import mistakes, paths\n"
        "from lmcourse.grading.reference import Reference\n"
        f"manifest = json.loads(paths.manifest({UNIT!r}).read_text())\n"
    )
    command = [sys.executable, "-c", before + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_forged_records_are_read_as_data_and_earn_nothing(here):
    """Whatever a hijacked student's process sends, the judge gives a verdict."""
    said = judge_apart(
        "judge = Reference(manifest, mistakes.UnitMistakes())\n"
        "sent = [{'tensor': {'dtype': 'float32', 'shape': [2**40], 'bytes': ''}},\n"
        "        {'pickle': 'gASV'}, {'tensor': 7}, [[[]]] * 99, {'error': []}, None,\n"
        "        {'expected': 2.0}, 'expected', True, {'float': 'nan'}, 1e308]\n"
        "for value in sent:\n"
        "    statement = {'values': [value] * 3, 'error': None}\n"
        "    run = {'end': 'done', 'statements': [statement] * 9}\n"
        "    judge.next_submission()\n"
        "    verdict = judge.judge('average_checks', 1, [run, run])\n"
        "    assert verdict['score'] == 0, value\n"
        "print('fine')"
    )
    assert said == "fine\n"


def test_checks_that_leave_something_behind_are_refused(here):
    """All submissions are judged by one run of the solutions."""
    said = judge_apart(
        "cells = {cell['id']: cell for cell in manifest['cells']}\n"
        "given = [cell for cell in manifest['cells'] if cell['kind'] == 'given'][0]\n"
        "given['source'] += '\\nseen = []'\n"
        "added = '\\nseen.append(1)\\ncheck(len(seen), expected=1)'\n"
        "cells['average_checks']['source'] += added\n"
        "try:\n"
        "    Reference(manifest, mistakes.UnitMistakes())\n"
        "except RuntimeError as error:\n"
        "    print(error)"
    )
    assert said.startswith("average_checks gives another value when it runs")
    assert "let it make its own" in said


def test_the_module_of_the_judge_compiles_and_runs_only_the_manifest(here):
    """In its source, only the manifest's cells reach `run_cell` and `run`."""
    tree = ast.parse(Path(reference.__file__).read_text())
    calls = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Call)]
    names = ("exec(", "eval(", "compile(", "run_cell(", "test.run(", "pickle")
    running = {call for call in calls if any(name in call for name in names)}
    assert running == {
        "world.run_cell(cell['source'], cell['id'], self.namespace)",
        "test.run(statement.whole)",
    }
