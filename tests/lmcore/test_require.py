"""What arguments must be: what passes, and what the refusal of the rest says."""

import math
import re

import pytest
import torch

from lmcore import model, require


def refused(message: str, error: type[Exception] = ValueError):
    """Expect an error with exactly this message."""
    return pytest.raises(error, match=f"^{re.escape(message)}$")


NAN = math.nan


@pytest.mark.parametrize(
    ("check", "passing", "failing", "said"),
    [
        (require.at_least_one, [1, 2, 10**9], [0, -1, NAN], "must be at least 1"),
        (require.not_negative, [0, 1, 1e-9, math.inf], [-1, -1e-9, NAN], "must not be"),
        (require.positive, [1e-9, 1, math.inf], [0, 0.0, -1, NAN], "must be positive"),
    ],
)
def test_a_number_passes_or_is_refused_by_name(check, passing, failing, said):
    for number in (*passing, None):
        assert check(size=number) is None
    for number in failing:
        with pytest.raises(ValueError, match=re.escape(f"size={number} {said}")):
            check(size=number)


def test_the_first_wrong_number_is_named():
    with refused("b=0 must be at least 1"):
        require.at_least_one(a=1, b=0, c=0)
    require.at_least_one()


def test_both_ends_belong_to_a_range():
    require.between(0, 1, a=0, b=0.5, c=1, d=None)
    for number in (-0.1, 1.1, NAN):
        with refused(f"b={number} must lie between 0 and 1"):
            require.between(0, 1, a=0, b=number)


def test_each_number_is_divisible_by_the_next():
    require.divisible(d_model=12, n_heads=4, n_kv_heads=2)
    require.divisible(d_model=0, n_heads=4)
    require.divisible(d_model=12)
    with refused("d_model=12 is not divisible by n_heads=5"):
        require.divisible(d_model=12, n_heads=5)
    with refused("n_heads=4 is not divisible by n_kv_heads=3"):
        require.divisible(d_model=12, n_heads=4, n_kv_heads=3)  # 12 by 3 would do


@pytest.mark.parametrize("divisor", [0, -4])
def test_nothing_is_divided_by_less_than_one(divisor):
    with refused(f"d_model=12 is not divisible by n_heads={divisor}"):
        require.divisible(d_model=12, n_heads=divisor)


@pytest.mark.parametrize("choices", [("layer", "rms"), {"layer": 1, "rms": 2}])
def test_a_choice_is_one_of_the_choices(choices):
    require.one_of("norm", "rms", choices)
    with refused("norm='r' must be one of layer, rms"):
        require.one_of("norm", "r", choices)


def test_the_width_is_the_last_axis():
    require.width("x", torch.zeros(2, 5, 3), 3)
    with refused("context has shape (3, 2), expected width 3"):
        require.width("context", torch.zeros(3, 2), 3)


def test_indices_fit_their_table():
    require.indices("ids", torch.tensor([[0, 4]]), n_words=5)
    require.indices("ids", torch.zeros(0, dtype=torch.int64), n_words=5)
    for wrong in ([0, 5], [-1, 4]):
        with refused(
            f"ids from {wrong[0]} to {wrong[1]} must lie between 0 and n_words - 1 = 4"
        ):
            require.indices("ids", torch.tensor(wrong), n_words=5)


def test_indices_without_numbers_pass():
    require.indices("ids", torch.zeros(3, dtype=torch.int64, device="meta"), n_words=5)


def test_indices_do_not_break_a_compiled_graph():
    def look_up(table, ids):
        require.indices("ids", ids, n_words=len(table))
        return table[ids]

    table, ids = torch.arange(10.0).view(5, 2), torch.tensor([0, 4])
    compiled = torch.compile(look_up, backend="eager", fullgraph=True)
    assert torch.equal(compiled(table, ids), table[ids])


def test_there_is_one_length_for_each_row():
    require.lengths(torch.tensor([1, 4]), n_rows=2, n_tokens=4)
    require.lengths(torch.zeros(0, dtype=torch.int64), n_rows=0, n_tokens=4)
    for wrong in ([1], [0, 4], [1, 5], [[1, 4]]):
        with refused(
            f"lengths={wrong} must be one number for each of the 2 rows, "
            "between 1 and 4"
        ):
            require.lengths(torch.tensor(wrong), n_rows=2, n_tokens=4)


def test_a_string_is_no_list_of_words():
    require.words(["the", "cat"])
    require.words(())
    with refused("'the cat' is a string, expected a list of words", TypeError):
        require.words("the cat")
    with refused(f"{'a' * 40!r} is a string, expected a list of words", TypeError):
        require.words("a" * 100)  # cut, so that a book does not fill the screen


def test_a_model_refuses_with_the_names_of_its_configuration():
    with refused("n_heads=4 is not divisible by n_kv_heads=3"):
        model.ModelConfig(vocab_size=5, d_model=8, n_heads=4, n_kv_heads=3)
