r"""Every offset and size of format version 1, asserted at import. Nothing here touches memory.

The file, little-endian, all areas page-aligned:

    0                superblock                            4,096 B   written once, before the file has a name
    4,096            node area 0 .. nodes-1                each `NODE_AREA_SIZE` + 2 manifest slots
    extents_offset   extents of node 0, of node 1, ...     `extents_per_node` each, `EXTENT_SIZE` B each

Superblock (offset, size, field):

       0   8  magic "SHRDRAG\x01"        40   8  extents_offset, B
       8   4  version                     48   8  extents_per_node
      12   4  nodes                       56   8  created, us since 1970
      16   8  file_size, B                64  16  pool uuid
      24   8  node_stride, B              80   8  preallocated: 1 = all memory is held from the start
      32   8  manifest_slot_size, B       88   8  xxh3-64 of bytes 0..87

Node area (offset in the area; who may write it). The lock byte of a structure is its own first byte in the file:

           0    8  root: checked word, the generation        node lock
          64    8  horizon: checked word, a clock            maintenance lock
         128   16  holder of the node lock: pid, since us    node lock
         192   16  holder of maintenance: pid, since us      maintenance lock
         256   16  boot id of the node's last attach         node lock
         320   64  the node's label, UTF-8, zero-padded      node lock
       4,096  128  x 64 lane slots                           that lane's lock
      12,288  256  x 512 session slots                       that session's lock
     143,360       manifest slot of even generations, then of odd ones

Lane slot: 0 intent (a clock, 0 = none) | 8 pid | 16 since us | 32 label, 32 B | 64 last clock: no key of the lane is later
Session slot: 0 pid | 8 since us | 16 label, 40 B | 56 pid namespace | 64 pins: 16 checked words, one per node (0 = none)
"""

from __future__ import annotations

import struct
from typing import NamedTuple

PAGE = 4096
HUGE_PAGE = 2 * 1024 * 1024
EXTENT_SIZE = 64 * 1024
MAGIC = b"SHRDRAG\x01"
VERSION = 1

NODES_MAX = 16
LANES_PER_NODE = 64
SESSIONS_PER_NODE = 512

SUPERBLOCK = struct.Struct("<8sIIQQQQQQ16sQ")
SUPERBLOCK_CHECKSUM = struct.Struct("<Q")
SUPERBLOCK_SIZE = PAGE

ROOT_OFFSET = 0
HORIZON_OFFSET = 64
NODE_HOLDER_OFFSET = 128
MAINTENANCE_HOLDER_OFFSET = 192
BOOT_ID_OFFSET = 256
NODE_LABEL_OFFSET = 320
LABEL_SIZE = 64
LANES_OFFSET = PAGE
LANE_SIZE = 128
SESSIONS_OFFSET = LANES_OFFSET + LANES_PER_NODE * LANE_SIZE
SESSION_SIZE = 256
NODE_AREA_SIZE = SESSIONS_OFFSET + SESSIONS_PER_NODE * SESSION_SIZE

LANE_INTENT = 0
LANE_PID = 8
LANE_SINCE = 16
LANE_LABEL = 32
LANE_LABEL_SIZE = 32
LANE_LAST = 64  # a cache line of its own: every other writer reads it
SESSION_PID = 0
SESSION_SINCE = 8
SESSION_LABEL = 16
SESSION_LABEL_SIZE = 40
SESSION_PID_NAMESPACE = 56  # its inode: a pid of another container says nothing here; 0 = not known
SESSION_PINS = 64

assert SUPERBLOCK.size == 88
assert SESSIONS_OFFSET == 12_288
assert NODE_AREA_SIZE == 143_360 and NODE_AREA_SIZE % PAGE == 0
assert SESSION_LABEL + SESSION_LABEL_SIZE <= SESSION_PID_NAMESPACE < SESSION_PINS
assert SESSION_PINS + 8 * NODES_MAX <= SESSION_SIZE
assert LANE_LABEL + LANE_LABEL_SIZE <= LANE_LAST < LANE_SIZE

# Named locks (`Pool.exclusive`) are bytes far beyond any file's end: a lock needs no byte behind it.
NAMED_LOCKS_OFFSET = 1 << 61
NAMED_LOCKS = 1 << 40

MIB = 1 << 20
CAPACITY_MIN = MIB
MANIFEST_SLOT_MIN = 64 * 1024
MANIFEST_SLOT_MAX = 64 * MIB
MANIFEST_RESERVED = 64 * 1024  # of each slot, reserved at creation: publishing must not fail for want of memory


class Geometry(NamedTuple):
    """Where everything is in one pool; all sizes and offsets in bytes unless named otherwise."""

    nodes: int
    file_size: int
    node_stride: int
    manifest_slot_size: int
    extents_offset: int
    extents_per_node: int
    created_us: int
    uuid: bytes
    preallocated: int  # 1 or 0

    def node_offset(self, node: int) -> int:
        """File offset of a node's area."""
        return SUPERBLOCK_SIZE + node * self.node_stride

    def manifest_offset(self, node: int, generation: int) -> int:
        """File offset of the slot that holds a manifest of this generation."""
        return self.node_offset(node) + NODE_AREA_SIZE + (generation & 1) * self.manifest_slot_size

    def lane_offset(self, node: int, lane: int) -> int:
        """File offset of a lane slot."""
        return self.node_offset(node) + LANES_OFFSET + lane * LANE_SIZE

    def session_offset(self, node: int, session: int) -> int:
        """File offset of a session slot."""
        return self.node_offset(node) + SESSIONS_OFFSET + session * SESSION_SIZE

    def extent_offset(self, node: int, extent: int) -> int:
        """File offset of a node's extent."""
        return self.extents_offset + (node * self.extents_per_node + extent) * EXTENT_SIZE

    @property
    def node_capacity(self) -> int:
        """Bytes of extents that one node owns."""
        return self.extents_per_node * EXTENT_SIZE

    @property
    def segment_size_max(self) -> int:
        """Largest segment that growth reaches by itself: a sixteenth of the node, at most 16 MiB."""
        return max(EXTENT_SIZE, min(16 * MIB, self.node_capacity // 16) // EXTENT_SIZE * EXTENT_SIZE)

    @property
    def merged_size_max(self) -> int:
        """Largest segment that merging makes, so that the space kept back always has room for one more."""
        return max(EXTENT_SIZE, min(256 * MIB, self.node_capacity // 8) // EXTENT_SIZE * EXTENT_SIZE)

    @property
    def extents_kept_back(self) -> int:
        """Extents that only deletes and maintenance may take, so that a full pool can be emptied."""
        return max(2, self.merged_size_max // EXTENT_SIZE)

    @property
    def rescue_extents(self) -> int:
        """The node's last extents: their memory is reserved at creation and never given back.

        Deletes and maintenance fall back on them when the memory behind the file is used up by others.
        """
        return min(16, max(1, self.extents_per_node // 16))


def plan(capacity: int, nodes: int, created_us: int, uuid: bytes, preallocated: bool = False) -> Geometry:
    """The geometry of a new pool with `capacity` bytes of extents, split evenly between `nodes`."""
    assert 1 <= nodes <= NODES_MAX and capacity >= CAPACITY_MIN * nodes
    extents = capacity // nodes // EXTENT_SIZE
    slot = min(MANIFEST_SLOT_MAX, max(MANIFEST_SLOT_MIN, extents * 256 // PAGE * PAGE))
    stride = NODE_AREA_SIZE + 2 * slot
    extents_offset = -(-(SUPERBLOCK_SIZE + nodes * stride) // EXTENT_SIZE) * EXTENT_SIZE
    file_size = extents_offset + nodes * extents * EXTENT_SIZE
    return Geometry(nodes, file_size, stride, slot, extents_offset, extents, created_us, uuid, int(preallocated))


# Order keys: a hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014) whose counter is merged into the
# microseconds, then the lane, so that a key is unique at birth and says who made it.
#
#     63                                          10 9      0
#     +----------------------------------------------+--------+
#     | microseconds since 2020, 54 bits             | lane   |   lane = node * 64 + lane of the node
#     +----------------------------------------------+--------+
KEY_LANE_BITS = 10
KEY_EPOCH_US = 1_577_836_800_000_000
CLOCK_AHEAD_US_MAX = 24 * 3600 * 1_000_000  # a clock further ahead than this is not followed
assert NODES_MAX * LANES_PER_NODE == 1 << KEY_LANE_BITS


def clock_of(key: int) -> int:
    """The clock part of an order key, in microseconds since 2020."""
    return key >> KEY_LANE_BITS
