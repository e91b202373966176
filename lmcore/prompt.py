"""Prompts: say what you want by showing it, and let several attempts vote.

Chapter 16 of the book. The module builds, in this order: a prompt of examples, with or
without the way to their answers; how the answer is read out of a text; and the vote of
several texts on one answer.

Left out: the language model, which comes as a function, and the search for a good
prompt; a prompt that is trained is in ``lmcore.finetune``.

Papers: Brown et al., 2020 (few-shot); Wei et al., 2022 (chain of thought); Wang et al.,
2023 (self-consistency).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ANSWER = "The answer is"


@dataclass(frozen=True)
class Shot:
    """An example: a question, its answer, and perhaps the way there.

    >>> Shot("2 + 2 · 3?", "8", reasoning="2 · 3 = 6, and 2 + 6 = 8.").answer
    '8'
    """

    question: str
    answer: str
    reasoning: str = ""  # what leads to the answer, for a chain of thought

    def __post_init__(self) -> None:
        if not self.question.strip() or not self.answer.strip():
            raise ValueError(
                f"question={self.question!r} and answer={self.answer!r} must not be "
                "empty"
            )

    @property
    def reply(self) -> str:
        """What the model is shown behind the label of the answer."""
        if not self.reasoning.strip():
            return self.answer.strip()
        return f"{self.reasoning.strip()} {ANSWER} {self.answer.strip()}."


def few_shot_prompt(
    query: str,
    shots: Sequence[Shot | tuple[str, str]] = (),
    *,
    instruction: str = "",
    question_label: str = "Q:",
    answer_label: str = "A:",
) -> str:
    """Show a model some examples and leave the last answer to it.

    Instruction, examples and query stand apart by an empty line. The prompt ends with
    the label of the answer and no space behind it: most tokenizers join the space to
    the word that follows, so that a space here would leave the model without its usual
    next token. Without examples the prompt is zero-shot. Brown et al., 2020, § 2.

    Args:
        query: the question to be answered; it must not be among the examples, which
            would give its answer away
        shots: examples in order, as `Shot` or as (question, answer)
        instruction: what is to be done
        question_label: stands before each question
        answer_label: stands before each answer

    Returns:
        The prompt.

    Raises:
        ValueError: if the query is empty or one of the examples, or an example is
            empty.

    >>> print(few_shot_prompt("bread", [("cheese", "fromage")], instruction="French."))
    French.
    <BLANKLINE>
    Q: cheese
    A: fromage
    <BLANKLINE>
    Q: bread
    A:
    """
    examples = [shot if isinstance(shot, Shot) else Shot(*shot) for shot in shots]
    query, answer_label = query.strip(), answer_label.rstrip()
    if not query:
        raise ValueError("query is empty: expected a question")
    for number, shot in enumerate(examples):
        if _same_text(shot.question, query):
            raise ValueError(
                f"shots[{number}] asks the query itself, {query[:40]!r}: it would give "
                "the answer away"
            )
    parts = [instruction.strip()] if instruction.strip() else []
    parts += [
        f"{question_label} {shot.question.strip()}\n{answer_label} {shot.reply}"
        for shot in examples
    ]
    parts.append(f"{question_label} {query}\n{answer_label}")
    return "\n\n".join(parts)


def final_answer(text: str) -> str | None:
    """Read the answer at the end of a chain of thought.

    What follows the last "answer is" up to the end of its sentence; failing that, the
    last number. Commas between thousands are dropped.

    Args:
        text: what a model wrote

    Returns:
        The answer, without the point behind it; None if there is none.

    >>> final_answer("3 + 4 = 7. The answer is 7.")
    '7'
    >>> final_answer("so it must be 1,250 euros!")
    '1250'
    """
    *said, last = re.split(r"answer is:?", text, flags=re.IGNORECASE)
    if said:
        # A point ends the sentence unless a digit follows, as in 3.5.
        sentence = re.split(r"[.!?](?=\s|$)|\n", last)[0].strip()
        if sentence:
            return _without_thousands(sentence)
    numbers = re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?", text)
    return _without_thousands(numbers[-1].rstrip(",")) if numbers else None


@dataclass(frozen=True)
class Vote:
    """What several attempts agree on.

    >>> Vote("4", share=0.75, counts={"4": 3, "5": 1}).share
    0.75
    """

    answer: str | None  # None if no attempt gave an answer
    share: float  # of all attempts, those that gave this answer
    counts: dict[str, int]  # all answers, in the order of their first attempt


def self_consistency(
    texts: Sequence[str],
    read_answer: Callable[[str], str | None] = final_answer,
) -> Vote:
    """Let several attempts at one question vote, each with the answer it ends in.

    What is voted on is the answer, not the text: many ways may lead to one answer. Of
    equals, the answer that came first wins. Wang et al., 2023, § 2.

    Args:
        texts: attempts, sampled from a model at a temperature above 0
        read_answer: from a text to its answer, None if there is none

    Returns:
        The vote. Attempts without an answer count in none but lower the share.

    Raises:
        ValueError: if there are no texts.

    >>> self_consistency(["2 + 2 is 4.", "so 4", "the answer is 5."]).answer
    '4'
    """
    if not texts:
        raise ValueError("there are 0 texts: expected at least one attempt")
    answers = [read_answer(text) for text in texts]
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return Vote(None, 0.0, {})
    # Of equal counts, max takes the first, and a Counter keeps the order of arrival.
    answer = max(counts, key=counts.__getitem__)
    return Vote(answer, counts[answer] / len(texts), dict(counts))


def _without_thousands(text: str) -> str:
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def _same_text(a: str, b: str) -> bool:
    return a.casefold().split() == b.casefold().split()
