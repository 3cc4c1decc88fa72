"""Ways to damage a file: what one run of the fuzzer does to a copy of the sample pool, from its seed alone."""

from __future__ import annotations

import random
from typing import NamedTuple

from sharedrag.memory import layout
from tests.damage.sample import Area, Sample

_PAGE = layout.PAGE
_ATTACHED_SHARE = 0.25
_UNIFORM_SHARE = 0.2  # of the runs: anywhere in reserved memory; the others aim at bytes that are in use


class Damage(NamedTuple):
    """One piece of damage: bytes of the file replaced."""

    area: str
    kind: str
    offset: int
    before: bytes
    after: bytes

    @property
    def changed(self) -> bool:
        """True if any byte differs."""
        return self.before != self.after


class Plan(NamedTuple):
    """What one run does."""

    seed: int
    pieces: tuple[Damage, ...]
    attached: bool = False  # the damage happens under a handle that is open and has looked at everything


def plan(sample: Sample, image: bytes, reserved: list[tuple[int, int]], seed: int) -> Plan:
    """The damage of one run; `reserved` are the (offset, length) pieces of the file that have memory."""
    rng = random.Random(seed)
    count = 1 if rng.random() < 0.7 else rng.randint(2, 8)
    attached = rng.random() < _ATTACHED_SHARE
    return Plan(seed, tuple(_piece(sample, image, reserved, rng) for _ in range(count)), attached)


def _piece(sample: Sample, image: bytes, reserved: list[tuple[int, int]], rng: random.Random) -> Damage:
    if rng.random() < _UNIFORM_SHARE:
        start, length = rng.choices(reserved, [size for _, size in reserved])[0]
        area = Area("anywhere", start, length)
    else:
        name = rng.choice(sorted({area.name for area in sample.areas}))
        area = rng.choice([one for one in sample.areas if one.name == name])
    at = area.offset + rng.randrange(area.length)
    kind = rng.choice(list(_KINDS))
    start, length = _KINDS[kind][0](at, area, rng)
    length = min(length, len(image) - start)
    before = image[start : start + length]
    return Damage(area.name, kind, start, before, _KINDS[kind][1](before, at - start, rng))


def _one(at: int, area: Area, rng: random.Random) -> tuple[int, int]:
    return at, 1


def _word(at: int, area: Area, rng: random.Random) -> tuple[int, int]:
    return at & ~7, 8


def _range(at: int, area: Area, rng: random.Random) -> tuple[int, int]:
    return at, min(rng.choice((2, 4, 16, 100, 1000)), area.offset + area.length - at)


def _page(at: int, area: Area, rng: random.Random) -> tuple[int, int]:
    return at // _PAGE * _PAGE, _PAGE


def _flip_bit(before: bytes, at: int, rng: random.Random) -> bytes:
    return bytes([before[0] ^ 1 << rng.randrange(8)])


def _another_byte(before: bytes, at: int, rng: random.Random) -> bytes:
    return bytes([before[0] ^ rng.randrange(1, 256)])


def _zero(before: bytes, at: int, rng: random.Random) -> bytes:
    return bytes(len(before))


def _ones(before: bytes, at: int, rng: random.Random) -> bytes:
    return b"\xff" * len(before)


def _inverted(before: bytes, at: int, rng: random.Random) -> bytes:
    return bytes(one ^ 0xFF for one in before)


def _noise(before: bytes, at: int, rng: random.Random) -> bytes:
    return rng.randbytes(len(before))


def _add_little(before: bytes, at: int, rng: random.Random) -> bytes:
    """A word that is near the right one: what a torn or lost store leaves."""
    value = int.from_bytes(before, "little") + rng.choice((-1000, -2, -1, 1, 2, 1000))
    return (value % (1 << 8 * len(before))).to_bytes(len(before), "little")


_KINDS = {
    "bit flipped": (_one, _flip_bit),
    "byte replaced": (_one, _another_byte),
    "byte zeroed": (_one, _zero),
    "word zeroed": (_word, _zero),
    "word all ones": (_word, _ones),
    "word of noise": (_word, _noise),
    "word a little off": (_word, _add_little),
    "range zeroed": (_range, _zero),
    "range inverted": (_range, _inverted),
    "range of noise": (_range, _noise),
    "page zeroed": (_page, _zero),
    "page of noise": (_page, _noise),
}
