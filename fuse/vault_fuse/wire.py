"""The kernel's FUSE protocol: numbers, and structs <-> bytes (include/uapi/linux/fuse.h, protocol 7.31 to 7.45).

Little-endian machines only, as all that run Linux with a GPU are. Pure: nothing here touches a device.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from vault.errors import FormatError

FOR_EVER_S: Final = 365 * 86400
MOMENT_S: Final = 1  # how long the kernel may believe what can change: the mount's own folders, `latest`, labels

MAX_WRITE: Final = 4096
READ_BUFFER_SIZE: Final = 128 << 10  # the kernel refuses to read into less than max(8192, 40 + 16 + max_write)
MAX_PAGES: Final = 256  # 1 MiB in one READ
MAX_READ: Final = MAX_PAGES * 4096


class Op(IntEnum):
    """Opcodes that the worker answers with more than an error.

    OPENDIR gets ENOSYS: the kernel then neither asks again nor sends RELEASEDIR, and keeps every listing until its
    directory's mtime changes, which those of versions never do.
    """

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    INIT = 26
    READDIR = 28
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44


# Requests that would change something: the answer is EROFS.
WRITING: Final = frozenset({4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 51})
# SETATTR SYMLINK MKNOD MKDIR UNLINK RMDIR RENAME LINK WRITE SETXATTR REMOVEXATTR CREATE FALLOCATE RENAME2 TMPFILE


class Init(IntFlag):
    """Flags of INIT: what kernel and file system agree on. Bits from 32 on travel in flags2."""

    ASYNC_READ = 1 << 0
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37


WANTED: Final = (
    Init.ASYNC_READ
    | Init.AUTO_INVAL_DATA
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.PARALLEL_DIROPS
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.INIT_EXT
    | Init.PASSTHROUGH
)

FMODE_EXEC: Final = 0x20  # among the flags of OPEN: the caller is about to be replaced by the program in this file
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_PASSTHROUGH: Final = 1 << 7

IN_HEADER: Final = struct.Struct("<IIQQIII4x")  # length opcode unique nodeid uid gid tid; extlen and pad are not used
OUT_HEADER: Final = struct.Struct("<IiQ")  # length error unique
ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
# ino size blocks atime mtime ctime atime_ns mtime_ns ctime_ns mode nlink uid gid rdev blksize flags
ENTRY: Final = struct.Struct(
    "<QQQQII"
)  # nodeid generation entry_valid attr_valid entry_valid_ns attr_valid_ns; ATTR follows
ATTR_OUT: Final = struct.Struct("<QII")  # attr_valid attr_valid_ns pad; ATTR follows
DIRENT: Final = struct.Struct("<QQII")  # ino offset name_length type; the name follows, padded to 8
OPEN_OUT: Final = struct.Struct("<QIi")  # handle open_flags backing_id
READ_IN: Final = struct.Struct("<QQI")  # handle offset size; more follows
STATFS_OUT: Final = struct.Struct("<QQQQQIIII24x")  # blocks bfree bavail files ffree bsize namelen frsize pad
_INIT_IN = struct.Struct("<IIII")  # major minor max_readahead flags
_INIT_FLAGS2 = struct.Struct("<I")
_INIT_OUT = struct.Struct("<IIIIHHIIHHIIHH20x")
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages map_alignment flags2
# max_stack_depth request_timeout pad

NO_ENTRY: Final = bytes(ENTRY.size + ATTR.size)


class InitRequest(NamedTuple):
    """What the kernel offers."""

    unique: int
    major: int
    minor: int
    max_readahead: int
    flags: int


def decode_init(data: bytes | memoryview) -> InitRequest:
    """Return the INIT request in data. Raises FormatError if it is none, or of a protocol that is too old."""
    if len(data) < IN_HEADER.size + _INIT_IN.size:
        raise FormatError("FUSE request", f"{len(data)} bytes")
    _, opcode, unique, *_ = IN_HEADER.unpack_from(data)
    major, minor, max_readahead, flags = _INIT_IN.unpack_from(data, IN_HEADER.size)
    if opcode != Op.INIT or major != 7 or minor < 31:
        raise FormatError("FUSE request", f"INIT expected, found opcode {opcode} of protocol {major}.{minor}")
    at = IN_HEADER.size + _INIT_IN.size
    if flags & Init.INIT_EXT and len(data) >= at + _INIT_FLAGS2.size:
        flags |= _INIT_FLAGS2.unpack_from(data, at)[0] << 32
    return InitRequest(unique, major, minor, max_readahead, flags)


def encode_init(request: InitRequest, flags: int) -> bytes:
    """Return the reply to INIT that accepts flags."""
    body = _INIT_OUT.pack(
        7, min(request.minor, 45), 1 << 20, flags & 0xFFFFFFFF, 64, 48, MAX_WRITE, 1, MAX_PAGES, 0, flags >> 32,
        1 if flags & Init.PASSTHROUGH else 0, 0, 0,
    )  # fmt: skip
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, request.unique) + body


def encode_error(unique: int, number: int) -> bytes:
    """Return the reply that fails a request with an errno (0: succeeds without a body)."""
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)
