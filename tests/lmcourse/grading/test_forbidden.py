"""Forbidden calls: certain in the function, for a person elsewhere."""

import pytest

from lmcourse.grading import forbidden

FACTS = {"forbidden": ["torch.softmax", "attention.online_softmax_attention"]}
GIVEN = [
    "import torch\nfrom torch.nn import functional as F\nfrom lmcore import attention"
]


def find(own: str, *others: str):
    return forbidden.find(FACTS, own, list(others), GIVEN)


@pytest.mark.parametrize(
    "own",
    [
        "def f(x): return torch.softmax(x, -1)",
        "def f(x): return x.softmax(-1)",
        "import torch as t\ndef f(x): return t.softmax(x, -1)",
        "from torch import softmax as s\ndef f(x): return s(x, -1)",
        "def f(x):\n    from torch import softmax\n    return softmax(x, -1)",
        "f = lambda x: torch.softmax(x, -1)",
        "class C:\n    def f(self, x): return torch.softmax(x, -1)",
        "%matplotlib inline\ndef f(x): return torch.softmax(x, -1)",
    ],
)
def test_a_call_in_the_function_is_certain(own):
    assert find(own) == (["torch.softmax"], [])


def test_names_of_lmcore_are_known_by_the_given_imports():
    own = "def f(q, k, v): return attention.online_softmax_attention(q, k, v)"
    assert find(own)[0] == ["attention.online_softmax_attention"]


@pytest.mark.parametrize(
    "own",
    [
        "def f(x): return torch.exp(x)",
        "def f(x):\n    '''Like torch.softmax.'''\n    # torch.softmax\n    return x",
        "def softmax(x): return torch.exp(x)",
        "def f(x): return F.relu(x)",
        "this is not Python",
        "",
    ],
)
def test_what_does_not_call_it_is_let_alone(own):
    assert find(own) == ([], [])


def test_a_comparison_beside_the_function_is_for_a_person():
    certain, flags = find("def f(x): return x\nprint(torch.softmax(f(1), -1))")
    assert certain == []
    assert flags == ["uses torch.softmax outside the function"]


def test_a_helper_in_another_cell_is_for_a_person():
    helper = "def helper(x): return torch.softmax(x, -1)"
    certain, flags = find("def f(x): return helper(x)", helper)
    assert certain == []
    assert flags == ["calls a helper that uses torch.softmax"]
    assert find("def f(x): return x", helper) == ([], [])


@pytest.mark.parametrize("way", ["getattr(torch, 'soft' + 'max')", "eval('torch')"])
def test_calls_by_name_as_text_are_for_a_person(way):
    certain, flags = find(f"def f(x): return {way}")
    assert certain == []
    assert "by their names as text" in flags[0]
