"""Every unit's checks are proven: right answers pass, the stub and mistakes do not.

Nothing here knows a unit by name: a new one is proven as soon as its files are there.
"""

import functools
import importlib
import inspect
import shutil
import sys
from dataclasses import asdict

import nbformat
import pytest
from nbclient import NotebookClient

from lmcore.homework import unwritten
from lmcourse import homework, mistakes
from lmcourse.grading import messages, sample_class
from lmcourse.grading.inside import world
from lmcourse.grading.reference import Reference

SEED = 7


class Unit:
    """A unit's reference, and a way to hand in one wrong or right function to it."""

    def __init__(self, name):
        homework.build(name)
        self.manifest = asdict(homework.load_manifest(name))
        self.known = mistakes.load(name)
        self.reference = Reference(self.manifest, self.known)
        # The same mistakes are compared with each other again and again.
        self.reference.record = functools.cache(self.reference.record)
        self.tests_of = {}
        for test in self.reference.tests.values():
            self.tests_of.setdefault(test["question"], []).append(test["id"])

    def question_of(self, target):
        """The question in which a function is graded."""
        for name, facts in self.manifest["questions"].items():
            if target in (facts.get("implements"), name):
                return name
        raise AssertionError(f"no question grades {target}")

    def hand_in(self, answer):
        """The verdicts on the question of an answer, as the grader gives them."""
        verdicts = []
        self.reference.next_submission()
        for name in self.tests_of[self.question_of(answer.target)]:
            with mistakes.in_place(answer, self.reference.namespace):
                run = self.run(name)
            verdicts.append(self.reference.judge(name, SEED, [run]))
        return verdicts

    def run(self, name):
        """What the student's world would send: values and errors, statement by one."""
        question = self.reference.tests[name]["question"]
        test = world.Test(question, SEED, self.reference.namespace)
        done = []
        for statement in self.reference.statements[name]:
            records, error = test.run(statement.bare)
            values = [record["value"] for record in records]
            done.append({"values": values, "error": error})
        return {"end": "done", "statements": done}


@pytest.fixture(scope="module", params=homework.units())
def unit(request):
    """A unit's reference; afterwards lmcore, where its answers went, is as before."""
    modules = [m for name, m in sys.modules.items() if name.startswith("lmcore")]
    before = [(module, dict(vars(module))) for module in modules]
    main = sys.modules["__main__"]
    yield Unit(request.param)
    for module, names in before:
        vars(module).update(names)
    sys.modules["__main__"] = main


def failed(verdicts):
    return [c for verdict in verdicts for c in verdict["checks"] if not c["passed"]]


def explained_by_python(check):
    """Whether an error stood in the place of a value, and so says what is wrong."""
    message = check["message"]
    return message == messages.NOT_REACHED or message.startswith("It raised ")


def test_the_solution_passes_every_check(unit):
    for name in unit.reference.tests:
        unit.reference.next_submission()
        verdict = unit.reference.judge(name, SEED, [unit.run(name)])
        assert failed([verdict]) == []
        assert verdict["score"] == verdict["max_score"]


@pytest.mark.slow
@pytest.mark.parametrize("name", homework.units())
def test_the_solved_notebook_runs_in_a_kernel_from_top_to_bottom(name, tmp_path):
    exercises = homework.build(name).exercises
    folder = shutil.copytree(exercises, tmp_path / name)
    solved = sample_class.submissions(name)["all-right"]
    notebook = nbformat.reads(solved.decode("utf-8"), as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in ran if cell.source.strip())
    told = "".join(output.get("text", "") for cell in ran for output in cell.outputs)
    assert "✗" not in told
    assert "✓" in told


def stub_of(original):
    def stub(*args, **kwargs):
        raise NotImplementedError(unwritten.message("this", "the chapter"))

    if inspect.isclass(original):
        own = [n for n, f in vars(original).items() if inspect.isfunction(f)]
        return type("Stub", (original,), {n: stub for n in own if n != "__init__"})
    return stub


def test_the_stub_passes_no_check(unit):
    for name, facts in unit.manifest["questions"].items():
        if name not in unit.tests_of:
            continue  # written: graded by hand
        target = facts.get("implements") or name
        module, _, function = target.rpartition(".")
        original = (
            getattr(importlib.import_module(f"lmcore.{module}"), function)
            if module
            else unit.reference.namespace[function]
        )
        stub = mistakes.Known("stub", target, "", stub_of(original))
        for verdict in unit.hand_in(stub):
            assert verdict["score"] == 0, name
            assert all(not check["passed"] for check in verdict["checks"]), name


def test_every_mistake_is_rejected_with_a_message_that_names_it(unit):
    assert unit.known.mistakes
    told = []
    for mistake in unit.known.mistakes:
        verdicts = unit.hand_in(mistake)
        wrong = failed(verdicts)
        if not wrong:
            told.append(f"{mistake.name} passes every check")
        elif all(explained_by_python(check) for check in wrong):
            pass
        elif mistake.says not in [verdict["says"] for verdict in verdicts]:
            told.append(f"{mistake.name} is called {[v['says'] for v in verdicts]}")
        if not all(check["message"] for check in wrong):
            told.append(f"{mistake.name} fails a check without a message")
    assert told == []


def test_every_question_has_at_least_three_known_mistakes(unit):
    counts = dict.fromkeys(unit.tests_of, 0)
    for mistake in unit.known.mistakes:
        counts[unit.question_of(mistake.target)] += 1
    assert {name: n for name, n in counts.items() if n < 3} == {}


def test_right_answers_written_differently_pass_every_check(unit):
    assert unit.known.variants
    wrong = {
        answer.name: failed(unit.hand_in(answer)) for answer in unit.known.variants
    }
    assert {name: checks for name, checks in wrong.items() if checks} == {}
