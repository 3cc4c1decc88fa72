"""The checks that words carry: every change of one byte is noticed."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sharedrag.arena.row import FLAGS_MASK, are_flags_words, flags_word
from sharedrag.memory import order

_VALUES = [0, 1, 244, 1 << 24, (1 << 31) - 1, (1 << 54) + 12_345, order.VALUE_MASK]


@pytest.mark.parametrize("value", [*_VALUES, *(random.Random(9).getrandbits(55) for _ in range(40))])
def test_a_changed_byte_of_a_checked_word_is_noticed(value: int) -> None:
    """Of all words that differ from a checked word in one byte, none passes; nor does zero."""
    word = order.checked(value)
    assert order.is_checked(word)
    others = [word ^ change << 8 * byte for byte in range(8) for change in range(1, 256)]
    assert not any(order.is_checked(other) for other in others)
    assert not order.are_checked(np.array(others, np.uint64)).any()
    assert not order.is_checked(0)


@pytest.mark.parametrize("key", [0, 1 << 10, random.Random(8).getrandbits(63)])
@pytest.mark.parametrize("flags", range(16))
def test_a_changed_byte_of_flags_or_key_is_noticed(flags: int, key: int) -> None:
    """A flags word that differs in one byte, or belongs to a key that does, fails; so does zero."""
    word = flags_word(flags, key)
    words = [word, 0, *(word ^ change << 8 * byte for byte in range(2) for change in range(1, 256))]
    keys = [key, *(key ^ change << 8 * byte for byte in range(8) for change in range(1, 256))]
    right = are_flags_words(np.array(words, np.uint16), np.full(len(words), key, np.uint64))
    assert right[0]
    assert not right[1:].any()
    assert not any(flags_word(other & FLAGS_MASK, key) == other for other in words[1:])
    right = are_flags_words(np.full(len(keys), word, np.uint16), np.array(keys, np.uint64))
    assert right[0]
    assert not right[1:].any()
