"""Plain data: round trips, refusal of anything else, and verdicts."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmcore.homework import plain

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def through_json(x):
    return plain.decode(json.loads(json.dumps(plain.encode(x))))


@given(VALUES)
def test_python_values_survive(x):
    assert through_json(x) == x
    assert type(through_json(x)) is type(x)


@pytest.mark.parametrize("dtype", plain.DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0, 3)])
def test_tensors_survive_with_dtype_and_shape(dtype, shape):
    x = (torch.arange(math.prod(shape)).reshape(shape) % 2).to(dtype)
    y = through_json(x)
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert torch.equal(x, y)


def test_what_a_tensor_shares_or_carries_does_not_matter():
    x = torch.arange(12.0).reshape(3, 4)
    for view in (x.T, x[:, ::2], x.clone().requires_grad_(), x[1:].conj()):
        assert torch.equal(through_json(view), view)


def test_nan_and_infinity_survive():
    x = [math.inf, -math.inf, math.nan]
    assert str(through_json(x)) == "[inf, -inf, nan]"


def test_numpy_and_torch_scalars_become_plain():
    assert through_json(np.float32(0.5)) == 0.5
    assert through_json(np.arange(3)).tolist() == [0, 1, 2]
    assert through_json(torch.float16) == "torch.float16"
    assert through_json(torch.device("cpu")) == "cpu"


def test_of_other_objects_only_the_type_is_kept():
    assert through_json([object]) == [plain.Unsupported("type")]
    assert isinstance(through_json({1: 2}), plain.Unsupported)
    assert isinstance(through_json(torch.zeros(2).to_sparse()), plain.Unsupported)


def test_large_and_deep_values_are_refused():
    deep = []
    for _ in range(50):
        deep = [deep]
    itself = []
    itself.append(itself)
    for x in (torch.zeros(5000), "x" * 5000, [0] * 300_000, deep, itself, 2**5000):
        with pytest.raises(plain.TooLarge):
            plain.encode(x, max_bytes=10_000)


def tensor(dtype="float32", shape=(1,), content="AAAAAA=="):
    return {"tensor": {"dtype": dtype, "shape": list(shape), "bytes": content}}


@pytest.mark.parametrize(
    "data",
    [
        tensor(dtype="object"),
        tensor(dtype=["float32"]),
        tensor(shape=(2,)),
        tensor(shape=(-1,)),
        tensor(shape=(True,)),
        tensor(shape=(2**40, 0)),
        tensor(shape=[1] * 40),
        tensor(content="AAAA"),
        tensor(content="AAAA!A=="),
        tensor(content=7),
        tensor(dtype="bool", content="Ag=="),
        {"tensor": {"dtype": "float32", "shape": [1]}},
        {"pickle": "gASVAAAA"},
        {"float": "1e5"},
        {"float": ["nan"]},
        {"tuple": 3},
        {"dict": [1]},
        {"complex": [1.0]},
        {"complex": [1.0, "x"]},
        {"tuple": [], "dict": {}},
        {},
        math.nan,
        b"bytes",
    ],
)
def test_data_that_encode_does_not_write_is_refused(data):
    with pytest.raises(plain.Malformed):
        plain.decode(data)


def test_sizes_are_checked_before_memory_is_taken():
    with pytest.raises(plain.TooLarge):
        plain.decode(tensor(shape=(2**30, 2**30), content=""))
    with pytest.raises(plain.TooLarge):
        plain.decode([0] * 300_000)
    deep = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(plain.TooLarge):
        plain.decode(deep)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_literals_of_narrow_floats_are_short_and_exact(dtype):
    x = torch.tensor([0.1, 1 / 3, -2e-7, 1e4], dtype=dtype)
    written = plain.literal(x)
    assert torch.equal(torch.tensor(written, dtype=dtype), x)
    assert all(len(repr(number)) <= 14 for number in written)


def test_literals_of_nested_results():
    x = (torch.tensor([[True], [False]]), {"n": torch.tensor(3)}, "word", None)
    assert plain.literal(x) == ([[True], [False]], {"n": 3}, "word", None)
    with pytest.raises(TypeError, match="function"):
        plain.literal([len, lambda: 0][1:])


SAME = [
    (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
    ([1.0, 2.0], torch.tensor([1.0, 2.0])),
    (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])),
    (torch.tensor([1.0]).double(), torch.tensor([1.0])),
    (torch.tensor([1, 2], dtype=torch.int32), [1, 2]),
    (torch.tensor(2.5), 2.5),
    (2.5, torch.tensor(2.5)),
    (2, 2.0),
    ([1, 2], (1, 2)),
    (torch.Size([2, 3]), (2, 3)),
    ((torch.ones(2), torch.zeros(1)), ([1.0, 1.0], [0.0])),
    (torch.zeros(0, 3), {"shape": [0, 3]}),
    (torch.zeros(0), []),
    (math.nan, math.nan),
    (torch.tensor([math.nan, math.inf]), [math.nan, math.inf]),
    (1.000001, 1.0),
    (torch.float32, "torch.float32"),
    (None, None),
    ({"a": torch.ones(1)}, {"a": [1.0]}),
    (1 + 2j, 1 + 2j),
]


@pytest.mark.parametrize(("yours", "expected"), SAME, ids=repr)
def test_the_same_answer_in_another_form_is_right(yours, expected):
    assert plain.compare(yours, expected) is None


WRONG = [
    (True, 1, "type"),
    (1, True, "type"),
    (2.0, 2, "type"),
    ("1", 1, "type"),
    (None, 0, "type"),
    (torch.tensor([1, 0]), [True, False], "dtype"),
    (torch.tensor([1, 2]), [1.0, 2.0], "dtype"),
    (torch.ones(2, 1), torch.ones(2), "shape"),
    (torch.ones(1, 2), [[1.0], [1.0]], "shape"),
    (torch.zeros(3, 0), {"shape": [0, 3]}, "shape"),
    (torch.ones(2, 2), ([1.0, 1.0], [1.0, 1.0]), "type"),
    ([1, 2], [1, 2, 3], "length"),
    ({"a": 1}, {"b": 1}, "keys"),
    (math.nan, 1.0, "nan"),
    (torch.tensor([1.0, math.nan]), [1.0, 2.0], "nan"),
    (1.0, math.nan, "value"),
    (math.inf, 1.0, "value"),
    (1.0001, 1.0, "value"),
    ("no error", "ValueError", "value"),
    (len, 1, "type"),
    ([torch.ones(2), torch.ones(3)], torch.ones(2, 3), "type"),
    (2**2000, 1.0, "value"),
]


@pytest.mark.parametrize(("yours", "expected", "kind"), WRONG, ids=repr)
def test_a_wrong_answer_is_named_by_kind(yours, expected, kind):
    assert plain.compare(yours, expected).kind == kind


def test_the_first_difference_is_shown_with_both_values():
    yours = (torch.tensor([[1.0, 2.0], [3.0, 9.0]]), 1)
    wrong = plain.compare(yours, ([[1.0, 2.5], [3.0, 4.0]], 1))
    assert (wrong.where, wrong.yours, wrong.expected) == ("[0][0, 1]", "2.0", "2.5")
    assert str(wrong) == (
        "at [0][0, 1]: yours is 2.0, expected 2.5 (2 of 4 numbers differ)"
    )


def test_the_tolerance_can_be_stated():
    assert plain.compare(1.009, 1.0, atol=0.01) is None
    assert plain.compare(101.0, 100.0, atol=0, rtol=0.02) is None
    assert plain.compare(1.02, 1.0, atol=0.01) is not None


def test_a_check_cannot_expect_an_object():
    with pytest.raises(TypeError, match="cannot expect"):
        plain.compare(1, object())


def test_bounds():
    assert plain.within(0.5, at_least=0.5, at_most=1) is None
    assert plain.within(torch.tensor([1, 2]), at_most=2) is None
    wrong = plain.within([0.0, 3.0], at_most=2)
    assert (wrong.where, wrong.kind) == ("[1]", "bound")
    for x in (math.nan, True, "1", None, torch.zeros(0), torch.ones(1) * math.nan):
        assert plain.within(x, at_least=0) is not None


def test_judge_takes_nothing_on_trust():
    record = {"value": plain.encode(torch.ones(2)), "atol": 1e-5, "rtol": 1e-5}
    assert plain.judge(plain.encode(torch.ones(2).double()), record) is None
    assert plain.judge(plain.encode(torch.zeros(2)), record).kind == "value"
    assert plain.judge({"error": "IndexError", "message": "x"}, record).kind == "error"
    assert plain.judge({"error": ["?"], "message": {}}, record).kind == "error"
    assert "unreadable" in str(plain.judge(tensor(shape=(9,)), record))
    assert plain.judge({"unsupported": "module"}, record).kind == "type"
    bounds = {"value": 1, "atol": 0, "rtol": 0, "at_least": 0.5, "at_most": None}
    assert plain.judge(2, bounds) is None
    assert plain.judge(0, bounds).kind == "bound"
