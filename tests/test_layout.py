"""The byte tables in the docstrings are the format: they agree with the code, field by field, and with ARCHITECTURE.md."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest

# The one place that knows where the modules of the format are.
from sharedrag.arena import block as block_module
from sharedrag.arena import manifest, row, segment
from sharedrag.memory import layout
from sharedrag.search import columns_layout, coverage, ivf_layout, postings, terms
from sharedrag.segments import deletions
from tests.conftest import REPOSITORY

ARCHITECTURE = REPOSITORY / "ARCHITECTURE.md"
MODULES = {"layout": layout, "manifest": manifest, "segment": segment, "deletions": deletions}
MODULES |= {"block": block_module, "coverage": coverage, "index": ivf_layout, "columns": columns_layout}
MODULES |= {"terms": terms, "postings": postings}
_PLACE = r"(\d[\d,]*)\s{1,6}(\d+)\s{2,}"
_CELL = re.compile(rf"(?:^|\s)\s*{_PLACE}(?:x (\d+) )?(\S.*?)(?=\s+{_PLACE.replace('(', '(?:')}|$)")


class Field(NamedTuple):
    """One cell of a table: offset and size in bytes, how many of them follow each other, and what it is."""

    offset: int
    size: int
    repeats: int
    what: str


def blocks(module: ModuleType) -> dict[str, str]:
    """The indented blocks of a module's docstring, by the line that introduces each."""
    found: dict[str, str] = {}
    heading, lines = "", list[str]()
    for line in [*(module.__doc__ or "").splitlines(), "end"]:
        if line.startswith("  "):
            lines.append(line)
        elif line.strip():
            if lines:
                found[heading] = "\n".join(lines)
            heading, lines = line, []
    return found


def block(module: ModuleType, start: str) -> str:
    """The block whose introducing line starts like this."""
    return next(text for heading, text in blocks(module).items() if heading.startswith(start))


def cells(text: str) -> Iterator[Field]:
    """The cells of a table, in the order of their offsets."""
    found = []
    for line in text.splitlines():
        for match in _CELL.finditer(line):
            offset, size, count, what = match.groups()
            found.append(Field(int(offset.replace(",", "")), int(size), int(count or 1), what.strip()))
    yield from sorted(found)


def struct_fields(*formats: struct.Struct) -> list[tuple[int, int]]:
    """(offset, size) of each field of structs that lie one after another; padding is a field too."""
    placed, at = [], 0
    for one in formats:
        assert one.format.startswith("<"), "without '<' the offsets depend on the machine"
        for number, kind in re.findall(r"(\d*)([a-zA-Z])", one.format):
            each = 1 if kind in "sx" else int(number or 1)
            size = struct.calcsize(f"<{number}{kind}") // each
            for _ in range(each):
                placed.append((at, size))
                at += size
    return placed


TABLES = {
    "superblock": (layout, "Superblock (", (layout.SUPERBLOCK, layout.SUPERBLOCK_CHECKSUM)),
    "manifest slot": (manifest, "Manifest slot (", (manifest._HEADER, manifest._HEADER_CHECKSUM)),
    "entry": (manifest, "Entry (", (manifest._ENTRY,)),
    "segment header": (segment, "Header page (", (segment._HEADER, segment._HEADER_CHECKSUM)),
    "deletion vectors": (deletions, "Deletion vectors in the pool", (deletions._HEADER,)),
    "block": (block_module, "Header (", (block_module._HEADER, block_module._HEADER_CHECKSUM)),
    "coverage": (coverage, "Payload (", (coverage._HEADER,)),
    "index": (ivf_layout, "Offset, size, field", (ivf_layout._FIELDS,)),
    "columns": (columns_layout, "A columns block", (columns_layout.HEADER,)),
    "terms": (terms, "TERMS", (terms._HEADER,)),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_its_struct_packs(name: str) -> None:
    """Each table lists every field of its struct, at the struct's offset and with its size, and no other below its end."""
    module, start, formats = TABLES[name]
    end = sum(one.size for one in formats)
    table = [field for field in cells(block(module, start)) if field.offset < end]
    assert [(field.offset, field.size) for field in table] == struct_fields(*formats)


def test_a_checksum_covers_what_its_table_says() -> None:
    """Where a table says "xxh3-64 of bytes 0..n", the checksum lies right behind byte n."""
    covered = 0
    for module in MODULES.values():
        for text in blocks(module).values():
            for field in cells(text):
                if said := re.fullmatch(r"xxh3-64 of bytes 0\.\.(\d+)", field.what):
                    assert int(said[1]) + 1 == field.offset
                    covered += 1
    assert covered == 4, "superblock and the headers of manifest, segment and block"


def test_magics_and_sizes_of_records_are_as_written() -> None:
    """The magics and the sizes that headings name are those in the code."""
    magics = {
        layout: layout.MAGIC,
        manifest: manifest._MAGIC,
        segment: segment._MAGIC,
        deletions: deletions._MAGIC,
        block_module: block_module._MAGIC,
        coverage: coverage._MAGIC,
        ivf_layout: ivf_layout.MAGIC,
        columns_layout: columns_layout.MAGIC,
        terms: terms._MAGIC,
    }
    for module, magic in magics.items():
        assert f'magic "{magic.decode("latin-1")}"'.replace("\x01", "\\x01") in (module.__doc__ or "")
    assert f"Entry ({manifest._ENTRY.size} B)" in (manifest.__doc__ or "")
    assert (
        f"Table row ({deletions._ROW.size} B): uid u64 | rows it holds for u32 | dead rows u32 | offset of its bits u64"
        in (deletions.__doc__ or "")
    )
    assert deletions._ROW.format == "<QIIQ"
    assert f"{coverage._RANGE.size}  for each range: segment's uid u8, first row u8, rows u8" in (coverage.__doc__ or "")
    assert coverage._RANGE.format == "<QQQ"
    assert f"{terms._RUN.size}  for each run: u8 x 8:" in (terms.__doc__ or "") and terms._RUN.format == "<8Q"
    assert f"{block_module.HEADER_SIZE}      the payload\n" in (block_module.__doc__ or "")


def test_the_node_area_is_where_its_table_says() -> None:
    """Each line of the node area's table is a constant in the code, and the slots follow each other without a gap."""
    table = list(cells(block(layout, "Node area (")))
    assert [(one.offset, one.size, one.repeats) for one in table] == [
        (layout.ROOT_OFFSET, 8, 1),
        (layout.HORIZON_OFFSET, 8, 1),
        (layout.NODE_HOLDER_OFFSET, 16, 1),
        (layout.MAINTENANCE_HOLDER_OFFSET, 16, 1),
        (layout.BOOT_ID_OFFSET, 16, 1),
        (layout.NODE_LABEL_OFFSET, layout.LABEL_SIZE, 1),
        (layout.LANES_OFFSET, layout.LANE_SIZE, layout.LANES_PER_NODE),
        (layout.SESSIONS_OFFSET, layout.SESSION_SIZE, layout.SESSIONS_PER_NODE),
    ]
    for one, following in itertools.pairwise(table):
        assert one.offset + one.size * one.repeats <= following.offset
    end = table[-1].offset + table[-1].size * table[-1].repeats
    assert end == layout.NODE_AREA_SIZE and f"{end:,}       manifest slot" in block(layout, "Node area (")


def test_the_slots_are_as_their_lines_say() -> None:
    """The lines on lane and session slots name the offsets and sizes that the code uses."""
    said = " ".join((layout.__doc__ or "").split())
    lane = (layout.LANE_INTENT, layout.LANE_PID, layout.LANE_SINCE, layout.LANE_LABEL, layout.LANE_LAST)
    for offset, what in zip(lane, ("intent", "pid", "since us", "label", "last clock"), strict=True):
        assert re.search(rf"Lane slot:.*\b{offset} {what}.*Session slot:", said), what
    session = (
        layout.SESSION_PID,
        layout.SESSION_SINCE,
        layout.SESSION_LABEL,
        layout.SESSION_PID_NAMESPACE,
        layout.SESSION_PINS,
    )
    for offset, what in zip(session, ("pid", "since us", "label", "pid namespace", "pins"), strict=True):
        assert re.search(rf"Session slot:.*\b{offset} {what}", said), what
    assert f"label, {layout.LANE_LABEL_SIZE} B" in said and f"label, {layout.SESSION_LABEL_SIZE} B" in said
    assert f"{layout.NODES_MAX} checked words, one per node" in said
    assert f"lane = node * {layout.LANES_PER_NODE} + lane" in (REPOSITORY / _source(layout)).read_text()


def test_the_file_is_laid_out_as_drawn() -> None:
    """Superblock, node areas and extents of a planned pool lie where the drawing has them, on pages, without overlap."""
    drawn = block(layout, "The file, little-endian")
    assert f"{layout.SUPERBLOCK_SIZE:,} B" in drawn
    for capacity, nodes in ((1 << 20, 1), (64 << 20, 3), (2 << 30, 16)):
        planned = layout.plan(capacity, nodes, 0, bytes(16))
        assert planned.node_offset(0) == layout.SUPERBLOCK_SIZE
        for node in range(nodes):
            assert planned.manifest_offset(node, 2) == planned.node_offset(node) + layout.NODE_AREA_SIZE
            assert planned.manifest_offset(node, 3) == planned.manifest_offset(node, 2) + planned.manifest_slot_size
            assert planned.node_offset(node + 1) == planned.manifest_offset(node, 3) + planned.manifest_slot_size
            assert planned.node_offset(node) % layout.PAGE == 0
        assert planned.node_offset(nodes) <= planned.extents_offset == planned.extent_offset(0, 0)
        assert planned.extents_offset % layout.PAGE == 0
        assert planned.extent_offset(nodes - 1, planned.extents_per_node) == planned.file_size


def test_the_words_of_a_segments_header_page_are_where_the_table_says() -> None:
    """Watermark and epoch lie in the header page at their offsets, each on a cache line of its own."""
    table = {field.what.split(":")[0]: field for field in cells(block(segment, "Header page ("))}
    for what, offset in (("watermark", segment._WATERMARK_OFFSET), ("epoch", segment._EPOCH_OFFSET)):
        assert (table[what].offset, table[what].size) == (offset, 8)
        assert offset % 64 == 0 and offset + 8 <= segment.HEADER_SIZE


def test_a_segments_columns_come_in_the_tables_order_and_widths() -> None:
    """The columns of a shape have the table's names, order, item sizes and counts, each aligned to 64 bytes."""
    shape = segment.Shape(rows=1000, buckets=512, dimension=24, dtype=1, id_bytes=700, text_bytes=701, metadata_bytes=702)
    heading = next(one for one in blocks(segment) if one.startswith("Columns"))
    assert "64-byte aligned" in heading and f"from byte {segment.HEADER_SIZE:,} on" in heading
    counts = {"n": shape.rows, "b": shape.buckets, "n+1": shape.rows + 1}
    expected: dict[str, int | None] = {}
    for line in block(segment, "Columns,").splitlines():
        name, kind = line.split()[:2]
        names = [name.replace("*", one) for one in ("id", "text", "metadata")] if "*" in name else [name]
        for one in names:
            width = re.fullmatch(r"[uif](\d)\[([nb+1]+)\]", kind)
            expected[one] = int(width[1]) * counts[width[2]] if width else None
    expected |= {"vectors": 4 * shape.dimension * shape.rows, "id_heap": 700, "text_heap": 701, "metadata_heap": 702}
    columns = shape.columns()
    assert [name for name in columns if name != "end"] == list(expected)
    assert {name: size for name, (_, size) in columns.items() if name != "end"} == expected
    assert columns["flags"][0] == segment.HEADER_SIZE and all(at % 64 == 0 for at, _ in columns.values())
    halves = shape._replace(dtype=2).columns()["vectors"][1]
    assert halves == 2 * shape.dimension * shape.rows


def test_the_flags_are_as_the_table_says() -> None:
    """The bits of a flags word are those of the table, the check has the upper twelve."""
    line = next(one for one in block(segment, "Columns,").splitlines() if one.split()[0] == "flags")
    bits = (row.PUT, row.HAS_VECTOR, row.HAS_TEXT, row.HAS_METADATA)
    assert "{} put, {} has vector, {} has text, {} has metadata".format(*bits) in line
    assert sum(bits) == row.FLAGS_MASK == (1 << 16 - 12) - 1 and "upper 12 bits" in line


@pytest.mark.parametrize("name", MODULES)
def test_the_tables_stand_verbatim_in_the_architecture(name: str) -> None:
    """ARCHITECTURE.md shows every table of the format as the code's docstrings have it."""
    if not ARCHITECTURE.exists():
        pytest.skip("there is no ARCHITECTURE.md yet")
    text = _unindented(ARCHITECTURE.read_text())
    for heading, table in blocks(MODULES[name]).items():
        missing = [line for line in table.splitlines() if _unindented(line) not in text]
        assert not missing, (
            f"{name}: the table under {heading!r} is not in ARCHITECTURE.md; first missing line: {missing[0]!r}"
        )
        assert _unindented(table) in text, f"{name}: the lines under {heading!r} are there, but not as one table"


def _unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines())


def _source(module: ModuleType) -> str:
    return module.__name__.replace(".", "/") + ".py"
