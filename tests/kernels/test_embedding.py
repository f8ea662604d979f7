"""Embedding: rows are looked up, and gradients of repeated tokens add up."""

import numpy as np
import pytest

from tests.helpers import assert_gradient, error

# ids, V: repeated tokens, all the same, the first and the last of the table, one row, one column below
CASES = [
    ([[3, 1, 3], [3, 0, 4]], 5),
    ([[2, 2, 2, 2]], 3),
    ([0, 6, 0, 6, 6], 7),
    ([[0]], 1),
    ([[[1, 0], [1, 1]]], 2),
]


@pytest.mark.parametrize("C", [4, 1])
@pytest.mark.parametrize(("ids", "V"), CASES)
def test_forward_and_backward(form, rng, ids, V, C):
    ids, weight = np.array(ids), rng.normal(size=(V, C))
    dy = rng.normal(size=(*ids.shape, C))

    def forward(weight):
        return form.host(form.ops.embedding_forward(form.put(ids), form.put(weight)))

    expected = np.array([weight[i] for i in ids.reshape(-1)]).reshape(*ids.shape, C)
    assert error(forward(weight), expected) == 0
    dweight = form.scratch(np.zeros((V, C)))
    assert form.ops.embedding_backward(form.put(dy), form.put(ids), dweight) is dweight
    assert_gradient(form.host(dweight), forward, weight, dy)


def test_output_is_not_a_view_of_the_table(form, rng):
    weight = form.scratch(rng.normal(size=(3, 2)))
    before = form.host(weight).copy()
    y = form.ops.embedding_forward(form.put(np.array([0, 1, 2])), weight)
    y += 1.0
    assert error(form.host(weight), before) == 0


def test_backward_adds_to_what_is_there(form, rng):
    # A tied output head has put its part into the same array before.
    ids, dy, there = np.array([[4, 1, 4]]), rng.normal(size=(1, 3, 2)), rng.normal(size=(6, 2))
    expected = there.copy()
    expected[4] += dy[0, 0] + dy[0, 2]
    expected[1] += dy[0, 1]
    dweight = form.scratch(there)
    form.ops.embedding_backward(form.put(dy), form.put(ids), dweight)
    assert error(form.host(dweight), expected) < 1e-15
    assert error(form.host(dweight)[[0, 2, 3, 5]], there[[0, 2, 3, 5]]) == 0


@pytest.mark.parametrize("integers", ["uint8", "uint16", "int32", "int64"])
def test_many_rows_of_few_tokens(form, rng, integers):
    V, C = 11, 3
    ids = rng.integers(0, V - 1, size=(9, 41)).astype(integers)  # the last token never occurs
    dy = rng.normal(size=(9, 41, C)).astype("float32")
    one_hot = ids.reshape(-1)[:, None] == np.arange(V)
    expected = one_hot.astype("float64").T @ dy.reshape(-1, C)
    dweight = form.scratch(np.zeros((V, C), dtype="float32"))
    form.ops.embedding_backward(form.put(dy), form.put(ids), dweight)
    assert dweight.dtype == np.float32
    assert error(form.host(dweight), expected) < 1e-5
    y = form.ops.embedding_forward(form.put(ids), form.put(np.ones((V, C), dtype="float32")))
    assert y.dtype == np.float32
    assert y.shape == (9, 41, C)
