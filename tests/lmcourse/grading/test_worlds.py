"""One submission: what earns points, what costs them, and what a student reads."""

import json

import pytest

UNIT = "07_tiny"


AVERAGE = "def average(x):\n    "


@pytest.fixture
def grade(worker, handed_in):
    return lambda **cells: worker.grade(handed_in(**cells))


def scores(result) -> dict[str, float | None]:
    return {name: facts["score"] for name, facts in result["questions"].items()}


def messages(result, question: str) -> list[str]:
    checks = result["tests"][f"{question}_checks"]["checks"]
    return [check["message"] for check in checks]


def test_right_work_earns_all_points_and_the_written_answer_waits(grade):
    result = grade()
    assert result["status"] == "graded"
    assert scores(result) == {"average": 4, "causal_mask": 3, "why": None}
    assert (result["score"], result["max_score"]) == (7, 9)
    assert result["unit"] == UNIT


def test_the_same_bytes_give_the_same_result(worker, handed_in):
    content = handed_in(average=AVERAGE + "return x.sum(-1) + torch.rand(())")
    first = worker.grade(content)
    worker.grade(handed_in())
    assert json.dumps(worker.grade(content)) == json.dumps(first)


def test_right_in_other_words_earns_all(grade):
    other = AVERAGE + "n = x.shape[-1]\n    return sum(x[..., i] / n for i in range(n))"
    assert scores(grade(average=other))["average"] == 4


def test_a_stub_earns_nothing_and_is_called_unwritten(grade):
    stub = AVERAGE + "raise NotImplementedError('average is yours to write')"
    result = grade(average=stub)
    assert scores(result) == {"average": 0, "causal_mask": 3, "why": None}
    assert set(messages(result, "average")) == {"Not written yet."}


def test_a_known_mistake_is_named(grade):
    result = grade(average=AVERAGE + "return x.sum(-1) / (x.shape[-1] - 1)")
    assert scores(result)["average"] == 0
    assert result["questions"]["average"]["mistakes"] == ["divides_by_one_too_few"]
    verdict = result["tests"]["average_checks"]
    assert verdict["says"] == "You divided by one too few."


def test_a_partly_right_answer_earns_its_checks(grade):
    halves = AVERAGE + "return x.sum(-1) / x.shape[-1] if x.shape[-1] > 1 else x"
    result = grade(average=halves)
    assert scores(result)["average"] == 3
    passed = [c["passed"] for c in result["tests"]["average_checks"]["checks"]]
    assert passed == [True, True, True, False]


def test_copied_visible_answers_earn_nothing(grade):
    result = grade(average=AVERAGE + "return torch.tensor(2.0)")
    checks = result["tests"]["average_checks"]
    assert checks["checks"][0]["passed"]
    assert checks["score"] == 0
    assert "visible" in checks["note"]


@pytest.mark.parametrize(
    ("body", "end"),
    [
        ("while True:\n        pass", "timeout"),
        ("import os\n    os._exit(0)", "exit"),
        ("import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)", "crash"),
        ("import ctypes\n    return ctypes.string_at(0)", "crash"),
    ],
)
def test_a_loop_and_a_crash_cost_one_question(grade, body, end):
    result = grade(average=AVERAGE + body)
    assert scores(result) == {"average": 0, "causal_mask": 3, "why": None}
    assert result["tests"]["average_checks"]["end"] == end


def test_what_one_question_breaks_for_all_is_whole_where_another_runs_alone(grade):
    breaks = "from lmcore import attention\n    attention.causal_mask = None\n    "
    result = grade(average=AVERAGE + breaks + "return x.sum(-1) / x.shape[-1]")
    assert scores(result) == {"average": 4, "causal_mask": 3, "why": None}


def test_a_crash_at_a_hidden_check_leaves_the_visible_ones_that_passed(grade):
    body = "import os\n    os.abort() if x.dim() > 1 else None\n    "
    result = grade(average=AVERAGE + body + "return x.sum(-1) / x.shape[-1]")
    visible, *hidden = messages(result, "average")
    assert visible == ""
    assert len(set(hidden)) == 1
    assert "killed" in hidden[0]
    assert scores(result)["causal_mask"] == 3


def test_too_much_memory_costs_one_question(grade):
    result = grade(average=AVERAGE + "return torch.ones(10**9).sum()")
    assert scores(result) == {"average": 0, "causal_mask": 3, "why": None}
    assert "memory" in messages(result, "average")[0]


def test_leaving_python_with_sys_exit_costs_one_check_only(grade):
    body = "import sys\n    sys.exit() if x.shape[-1] == 1 else None\n    "
    result = grade(average=AVERAGE + body + "return x.sum(-1) / x.shape[-1]")
    assert scores(result)["average"] == 3


def test_a_cell_that_hangs_or_crashes_leaves_the_others_as_they_are(grade):
    result = grade(average="while True:\n    pass")
    assert scores(result) == {"average": 0, "causal_mask": 3, "why": None}
    assert "2 s" in result["cells"]["average"]["message"]
    result = grade(causal_mask="import os\nos.abort()")
    assert scores(result) == {"average": 4, "causal_mask": 0, "why": None}


def test_an_error_at_a_cells_end_costs_nothing(grade):
    result = grade(average=AVERAGE + "return x.sum(-1) / x.shape[-1]\n1 / 0")
    assert scores(result)["average"] == 4
    assert "line 3" in result["cells"]["average"]["message"]


def test_stderr_and_warnings_cost_nothing(grade):
    body = (
        "import sys, warnings\n    warnings.warn('careful')\n"
        "    print('noise', file=sys.stderr)\n    return x.sum(-1) / x.shape[-1]\n"
        "average(torch.ones(2))"
    )
    result = grade(average=AVERAGE + body)
    assert scores(result)["average"] == 4
    assert "noise" in result["cells"]["average"]["output"]


def test_commands_of_the_notebook_are_left_out(grade):
    text = "%matplotlib inline\n!ls\n" + AVERAGE + "return x.sum(-1) / x.shape[-1]"
    assert scores(grade(average=text))["average"] == 4


def test_a_forbidden_call_earns_nothing_and_says_so(grade):
    result = grade(average=AVERAGE + "return x.mean(-1)")
    assert scores(result)["average"] == 0
    assert "torch.mean" in result["questions"]["average"]["message"]


def test_calls_by_name_as_text_are_pointed_out_to_a_person(grade):
    result = grade(average=AVERAGE + "return getattr(x, 'me' + 'an')(-1)")
    assert scores(result)["average"] == 4
    assert result["questions"]["average"]["flags"] == [
        "may call functions by their names as text: getattr"
    ]


def test_comparing_with_torch_beside_the_function_is_not_punished(grade):
    compare = "assert average(torch.ones(2)) == torch.mean(torch.ones(2))"
    result = grade(average=AVERAGE + f"return x.sum(-1) / x.shape[-1]\n{compare}")
    assert scores(result)["average"] == 4
    assert result["questions"]["average"]["flags"] == [
        "uses torch.mean outside the function"
    ]


def test_hidden_inputs_do_not_leave_through_messages(grade):
    body = (
        "class Told(Exception):\n        pass\n"
        "    Told.__name__ = 'x' + str(x.tolist())\n    raise Told(str(x.tolist()))"
    )
    result = grade(average=AVERAGE + body)
    visible, *hidden = messages(result, "average")
    assert "[1.0, 3.0]" in visible  # stands in the notebook anyway
    assert set(hidden) == {"It raised an error."}


def test_the_checks_source_cannot_leave_through_a_visible_message(grade):
    spy = AVERAGE + (
        "import sys\n    frame, seen = sys._getframe(), ''\n"
        "    while frame:\n        seen += repr(frame.f_locals)[:9000]\n"
        "        frame = frame.f_back\n"
        "    raise ValueError('told' if 'ra' 'ndn' in seen else 'nothing seen')"
    )
    result = grade(average=spy)
    assert messages(result, "average")[0] == "It raised ValueError: nothing seen"


def test_a_generator_of_ones_own_gives_wrong_inputs(grade):
    spoil = "\ngenerator = lambda *a: torch.Generator().manual_seed(0)"
    result = grade(average=AVERAGE + "return x.sum(-1) / x.shape[-1]" + spoil)
    assert scores(result)["average"] == 0
