"""Texts to terms: which words of a text can be found, and by which words of a question.

A text is cut at white space, by Arrow and off the interpreter's lock; each *distinct* piece is then analysed once:

- it is normalised (NFKC) and case-folded; accents of Latin and Greek letters, vowel points of Arabic and Hebrew, soft
  hyphens and the ʻokina are dropped, so that hawaii, Hawaiʻi, Hawai'i and HAWAIʻI are one word;
- words are what remains of letters, digits and marks (Devanagari's vowel signs are marks); all else separates them, but
  an apostrophe between letters: it is dropped, and after c, d, j, l, m, n, s, t and qu it separates (l'hôtel);
- Snowball's English stemmer takes endings off (beaches, beach). It leaves words of other scripts as they are, and what it
  does to other Latin languages it does to texts and questions alike;
- scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), and Korean, which glues endings
  on, are indexed as single characters and pairs of neighbours, as Lucene's CJK analyser does; a question is cut into
  pairs, and into a single character only where it stands alone.

No word is left out as too common: BM25 gives those little weight, and `lexical` skips them where they cannot matter.

A term is known by 64 bits: the xxh3-64 of its UTF-8, or a mix of one or two code points. Among a million terms two of one
hash are to be expected once in some 37 million collections; texts would then be found by a word they do not hold.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import Stemmer
import xxhash

#: Postings made by another analyser are not those that a question would be looked up in. Raise it with every change here.
ANALYSER = xxhash.xxh3_64_intdigest(f"1 {Stemmer.version()} english".encode())

_MARKS = re.compile("(?<=[a-z\u0370-\u03ff])[\u0300-\u036f]+")
_AROUND = ".,;:!?\"()[]'-"  # what mostly stands around a word; all of it separates
_ASCII_WORDS = re.compile("[a-z0-9]+(?:'[a-z0-9]+)*")
_OTHER_WORDS = re.compile(r"[^\s']+(?:'[^\s']+)*")
_ELISION = re.compile("(?:[cdjlmnst]|qu)'")
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3021-\u3035\u303b\u3041-\u30ff\u3105-\u318f"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff]+)"
)
_FOLDED = {
    **dict.fromkeys(map(ord, "\u2018\u2019\u201b"), "'"),  # quotes that are typed for an apostrophe; U+FF07 is NFKC's
    **dict.fromkeys(range(0x2B0, 0x300)),  # modifier letters, of which the ʻokina is one
    **dict.fromkeys((*range(0x591, 0x5C8), 0x640, *range(0x64B, 0x660), 0x670)),  # points, and Arabic's stretching stroke
    0x200B: " ",  # the zero-width space, which does separate words
    **{ord(one): other for one, other in zip("øłđðıёأإآىة", "oldd" + "iе" + "اااي" + "ه", strict=True)},
    **{ord(one): other for one, other in zip("þæœ", ("th", "ae", "oe"), strict=True)},
}


class Tokens(NamedTuple):
    """Every occurrence of a term in some texts: which text, and which of `hashes`; the texts rise."""

    texts: npt.NDArray[np.int64]
    terms: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]  # each once, rising


class _Table(dict[int, str | None]):
    """What becomes of a character, by code point: kept, dropped, or a space. Filled as characters are met."""

    def __missing__(self, code: int) -> str | None:
        kind = unicodedata.category(chr(code))
        kept = kind[0] in "LNM" or code == 0x27
        self[code] = made = chr(code) if kept else None if kind == "Cf" else " "
        return made


_TABLE = _Table(_FOLDED)
_of_thread = threading.local()


def _stem(words: list[str]) -> list[str]:
    """The words' stems. A stemmer serves one thread at a time."""
    try:
        stemmer = _of_thread.stemmer
    except AttributeError:
        stemmer = _of_thread.stemmer = Stemmer.Stemmer("english", 0)
    return stemmer.stemWords(words)  # type: ignore[no-any-return]


def _fold(text: str) -> str:
    """The text in the one spelling that all its spellings share, its words apart."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _MARKS.sub("", unicodedata.normalize("NFD", text))
    return unicodedata.normalize("NFC", text).translate(_TABLE)


def _split(piece: str) -> tuple[list[str], list[str]]:
    """(words, runs of unspaced script) of a piece; runs are looked for in all but ASCII."""
    words: list[str] = []
    runs: list[str] = []
    if piece.isascii():
        words = _ASCII_WORDS.findall(piece.lower())
    else:
        for one in _OTHER_WORDS.findall(_fold(piece)):
            apart = _UNSPACED.split(one)
            words += [word for word in apart[::2] if word]
            runs += apart[1::2]
    if "'" in piece or not piece.isascii():
        words = [part for word in words for part in _ELISION.sub(_apart, word).replace("'", "").split()]
    return words, runs


def _apart(found: re.Match[str]) -> str:
    """An elided article is a word of its own, where the word begins."""
    return found.group()[:-1] + " " if found.start() == 0 else found.group()


def _analyse(pieces: list[str], asking: bool) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """The terms of each piece, as (piece, hash) pairs, the pieces rising. `asking`: as a question is analysed."""
    words: list[str] = []
    owners: list[int] = []
    runs: list[str] = []
    run_owners: list[int] = []
    for at, piece in enumerate(pieces):
        bare = piece.strip(_AROUND)
        if bare.isascii() and bare.isalnum():
            words.append(bare.lower())
            owners.append(at)
            continue
        found, unspaced = _split(piece)
        words += found
        owners += [at] * len(found)
        runs += unspaced
        run_owners += [at] * len(unspaced)
    digest = xxhash.xxh3_64_intdigest
    hashes = np.fromiter((digest(one.encode()) for one in _stem(words)), np.uint64, len(words))
    owned = np.array(owners, np.int64)
    if not runs:
        return owned, hashes
    more_owned, more = _grams(runs, np.array(run_owners, np.int64), asking)
    owned, hashes = np.concatenate((owned, more_owned)), np.concatenate((hashes, more))
    order = owned.argsort(kind="stable")
    return owned[order], hashes[order]


def _grams(
    runs: list[str], owners: npt.NDArray[np.int64], asking: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """(owner, hash) of the single characters and the pairs in runs; of a question's single ones only those alone."""
    codes = np.frombuffer("\n".join(("", *runs, "")).encode("utf-32-le"), np.uint32).astype(np.uint64)
    inside = codes != 10
    owner_at = np.zeros(len(codes), np.int64)
    owner_at[1:] = np.repeat(owners, [len(run) + 1 for run in runs])
    single = inside.copy()
    if asking:
        single[1:-1] &= ~inside[2:] & ~inside[:-2]
    pair = inside[:-1] & inside[1:]
    hashes = np.concatenate((codes[single], (codes[:-1] << np.uint64(32) | codes[1:])[pair]))
    return np.concatenate((owner_at[single], owner_at[:-1][pair])), _mixed(hashes)


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64 bits whose results look random (Steele, Lea & Flood 2014)."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)


def tokens(texts: pa.StringArray) -> Tokens:
    """Every term of these texts, as often as it occurs. Raises `pa.ArrowInvalid` for what is not UTF-8."""
    texts.validate(full=True)
    pieces = pc.utf8_split_whitespace(texts)
    encoded = pieces.flatten().dictionary_encode()
    piece_of = encoded.indices.to_numpy().astype(np.int64)
    text_of = np.repeat(np.arange(len(texts)), np.diff(pieces.offsets.to_numpy()))
    owners, found = _analyse(encoded.dictionary.to_pylist(), asking=False)
    hashes, terms = np.unique(found, return_inverse=True)
    each = np.bincount(owners, minlength=len(encoded.dictionary))
    first = np.cumsum(each) - each
    count = each[piece_of]
    if count.max(initial=0) <= 1:
        has = count == 1
        return Tokens(text_of[has], terms[first[piece_of[has]]], hashes)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return Tokens(np.repeat(text_of, count), terms[np.repeat(first[piece_of], count) + within], hashes)


def of_text(text: str) -> npt.NDArray[np.uint64]:
    """The hash of every term of one text, as often as it occurs, in no order."""
    return _analyse(text.split(), asking=False)[1]


def of_question(text: str) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """(hashes, each once and rising; how often each occurs) of the terms that a question asks for."""
    hashes, counts = np.unique(_analyse(text.split(), asking=True)[1], return_counts=True)
    return hashes, counts
