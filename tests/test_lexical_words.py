"""What a text can be found by: spelling, scripts, endings, and that a batch is analysed as its texts are."""

from __future__ import annotations

import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedrag.search import words

scripts = st.sampled_from("aBé'’ʻ .-_\n\u3000日本語カナ한국ไทย가नमस्ते\u0301ßİſﬁ½Ως²\u200b\u00ad😀")
texts = st.one_of(st.text(max_size=30), st.text(scripts, max_size=30))


def found_by(question: str, text: str) -> bool:
    """Whether a question has a term in common with a text."""
    return bool(np.isin(words.of_question(question)[0], words.of_text(text)).any())


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("hawaii", "Hawaiʻi, Hawaii"),
        ("Hawaiʻi", "aloha from HAWAI'I!"),
        ("hawai’i", "hawaii"),
        ("oahu", "Oʻahu"),
        ("beach", "the beaches"),
        ("hotels", "(hotel)"),
        ("hotel", "the hotel's pool"),
        ("hotel", "l’hôtel"),
        ("cafe", "Café"),
        ("café", "cafe\u0301"),
        ("STRASSE", "Straße"),
        ("istanbul", "İstanbul"),
        ("fine", "ﬁne"),
        ("case", "snake_case"),
        ("Αθήνα", "ΑΘΗΝΑ"),
        ("елка", "ёлка"),
        ("नमस्ते", "नमस्ते दुनिया"),
        ("كتاب", "كِتَاب"),
        ("שלום", "שָׁלוֹם"),
        ("东京", "我在东京的酒店"),
        ("猫", "黒猫"),
        ("タワー", "東京ﾀﾜｰ"),
        ("กรุงเทพ", "โรงแรมในกรุงเทพมหานคร"),
        ("서울", "서울에서 맛집"),
        ("手机", "iPhone手机壳"),
        ("iphone", "iPhone手机壳"),
    ],
)
def test_words_are_found_however_they_are_spelled(question: str, text: str) -> None:
    """Case, accents, apostrophes, endings, widths and missing spaces do not matter."""
    assert found_by(question, text)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("art", "party"),
        ("hell", "shell"),
        ("京都", "東京"),
        ("नम", "नमस्ते"),
        ("", "anything"),
        ("?!", "anything?!"),
        ("и", "мой"),
        ("か", "が"),
    ],
)
def test_other_words_are_not_found(question: str, text: str) -> None:
    """Parts of words are no words, marks that make another letter count, and a pair is asked for as a pair."""
    assert not found_by(question, text)


@given(st.lists(texts, max_size=8))
def test_a_batch_is_analysed_as_its_texts_are(given_texts: list[str]) -> None:
    """The terms of each text, as often as they occur, whether it comes alone or with others."""
    batch = words.tokens(pa.array(given_texts, pa.string()))
    assert (np.diff(batch.texts) >= 0).all()
    assert (np.diff(batch.hashes.astype(object)) > 0).all()
    for at, text in enumerate(given_texts):
        assert Counter(batch.hashes[batch.terms[batch.texts == at]].tolist()) == Counter(words.of_text(text).tolist())


@given(texts, texts)
def test_texts_are_bags_of_words(one: str, other: str) -> None:
    """Two texts side by side have the terms of both, unless they touch."""
    both = Counter(words.of_text(f"{one} {other}").tolist())
    assert both == Counter(words.of_text(one).tolist()) + Counter(words.of_text(other).tolist())


@given(texts)
def test_spellings_of_one_text_are_one(text: str) -> None:
    """Composed or decomposed, a text has the same terms; a question asks for terms that the same text has."""
    terms = set(words.of_text(text).tolist())
    for form in ("NFC", "NFD"):
        assert set(words.of_text(unicodedata.normalize(form, text)).tolist()) == terms
    assert terms.issuperset(words.of_question(text)[0].tolist())


@given(st.text(st.characters(categories=("L", "N")), min_size=1, max_size=4))
def test_letters_and_digits_are_always_found(text: str) -> None:
    """Whatever script they are of, but for letters that only modify others."""
    plain = unicodedata.normalize("NFKC", text)
    if plain.isalnum() and not all(unicodedata.category(one) == "Lm" for one in plain):
        assert found_by(text, text)


def test_a_question_counts_its_words() -> None:
    """A word asked for twice counts twice."""
    hashes, counts = words.of_question("beach beaches hotel")
    assert sorted(counts.tolist()) == [1, 2]
    assert (np.diff(hashes.astype(object)) > 0).all()


def test_what_is_not_utf_8_is_refused() -> None:
    """Arrow looks at every byte before anything is cut."""
    bounds, heap = pa.py_buffer(np.array([0, 4], np.int32)), pa.py_buffer(b"a \xff\xfe")
    with pytest.raises(pa.ArrowInvalid):
        words.tokens(pa.StringArray.from_buffers(1, bounds, heap))
