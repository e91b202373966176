"""Dropout off for a while, and every part as it was afterwards."""

import pytest
import torch
from torch import nn

from lmcore import modes


def parts_of(*models):
    return [part for model in models for part in model.modules()]


@pytest.fixture
def model():
    """A model of which one part was frozen on purpose."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5)))
    model[0].eval()
    return model


def test_nothing_drops_out_and_every_part_is_as_before(model):
    before = [part.training for part in parts_of(model)]
    assert before == [True, False, True, True]
    with modes.evaluating(model):
        assert not any(part.training for part in parts_of(model))
        x = torch.ones(1, 2)
        assert torch.equal(model(x), model(x))
    assert [part.training for part in parts_of(model)] == before


def test_a_still_model_with_a_part_in_training(model):
    model.training = False  # the parts keep theirs
    with modes.evaluating(model):
        assert not model[1][0].training
    assert not model.training
    assert model[1][0].training


def test_an_error_leaves_nothing_changed(model):
    before = [part.training for part in parts_of(model)]
    with pytest.raises(RuntimeError), modes.evaluating(model):
        raise RuntimeError
    assert [part.training for part in parts_of(model)] == before


def test_several_models_and_shared_parts(model):
    other = nn.Sequential(model[1], nn.Dropout(0.1))
    with modes.evaluating(model, other, model):
        assert not any(part.training for part in parts_of(model, other))
        with modes.evaluating(other):
            pass
        assert not any(part.training for part in parts_of(model, other))
    assert all(part.training for part in parts_of(other))
    assert not model[0].training


def test_gradients_are_another_matter(model):
    with modes.evaluating(model):
        assert model(torch.ones(1, 2)).requires_grad


def test_nothing_to_be_still():
    with modes.evaluating():
        pass
