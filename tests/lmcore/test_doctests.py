"""Every example in lmcore's docstrings runs and gives what it says."""

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


@pytest.mark.parametrize("name", ["lmcore.attention", "lmcore.data"])
def test_every_public_name_has_an_example(name):
    module = importlib.import_module(name)
    public = [
        thing
        for thing_name, thing in vars(module).items()
        if not thing_name.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == name
    ]
    finder = doctest.DocTestFinder()
    without = [
        thing.__name__
        for thing in public
        if not any(test.examples for test in finder.find(thing, thing.__name__))
    ]
    assert public
    assert without == []
