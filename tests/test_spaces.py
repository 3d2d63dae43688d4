"""UnicodeText: a text space that Gymnasium and Stable-Baselines3 both can work with."""

import copy
import json
import pickle

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import CustomSpaceError
from gymnasium.vector.utils import batch_space, create_empty_array, create_shared_memory

from agentprm_gym import UnicodeText


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("", True),
        ("a line\nand another\ttabbed", True),
        ("caf\u00e9 \u2603 \U0001f600", True),
        (np.str_("numpy's"), True),
        ("x" * 40, True),
        ("x" * 41, False),
        (b"bytes", False),
        (None, False),
        (np.array("text", dtype=object), False),
    ],
)
def test_contains_any_str_up_to_the_length(text, inside):
    assert (text in UnicodeText(40)) is inside


def test_min_length_counts():
    space = UnicodeText(3, min_length=2)
    assert "a" not in space
    assert "ab" in space


def test_samples_are_inside_and_seeded():
    a, b = UnicodeText(50, seed=3), UnicodeText(50, seed=3)
    drawn = [a.sample() for _ in range(20)]
    assert drawn == [b.sample() for _ in range(20)]
    assert all(text in a for text in drawn)
    assert len(set(drawn)) > 1


def test_equality_is_by_bounds_and_type():
    assert UnicodeText(10) == UnicodeText(10)
    assert UnicodeText(10) != UnicodeText(11)
    assert UnicodeText(10) != UnicodeText(10, min_length=1)
    assert UnicodeText(10) != spaces.Text(10, min_length=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_are_equal_and_draw_the_same(copied):
    space = UnicodeText(30, min_length=1, seed=7)
    space.sample()
    twin = copied(space)
    assert twin == space
    assert (twin.shape, twin.dtype) == ((), np.dtype(object))
    assert twin.sample() == space.sample()


def test_repr_is_short_and_json_goes_both_ways():
    space = UnicodeText(30)
    assert repr(space) == "UnicodeText(0, 30)"
    texts = ["go to fridge 1", "caf\u00e9\n"]
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(texts)))) == texts


def test_gymnasium_batches_it_as_a_tuple_of_texts():
    batched = batch_space(UnicodeText(9), 2)
    assert ("a", "\u00e9") in batched
    assert create_empty_array(UnicodeText(9), 2) in batched


@pytest.mark.parametrize("nested", [False, True])
def test_shared_memory_is_refused_and_the_message_says_what_to_do(nested):
    space = UnicodeText(9)
    with pytest.raises(CustomSpaceError, match="shared_memory=False"):
        create_shared_memory(spaces.Dict(text=space) if nested else space, n=2)


@pytest.mark.parametrize("bounds", [(-1, 0), (3, 4)])
def test_impossible_lengths_are_refused(bounds):
    max_length, min_length = bounds
    with pytest.raises(ValueError, match="length"):
        UnicodeText(max_length, min_length=min_length)
