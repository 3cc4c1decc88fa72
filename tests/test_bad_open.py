"""What is no pool, or can be none, is neither opened nor made: a typed error says why and what to do, nothing is left."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import xxhash

import sharedrag as sr

# The one place that knows where the modules are.
from sharedrag.memory import layout, region
from sharedrag.pool import parse_size
from tests.conftest import SHARED_MEMORY


def assert_not_opened(path: str, kind: type[sr.SharedRagError], what: str, create: bool = False) -> None:
    """Opening the path raises this error with a hint, with the path in it, and leaves the folder and file as they are."""
    folder = Path(path).parent
    before = {one: one.stat().st_mtime_ns for one in folder.iterdir()} if folder.is_dir() else {}
    with pytest.raises(kind, match=what) as caught:
        sr.Pool.open(path, create=create).close()
    assert caught.value.hint and caught.value.path == os.path.realpath(path) and caught.value.path in str(caught.value)
    assert ({one: one.stat().st_mtime_ns for one in folder.iterdir()} if folder.is_dir() else {}) == before


def test_what_is_no_pool_is_not_opened(pool_path: str) -> None:
    """Nothing there, a directory, an empty file, a foreign file, a pipe: each is told apart and left alone."""
    folder = Path(pool_path).parent
    empty, foreign, pipe = folder / "empty", folder / "foreign", folder / "pipe"
    empty.touch()
    foreign.write_bytes(b"SQLite format 3\0" * 1000)
    os.mkfifo(pipe)
    assert_not_opened(pool_path, sr.PoolNotFound, "create")
    for create in (False, True):
        for path, what in ((folder, "a directory"), (empty, "an empty file"), (foreign, "SQLite"), (pipe, "pipe")):
            assert_not_opened(str(path), sr.NotAPool, what, create)
    assert_not_opened(str(folder / "no" / "folder"), sr.PoolNotFound, "Make the folder first", create=True)
    assert_not_opened(str(foreign / "pool"), sr.PoolNotFound, "no such file")
    for create in (False, True):
        assert_not_opened(str(folder / ("x" * 300)), sr.SharedRagError, "name too long", create)
    assert foreign.read_bytes() == b"SQLite format 3\0" * 1000 and not empty.read_bytes()


def _made(path: str) -> Path:
    with sr.Pool.open(path, create=True, capacity="1 MiB") as made:
        made.collection("records").put(["a"])
    return Path(path)


def _patch(file: Path, offset: int, data: bytes, *, checksum: bool) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(data)
        if checksum:
            opened.seek(0)
            body = opened.read(layout.SUPERBLOCK.size)
            opened.write(layout.SUPERBLOCK_CHECKSUM.pack(xxhash.xxh3_64_intdigest(body)))


def test_a_superblock_that_is_wrong_is_not_opened(pool_path: str) -> None:
    """Another magic, another version, a changed byte, a short file: each has its own error, and repaired it opens."""
    file = _made(pool_path)
    whole = file.read_bytes()[: layout.SUPERBLOCK_SIZE]
    size = file.stat().st_size
    cases: list[tuple[Callable[[], object], type[sr.SharedRagError], str]] = [
        (lambda: _patch(file, 0, b"X", checksum=True), sr.NotAPool, "magic"),
        (lambda: _patch(file, 7, b"\x02", checksum=True), sr.PoolVersionUnsupported, "version"),
        (lambda: _patch(file, 8, struct.pack("<I", 99), checksum=True), sr.PoolVersionUnsupported, "version 99"),
        (lambda: _patch(file, 8, struct.pack("<I", 99), checksum=False), sr.PoolDamaged, "checksum"),
        (lambda: _patch(file, 70, b"\xff", checksum=False), sr.PoolDamaged, "checksum"),
        (lambda: os.truncate(file, size - 1), sr.PoolTruncated, f"{size - 1:,} bytes"),
        (lambda: os.truncate(file, layout.SUPERBLOCK_SIZE), sr.PoolTruncated, "4,096 bytes"),
        (lambda: os.truncate(file, 50), sr.PoolTruncated, "superblock"),
        (lambda: os.truncate(file, 7), sr.PoolTruncated, "superblock"),
        (lambda: os.truncate(file, 3), sr.NotAPool, "magic"),
        (lambda: os.truncate(file, 0), sr.NotAPool, "empty"),
    ]
    kept = file.read_bytes()
    for damage, kind, what in cases:
        damage()
        for create in (False, True):
            assert_not_opened(pool_path, kind, what, create)
        file.write_bytes(kept)
    assert kept[: layout.SUPERBLOCK_SIZE] == whole
    with sr.Pool.open(pool_path) as again:
        assert "a" in again.collection("records")


@pytest.mark.parametrize("kind", ["overlay", "nfs", "nfs4", "cifs", "9p"])
def test_file_systems_that_cannot_hold_a_pool_are_refused(
    pool_path: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """On overlayfs and network file systems no pool is made or opened, and the message says where to put it."""
    for create in (True, False):
        with monkeypatch.context() as patched:
            patched.setattr(region, "file_system_of", lambda folder: kind)
            assert_not_opened(pool_path, sr.UnsupportedFileSystem, f"{kind} .*tmpfs", create)
        _made(pool_path)


def test_the_file_system_of_a_folder_is_known() -> None:
    """The function that the refusal rests on reads the true type: /proc and shared memory are told apart."""
    assert region.file_system_of("/proc") == "proc"
    if SHARED_MEMORY.is_dir():
        assert region.file_system_of(str(SHARED_MEMORY)) == "tmpfs"


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Inside, files are opened with an ordinary user's rights, even where the tests run as root."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if was == 0:
            os.seteuid(was)


def test_a_file_or_folder_without_the_right_to_write_is_refused(pool_path: str) -> None:
    """A pool that this user may only read, or not even that, or a folder to make none in, says which rights are missing."""
    file = _made(pool_path)
    folder = file.parent
    folder.chmod(0o555)
    try:
        for mode in (0o444, 0o000):
            file.chmod(mode)
            with ordinary_user():
                assert_not_opened(pool_path, sr.SharedRagError, "Permission denied.*rights")
        with ordinary_user():
            assert_not_opened(str(folder / "new"), sr.SharedRagError, "Permission denied.*write", create=True)
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("1 GiB", 1 << 30),
        ("256MiB", 256 << 20),
        ("1.5 KiB", 1536),
        (" 10 GB ", 10**10),
        ("2 tib", 2 << 40),
        ("512", 512),
        ("7 b", 7),
        (4096, 4096),
    ],
)
def test_sizes_are_read(size: str | int, expected: int) -> None:
    """Sizes come as numbers or with a unit, of either kind, in any case."""
    assert parse_size(size) == expected


@pytest.mark.parametrize(
    "size", ["", "GiB", "-5", "-1 GiB", "1e9", "1,000", "1 GiB 2", "1 Gigabyte", "٣ MiB", "9" * 400, True, None, [1]]
)
def test_sizes_that_are_none_are_refused(size: Any, pool_path: str) -> None:
    """What is no size raises ValueError with the size in it, and no pool is made of it."""
    with pytest.raises(ValueError, match=r"^size "):
        parse_size(size)
    with pytest.raises(ValueError, match=r"^size "):
        sr.Pool.open(pool_path, create=True, capacity=size)
    assert not Path(pool_path).exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"capacity": 0}, "at least 1,048,576 bytes"),
        ({"capacity": -1}, "at least 1,048,576 bytes"),
        ({"capacity": "1 MB"}, "at least 1,048,576 bytes"),
        ({"capacity": "3 MiB", "nodes": 4}, "each of 4 nodes"),
        ({"nodes": 0}, "1 to 16"),
        ({"nodes": 17}, "1 to 16"),
        ({"nodes": -1}, "1 to 16"),
        ({"nodes": "2"}, "1 to 16"),
        ({"nodes": 1.5}, "1 to 16"),
        ({"nodes": True}, "1 to 16"),
        ({"node": 1}, "nodes 0 to 0"),
        ({"node": -1}, "nodes 0 to 0"),
        ({"node": 2, "nodes": 2}, "nodes 0 to 1"),
        ({"node": "0"}, "numbered 0, 1"),
        ({"node": 0.0}, "numbered 0, 1"),
        ({"node": None}, "numbered 0, 1"),
    ],
)
def test_impossible_pools_are_not_made(pool_path: str, options: dict[str, Any], what: str) -> None:
    """A capacity, number of nodes or node that cannot be raises ValueError and makes no file."""
    with pytest.raises(ValueError, match=what):
        sr.Pool.open(pool_path, create=True, **{"capacity": "4 MiB", **options})
    assert not list(Path(pool_path).parent.iterdir())


@pytest.mark.parametrize("node", [2, -1])
def test_a_node_that_the_pool_lacks_is_refused(pool_path: str, node: int) -> None:
    """Opening an existing pool as a node it does not have raises ValueError naming those it has."""
    sr.Pool.open(pool_path, create=True, capacity="2 MiB", nodes=2).close()
    for create in (False, True):
        with pytest.raises(ValueError, match="nodes 0 to 1"):
            sr.Pool.open(pool_path, create=create, node=node, nodes=16 if create else 1, capacity="64 MiB").close()


@pytest.mark.parametrize("capacity", ["200 TiB", "4000000 TiB"])
def test_a_capacity_that_no_mapping_holds_is_refused(pool_path: str, capacity: str) -> None:
    """A pool beyond the address space or the largest file is not made, and a smaller capacity is advised."""
    with pytest.raises(sr.UnsupportedFileSystem, match="smaller capacity"):
        sr.Pool.open(pool_path, create=True, capacity=capacity)
    assert not list(Path(pool_path).parent.iterdir())
