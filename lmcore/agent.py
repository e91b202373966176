"""Agents: a model that may use tools, one step at a time, within limits.

Chapter 16 of the book. The module builds, in this order: tools, among them a calculator
and a search; how the model's text is read; and the loop in which it plans, calls a
tool, reads what came back, and answers.

A model's text is never run as a program. It can only name one of the tools it was
given, and what a tool may do is decided by who wrote the tool. Even so, what a tool
returns may hold words meant to mislead the model (prompt injection): never give tools
that must not be used to an agent that reads what strangers wrote.

Left out: the language model, which comes as a function from text to text; memory beyond
one question; several agents.

Papers: Nakano et al., 2021; Schick et al., 2023 (Toolformer); Yao et al., 2023 (ReAct,
whose form of text is used here).
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from . import evaluate, retrieve

# --- Tools --------------------------------------------------------------------------


@dataclass(frozen=True)
class Tool:
    """Something that an agent may do: a function from text to text.

    >>> Tool("shout", "Writes in capitals.", str.upper).run("hello")
    'HELLO'
    """

    name: str  # a word; letters, digits and _ only
    description: str  # tells the model what it does and what its input is
    run: Callable[[str], str]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*", self.name):
            raise ValueError(
                f"name={self.name!r} must be one word of letters, digits and _"
            )


_BINARY = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}
MAX_EXPRESSION = 200  # signs
MAX_DIGITS = 300  # of a power, so that nobody can order a number without end


def calculate(expression: str) -> int | float:
    """Work out an arithmetic expression.

    Whole numbers and decimals, ``+ - * / // % **`` and brackets, nothing else: the
    expression is parsed, and only these parts are worked out, so that no text can do
    anything but arithmetic.

    Args:
        expression: such as ``"2 * (3 + 4)"``

    Returns:
        The result.

    Raises:
        ValueError: if it is not arithmetic, or too long, too large or divided by 0.

    >>> calculate("2 * (3 + 4) ** 2")
    98
    """
    shown = expression[:40]
    if len(expression) > MAX_EXPRESSION:
        raise ValueError(
            f"{shown!r}… has {len(expression)} signs, expected at most {MAX_EXPRESSION}"
        )
    try:
        result = _work_out(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError:
        raise ValueError(f"{shown!r} is not an arithmetic expression") from None
    except ZeroDivisionError:
        raise ValueError(f"{shown!r} divides by 0") from None
    except (OverflowError, RecursionError, MemoryError):
        raise ValueError(f"{shown!r} is too large to work out") from None
    if isinstance(result, complex) or not math.isfinite(result):
        raise ValueError(f"{shown!r} has no finite real result")
    return result


def _work_out(node: ast.AST) -> int | float:
    """Numbers, signs and the operations above; a bool is a number for Python only."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_work_out(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _work_out(node.left), _work_out(node.right)
        if isinstance(node.op, ast.Pow):
            n_digits = abs(right) * math.log10(max(abs(left), 2))
            if n_digits > MAX_DIGITS:
                raise OverflowError
        return _BINARY[type(node.op)](left, right)
    raise ValueError(f"{ast.unparse(node)[:40]!r} is not arithmetic")


def calculator() -> Tool:
    """Make a tool of `calculate`.

    Returns:
        The tool "calculator".

    >>> calculator().run("1 / 4")
    '0.25'
    """
    return Tool(
        "calculator",
        "Works out an arithmetic expression, such as 2 * (3 + 4).",
        lambda expression: str(calculate(expression)),
    )


def search_tool(passages: Sequence[retrieve.Passage], k: int = 2) -> Tool:
    """Make a tool that looks words up in passages, by BM25.

    Args:
        passages: what can be found
        k: how many passages it gives back at most

    Returns:
        The tool "search".

    Raises:
        ValueError: if there is no word in the passages.

    >>> passages = [retrieve.Passage("Hamlet is prince of Denmark.", "Hamlet, act 1")]
    >>> search_tool(passages).run("Who is Hamlet?")
    'Hamlet is prince of Denmark. (Hamlet, act 1)'
    """
    index = retrieve.BM25([evaluate.words(passage.text) for passage in passages])

    def search(query: str) -> str:
        hits = index.search(evaluate.words(query), k)
        found = [passages[hit.document] for hit in hits]
        if not found:
            return "nothing was found"
        return "\n".join(f"{passage.text} ({passage.source})" for passage in found)

    return Tool("search", "Finds passages that hold the words given.", search)


# --- What the model writes ----------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One turn: what the model wrote, what it asked for, what came back.

    >>> Step("Action: clock[]", "clock", "", "unknown", refused=True).refused
    True
    """

    text: str  # the model's text, up to and with the action
    tool: str | None  # the tool it named; None if the text was in no known form
    tool_input: str
    observation: str
    refused: bool = False  # whether no tool was run


@dataclass(frozen=True)
class AgentResult:
    """How a question ended.

    >>> AgentResult(None, (), stopped="step limit").answer is None
    True
    """

    answer: str | None  # None if it was stopped before
    steps: tuple[Step, ...]
    stopped: str  # "answer" or "step limit"


_ACTION = re.compile(r"^[ \t]*Action:[ \t]*(\w+)[ \t]*\[(.*)\][ \t]*$", re.MULTILINE)
_FINAL = re.compile(r"^[ \t]*Final Answer:[ \t]*(.*)", re.MULTILINE | re.DOTALL)
_OBSERVATION = re.compile(r"^[ \t]*Observation:", re.MULTILINE)


def read_reply(text: str) -> tuple[str, str | None, str]:
    """Find out what a model's text asks for: the first action, or an answer.

    Whatever stands behind the first action is dropped, above all what the model
    imagines the tool to say.

    Args:
        text: what the model wrote

    Returns:
        The text that counts; the tool named, ``"Final Answer"``, or None if there is
        neither; and the tool's input or the answer.

    >>> read_reply("Thought: add. Action below.\\nAction: calculator[1 + 1]")[1:]
    ('calculator', '1 + 1')
    >>> read_reply("Final Answer: 2")[1:]
    ('Final Answer', '2')
    """
    imagined = _OBSERVATION.search(text)
    text = text[: imagined.start()] if imagined else text
    action, final = _ACTION.search(text), _FINAL.search(text)
    if action and not (final and final.start() < action.start()):
        return text[: action.end()].strip(), action[1], action[2].strip()
    if final:
        return text.strip(), "Final Answer", final[1].strip()
    return text.strip(), None, ""


# --- The loop -----------------------------------------------------------------------


class Agent:
    """Answers questions by thinking and using tools in turn.

    In each step the model reads the tools, the question and all that happened so far,
    and writes either an action or its answer. A tool that it was not given is refused,
    and a tool that fails says so; the model is told and goes on. After ``max_steps``
    steps it is stopped. Yao et al., 2023 (ReAct).

    Args:
        write: from a prompt to the model's text
        tools: what it may use, with different names
        max_steps: how many turns it has, the answer included
        max_observation: how many signs of a tool's reply it reads

    Raises:
        ValueError: if two tools have one name or a limit is less than 1.

    >>> replies = iter(["Action: calculator[6 * 7]", "Final Answer: 42"])
    >>> agent = Agent(lambda prompt: next(replies), [calculator()], max_steps=3)
    >>> result = agent.run("What is six times seven?")
    >>> result.answer, result.steps[0].observation
    ('42', '42')
    """

    def __init__(
        self,
        write: Callable[[str], str],
        tools: Sequence[Tool],
        *,
        max_steps: int = 8,
        max_observation: int = 1000,
    ) -> None:
        if max_steps < 1 or max_observation < 1:
            raise ValueError(
                f"max_steps={max_steps} and max_observation={max_observation} must be "
                "at least 1"
            )
        names = [tool.name for tool in tools]
        if len(set(names)) < len(names):
            raise ValueError(f"the tools {names} must have different names")
        self.write, self.max_steps = write, max_steps
        self.max_observation = max_observation
        self.tools: Mapping[str, Tool] = {tool.name: tool for tool in tools}

    def prompt(self, question: str, steps: Sequence[Step] = ()) -> str:
        """Write what the model reads before its next step.

        Args:
            question: one question
            steps: what happened so far

        Returns:
            Rules, tools, question, and every step with what came back.
        """
        rules = (
            "Answer the question. First write a plan. Then, one step at a time, write\n"
            "Thought: what to do next\n"
            "Action: tool[input]\n"
            "and wait for the observation. When you know the answer, write\n"
            "Final Answer: the answer"
        )
        tools = "\n".join(f"- {t.name}: {t.description}" for t in self.tools.values())
        history = "".join(
            f"{step.text}\nObservation: {step.observation}\n" for step in steps
        )
        return f"{rules}\n\nTools:\n{tools}\n\nQuestion: {question}\n{history}"

    def run(self, question: str) -> AgentResult:
        """Let the model work on a question until it answers or is stopped.

        Args:
            question: one question

        Returns:
            The answer, if there is one, and all steps.

        Raises:
            ValueError: if the question is empty.
        """
        if not question.strip():
            raise ValueError(f"question={question!r} must not be empty")
        steps: list[Step] = []
        for _ in range(self.max_steps):
            reply = self.write(self.prompt(question, steps))
            text, tool, tool_input = read_reply(reply)
            if tool == "Final Answer":
                return AgentResult(tool_input, tuple(steps), "answer")
            steps.append(self._act(text, tool, tool_input))
        return AgentResult(None, tuple(steps), "step limit")

    def _act(self, text: str, tool: str | None, tool_input: str) -> Step:
        """Run the tool, or say why not."""
        known = ", ".join(self.tools) or "none"
        if tool is None:
            told = "error: write Action: tool[input] or Final Answer: the answer"
            return Step(text, None, "", told, refused=True)
        if tool not in self.tools:
            told = f"error: there is no tool {tool!r}; the tools are: {known}"
            return Step(text, tool, tool_input, told, refused=True)
        try:
            observation = str(self.tools[tool].run(tool_input))
        except Exception as error:  # whatever a tool raises, the agent goes on
            observation = f"error: {error or type(error).__name__}"
        if len(observation) > self.max_observation:
            observation = observation[: self.max_observation] + "…"
        return Step(text, tool, tool_input, observation)
