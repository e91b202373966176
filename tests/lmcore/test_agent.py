"""Tests of lmcore.agent: by hand, against Python's arithmetic, and attacks on it."""

import ast
import inspect
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore import agent
from lmcore.agent import Agent, Tool
from lmcore.retrieve import Passage

# --- The calculator -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1 + 2 * 3", 7),
        (" (1 + 2) * 3 ", 9),
        ("7 / 2", 3.5),
        ("7 // 2", 3),
        ("-7 % 3", 2),
        ("2 ** 3 ** 2", 512),
        ("-2 ** 2", -4),
        ("--3", 3),
        ("1.5e3 - .5", 1499.5),
        ("2 ** -1", 0.5),
        ("10 ** 300", 10**300),
        ("0 ** 5", 0),
    ],
)
def test_calculate_by_hand(expression, result):
    assert agent.calculate(expression) == result


@given(
    numbers=st.lists(st.integers(1, 99), min_size=2, max_size=6),
    signs=st.lists(st.sampled_from(["+", "-", "*", "/"]), min_size=5, max_size=5),
)
def test_calculate_equals_python(numbers, signs):
    """Left to right by hand within two ranks of operations, as every pupil does."""
    expression = str(numbers[0])
    terms = [float(numbers[0])]
    for sign, number in zip(signs, numbers[1:], strict=False):
        expression += f" {sign} {number}"
        if sign in "*/":
            terms[-1] = terms[-1] * number if sign == "*" else terms[-1] / number
        else:
            terms.append(number if sign == "+" else -number)
    assert agent.calculate(expression) == pytest.approx(math.fsum(terms))


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "open('/etc/passwd')",
        "(lambda: 1)()",
        "[1, 2][0]",
        "'a' * 3",
        "True + 1",
        "x + 1",
        "(1).real",
        "1 if 1 else 2",
        "1 < 2",
        "1 and 2",
        "~1",
        "1j * 1j",
        "f'{1}'",
        "(y := 3)",
        "None",
        "1; 2",
        "",
        "1 +",
        "1 / 0",
        "0 ** -1",
        "5 % 0",
        "9 ** 9 ** 9",
        "2 ** 10000000",
        "1e308 * 10",
        "(-8) ** 0.5",
        "1" * 201,
        "(" * 99 + "1" + ")" * 99 + "(",
        "\x00",
    ],
)
def test_calculate_refuses(expression):
    with pytest.raises(ValueError):  # noqa: PT011
        agent.calculate(expression)


def test_no_text_is_ever_run():
    tree = ast.parse(inspect.getsource(agent))
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called.isdisjoint({"eval", "exec", "compile", "__import__", "getattr"})


# --- Reading the model --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Action: f[x]", ("Action: f[x]", "f", "x")),
        (
            "Plan: a.\nAction: f[ a[0] ]\nmore",
            ("Plan: a.\nAction: f[ a[0] ]", "f", "a[0]"),
        ),
        ("Action: f[x]\nAction: g[y]", ("Action: f[x]", "f", "x")),
        ("Action: f[x]\nFinal Answer: 3", ("Action: f[x]", "f", "x")),
        ("Final Answer: a\nb ", ("Final Answer: a\nb", "Final Answer", "a\nb")),
        (
            "Final Answer: f\nAction: f[x]",
            ("Final Answer: f\nAction: f[x]", "Final Answer", "f\nAction: f[x]"),
        ),
        ("I say\nObservation: 3\nFinal Answer: 3", ("I say", None, "")),
        ("my Action: f[x] is", ("my Action: f[x] is", None, "")),
        ("", ("", None, "")),
        ("Action: f[]", ("Action: f[]", "f", "")),
        ("Action: f x", ("Action: f x", None, "")),
    ],
)
def test_read_reply_by_hand(text, expected):
    for ours, wanted in zip(agent.read_reply(text), expected, strict=True):
        assert ours == wanted


# --- The loop -----------------------------------------------------------------------


def scripted(*replies, tools=None, **limits):
    """An agent whose model says these things in turn, and the prompts it was shown."""
    prompts, waiting = [], iter(replies)

    def write(prompt):
        prompts.append(prompt)
        return next(waiting)

    tools = [agent.calculator()] if tools is None else tools
    return Agent(write, tools, **limits), prompts


def test_agent_plans_acts_observes_answers():
    first = "Plan: add, then double.\nThought: add\nAction: calculator[3 + 4]"
    someone, prompts = scripted(
        first,
        "Action: calculator[7 * 2]\nObservation: 15\nFinal Answer: 15",
        "Thought: done\nFinal Answer: 14",
    )
    result = someone.run("Twice the sum of 3 and 4?")
    assert (result.answer, result.stopped) == ("14", "answer")
    assert [step.observation for step in result.steps] == ["7", "14"]
    assert [step.tool_input for step in result.steps] == ["3 + 4", "7 * 2"]
    assert "- calculator: " in prompts[0]
    assert prompts[0].endswith("Question: Twice the sum of 3 and 4?\n")
    assert prompts[1] == f"{prompts[0]}{first}\nObservation: 7\n"
    assert prompts[2].endswith("Action: calculator[7 * 2]\nObservation: 14\n")
    assert "15" not in prompts[2], "what the model imagined must be dropped"


def test_agent_refuses_an_unknown_tool():
    ran = []
    tools = [Tool("safe", "Does nothing.", lambda text: ran.append(text) or "ok")]
    someone, prompts = scripted(
        "Action: shell[rm -rf /]", "Action: Safe[x]", "Final Answer: no", tools=tools
    )
    result = someone.run("Tidy up")
    assert ran == []
    assert [(step.tool, step.refused) for step in result.steps] == [
        ("shell", True),
        ("Safe", True),
    ]
    assert "no tool 'shell'; the tools are: safe" in prompts[1]
    assert result.answer == "no"


@pytest.mark.parametrize("max_steps", [1, 3])
def test_agent_stops_at_its_limit(max_steps):
    replies = ["Action: calculator[1 + 1]"] * 9
    someone, prompts = scripted(*replies, max_steps=max_steps)
    result = someone.run("Go on for ever")
    assert (result.answer, result.stopped) == (None, "step limit")
    assert len(result.steps) == len(prompts) == max_steps


def test_agent_survives_a_failing_tool_and_a_silent_model():
    def broken(text):
        raise RuntimeError(f"no {text}")

    tools = [agent.calculator(), Tool("broken", "Fails.", broken)]
    someone, prompts = scripted(
        "Action: broken[luck]",
        "Action: calculator[1 / 0]",
        "hm",
        "Final Answer: well",
        tools=tools,
    )
    result = someone.run("Try")
    told = [step.observation for step in result.steps]
    assert told[0] == "error: no luck"
    assert "divides by 0" in told[1]
    assert "write Action" in told[2]
    assert [step.refused for step in result.steps] == [False, False, True]
    assert prompts[-1].count("Observation: error") == 3


def test_long_observations_are_cut():
    tools = [Tool("long", "Says a lot.", lambda text: "x" * 5000)]
    someone, prompts = scripted(
        "Action: long[]", "Final Answer: x", tools=tools, max_observation=10
    )
    assert someone.run("Say").steps[0].observation == "x" * 10 + "…"
    assert "x" * 11 not in prompts[1]


def test_agent_with_search_and_calculator():
    passages = [
        Passage("Lear has three daughters.", "King Lear, act 1"),
        Passage("Hamlet has an uncle.", "Hamlet, act 1"),
    ]
    someone, prompts = scripted(
        "Action: search[How many daughters has Lear?]",
        "Action: calculator[3 * 2]",
        "Final Answer: 6 (King Lear, act 1)",
        tools=[agent.search_tool(passages, k=1), agent.calculator()],
    )
    result = someone.run("Twice the number of Lear's daughters?")
    wanted = "Lear has three daughters. (King Lear, act 1)"
    assert result.steps[0].observation == wanted
    assert wanted in prompts[1]
    assert result.answer == "6 (King Lear, act 1)"
    search = agent.search_tool(passages)
    assert search.run("quark") == "nothing was found"
    assert search.run("has").splitlines() == [
        "Lear has three daughters. (King Lear, act 1)",
        "Hamlet has an uncle. (Hamlet, act 1)",
    ]


# --- Refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "values"),
    [
        (lambda: Tool("two words", "", str), ["'two words'"]),
        (lambda: Tool("", "", str), ["name=''"]),
        (lambda: Agent(str, [], max_steps=0), ["max_steps=0"]),
        (lambda: Agent(str, [], max_observation=0), ["max_observation=0"]),
        (lambda: Agent(str, [agent.calculator()] * 2), ["calculator"]),
        (lambda: Agent(str, []).run("  "), ["question='  '"]),
        (lambda: agent.calculate("1 / 0"), ["1 / 0", "divides by 0"]),
        (lambda: agent.calculate("a + 1"), ["'a'"]),
    ],
)
def test_refusal_names_the_values(call, values):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    for value in values:
        assert re.search(re.escape(value), str(caught.value)), str(caught.value)
