"""The arrays in a file of weights, for comparing: safetensors, NumPy's .npy and .npz, and through torch_file.py .pt.

Nothing is executed and no library is asked: headers are parsed here, with bounds, and must fit the file. Arrays are views
of the mapped file where they lie in it as they are. A JSON file counts too: its numbers are arrays of one. Threads: safe.
"""

import contextlib
import math
import mmap
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from vault.errors import FormatError

HEADER_SIZE_MAX: Final = 16 << 20
TENSORS_MAX: Final = 100_000
LEAVES_MAX: Final = 200_000  # values of any kind in one file
NESTING_MAX: Final = 64
INFLATED_SIZE_MAX: Final = 4 << 30  # one compressed array
_JSON_SIZE_MAX: Final = 16 << 20
_NPY_HEADER_MAX: Final = 64 << 10
_SIZES: Final = {1: "BOOL U8 I8 F8_E4M3 F8_E5M2", 2: "U16 I16 F16 BF16", 4: "U32 I32 F32", 8: "U64 I64 F64 C64", 16: "C128"}
ITEM_SIZES: Final = {name: size for size, names in _SIZES.items() for name in names.split()}
_NPY_TYPES: Final = dict(
    zip(
        "b1 u1 i1 u2 i2 f2 u4 i4 f4 u8 i8 f8 c8 c16".split(),
        "BOOL U8 I8 U16 I16 F16 U32 I32 F32 U64 I64 F64 C64 C128".split(),
        strict=True,
    )
)
_NPY_HEADER: Final = re.compile(
    r"\{'descr': '([<>|=])(\w{2,3})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\), *\}[ ]*\n?\Z"
)

Data = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array, or a value of another kind, which is compared as it is."""

    dtype: str  # as safetensors calls it; "VALUE" for what is no array
    shape: tuple[int, ...]
    load: Callable[[], Data]  # little-endian, row by row. Raises FormatError
    value: object = None


class _Info(msgspec.Struct, frozen=True):
    dtype: str
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)], ...], msgspec.Meta(max_length=64)]
    data_offsets: tuple[int, int]


@contextlib.contextmanager
def open_tensors(path: str) -> Iterator[Mapping[str, Tensor] | None]:
    """Open a file for the time of a block and give its arrays by name; None if it is of no kind that is known here.

    Raises:
        FormatError: it is of such a kind by its name, and breaks its rules, or holds what is not understood.
        OSError: it cannot be read.
    """
    reader = _READERS.get(os.path.splitext(path)[1].lower())
    if reader is None:
        yield None
        return
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise FormatError(os.path.basename(path), "it is empty")
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        view = memoryview(whole)
    try:
        yield reader(view)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, MemoryError) as error:
        raise FormatError(os.path.basename(path), str(error) or type(error).__name__) from error
    finally:
        with contextlib.suppress(BufferError):  # an array is still in use: the map goes with it
            view.release()
            whole.close()


def array_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes an array has. Raises FormatError for a type that is not known."""
    if dtype not in ITEM_SIZES:
        raise FormatError("array", f"type {dtype[:32]!r} is not known")
    return math.prod(shape) * ITEM_SIZES[dtype]


def _read_safetensors(file: memoryview) -> dict[str, Tensor]:
    length = int.from_bytes(file[:8], "little")
    if len(file) < 8 or length > min(HEADER_SIZE_MAX, len(file) - 8):
        raise FormatError("safetensors file", f"a header of {length:,} bytes in a file of {len(file):,}")
    try:
        fields = msgspec.json.decode(file[8 : 8 + length], type=dict[str, msgspec.Raw])
        fields.pop("__metadata__", None)
        infos = {name: msgspec.json.decode(raw, type=_Info) for name, raw in fields.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError("safetensors file", str(error)) from error
    if len(infos) > TENSORS_MAX:
        raise FormatError("safetensors file", f"{len(infos):,} arrays")
    data = file[8 + length :]
    reached = 0
    for name, info in sorted(infos.items(), key=lambda item: (item[1].data_offsets, item[0])):
        begin, end = info.data_offsets
        if begin != reached or not begin <= end <= len(data):
            raise FormatError("safetensors file", f"{name[:80]!r} lies at {begin}:{end}, expected at {reached}")
        if array_size(info.dtype, info.shape) != end - begin:
            raise FormatError("safetensors file", f"{name[:80]!r} has {end - begin} bytes, its shape says otherwise")
        reached = end
    if reached != len(data):
        raise FormatError("safetensors file", f"{len(data) - reached:,} bytes at its end belong to no array")
    return {name: _view(info.dtype, info.shape, data[slice(*info.data_offsets)]) for name, info in infos.items()}


def _view(dtype: str, shape: tuple[int, ...], data: Data) -> Tensor:
    return Tensor(dtype, shape, lambda: data)


def parse_npy(file: Data) -> Tensor:
    """Return the array of a .npy file. Raises FormatError: it is none, or holds objects or records."""
    major = file[6] if len(file) > 10 and bytes(file[:6]) == b"\x93NUMPY" else 0
    if major not in (1, 2, 3):
        raise FormatError("npy file", "it does not begin as one")
    start = 10 if major == 1 else 12
    length = int.from_bytes(file[8:start], "little")
    if length > min(_NPY_HEADER_MAX, len(file) - start):
        raise FormatError("npy file", f"a header of {length:,} bytes")
    header = bytes(file[start : start + length]).decode("latin-1")
    match = _NPY_HEADER.match(header)
    if match is None or match[2] not in _NPY_TYPES:
        raise FormatError("npy file", f"only plain numbers are understood, not {header[:80].strip()!r}")
    dtype = _NPY_TYPES[match[2]]
    shape = tuple(int(size) for size in match[4].replace(" ", "").split(",") if size)
    data = file[start + length :]
    if len(shape) > 64 or array_size(dtype, shape) != len(data):
        raise FormatError("npy file", f"{len(data):,} bytes for an array of {shape}")
    order = "fortran order, " if match[3] == "True" and len(shape) > 1 else ""
    if match[1] == ">" and ITEM_SIZES[dtype] > 1:
        raise FormatError("npy file", "big-endian numbers are not understood")
    return Tensor(order + dtype, shape, lambda: data)


def _read_npy(file: memoryview) -> dict[str, Tensor]:
    return {"": parse_npy(file)}


def _read_npz(file: memoryview) -> dict[str, Tensor]:
    archive = open_zip(file)
    found = {}
    for info in archive.infolist():
        if info.filename.endswith(".npy"):
            found[info.filename.removesuffix(".npy")] = parse_npy(read_member(archive, info))
    return found


def open_zip(file: memoryview) -> zipfile.ZipFile:
    """Open an archive that is in memory. Raises FormatError: it has too many members."""
    archive = zipfile.ZipFile(_Buffered(file))
    if len(archive.infolist()) > TENSORS_MAX:
        raise FormatError("archive", f"{len(archive.infolist()):,} members")
    return archive


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size_max: int = INFLATED_SIZE_MAX) -> bytes:
    """Return the content of a member, as long as it says. Raises FormatError, BadZipFile."""
    if info.file_size > size_max or info.compress_size > size_max or info.flag_bits & 1:
        raise FormatError("archive", f"{info.filename[:80]!r} has {info.file_size:,} bytes, or is encrypted")
    with archive.open(info) as member:
        data = member.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise FormatError("archive", f"{info.filename[:80]!r} has other bytes than it says")
    return data


class _Buffered:
    """A file over a view, which copies only what is read."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(offset + (0, self._at, len(self._data))[whence], 0)
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else self._at + size
        data = bytes(self._data[self._at : end])
        self._at += len(data)
        return data


def _read_json(file: memoryview) -> dict[str, Tensor]:
    if len(file) > _JSON_SIZE_MAX:
        raise FormatError("JSON file", f"{len(file):,} bytes")
    try:
        return flatten(msgspec.json.decode(file))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError("JSON file", str(error)) from error


def flatten(root: object) -> dict[str, Tensor]:
    """Return the leaves of nested dicts and lists by their place, such as `model.weight` or `losses.3`.

    Raises:
        FormatError: there are too many, or too deep: also by an object that holds itself.
    """
    found: dict[str, Tensor] = {}
    todo: list[tuple[str, object, int]] = [("", root, 0)]
    seen = 0
    while todo:
        place, value, depth = todo.pop()
        seen += 1
        if seen > LEAVES_MAX or depth > NESTING_MAX or len(place) > 4096:
            raise FormatError("file", f"more than {LEAVES_MAX:,} values, or more than {NESTING_MAX} in each other")
        inside = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else None
        )
        if inside is not None:
            if len(value) > LEAVES_MAX - len(todo):  # type: ignore[arg-type] # it is one of the three
                raise FormatError("file", f"more than {LEAVES_MAX:,} values")
            found[f"{place}()"] = _constant(f"{len(value)} values")  # type: ignore[arg-type]
            todo += [(f"{place}.{key}" if place else f"{key}", item, depth + 1) for key, item in inside]
        elif isinstance(value, Tensor):
            found[place] = value
        elif isinstance(value, float):
            found[place] = _number(value)
        else:
            found[place] = _constant(value)
    return found


def _constant(value: object) -> Tensor:
    # Python refuses to write huge integers in decimal.
    text = hex(value) if isinstance(value, int) and value.bit_length() > 4096 else repr(value)
    return Tensor("VALUE", (), lambda: text.encode(errors="backslashreplace"), value)


def _number(value: float) -> Tensor:
    import struct

    return Tensor("F64", (), lambda: struct.pack("<d", value), value)


def _read_torch(file: memoryview) -> dict[str, Tensor]:
    from vault.ops.torch_file import read_torch

    return read_torch(file)


_READERS: Final[Mapping[str, Callable[[memoryview], dict[str, Tensor]]]] = {
    ".safetensors": _read_safetensors,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".json": _read_json,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".ckpt": _read_torch,
    ".bin": _read_torch,
}
