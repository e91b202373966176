"""Every public name of lmcore has an example, and what it says is what it gives."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import lmcore

MODULES = [
    "lmcore",
    *(module.name for module in pkgutil.walk_packages(lmcore.__path__, "lmcore.")),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0, "see the captured output"


def public_names(module):
    """The functions and classes that a module defines and does not hide."""
    return {
        name: thing
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == module.__name__
    }


def has_an_example(thing):
    """Whether a function, or a class or one of its methods, shows what it is for."""
    found = doctest.DocTestFinder().find(thing, thing.__name__)
    return any(test.examples for test in found)


# The commands of lmcore.__main__ explain themselves with --help, and have tests.
@pytest.mark.parametrize("name", [n for n in MODULES if not n.endswith("__main__")])
def test_every_public_name_has_an_example(name):
    public = public_names(importlib.import_module(name))
    assert [n for n, thing in public.items() if not has_an_example(thing)] == []


def test_a_name_without_an_example_is_found():
    def bare():
        """Do something."""

    def shown():
        """Do something.

        >>> 1
        1
        """

    assert has_an_example(shown)
    assert not has_an_example(bare)
    found = public_names(importlib.import_module("lmcore.attention"))
    assert {"causal_mask", "KeyValueCache"} <= set(found)
    assert "Tensor" not in found
    assert "_check_attention_inputs" not in found
