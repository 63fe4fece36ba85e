"""What torch.save wrote, read without torch and without running anything.

The archive's data.pkl is a program for a stack machine. Ours knows the stack and a handful of names that stand for plain
data; whatever else the program wants to call becomes an inert note of that. Legacy files, no archives, are refused.
Threads: safe.
"""

import pickletools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from vault.errors import FormatError
from vault.ops.tensors import ITEM_SIZES, NESTING_MAX, Data, Tensor, flatten, open_zip, read_member

PROGRAM_SIZE_MAX: Final = 32 << 20
STEPS_MAX: Final = 5_000_000
STRIDED_ITEMS_MAX: Final = 20_000_000
_STORAGES: Final = {
    f"{name}Storage": dtype
    for name, dtype in zip(
        "Float Double Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble".split(),
        "F32 F64 F16 BF16 I64 I32 I16 I8 U8 BOOL C64 C128".split(),
        strict=True,
    )
}
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS: Final = frozenset(
    (
        "BININT BININT1 BININT2 LONG1 LONG4 INT LONG BINFLOAT FLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE"
        " BINBYTES SHORT_BINBYTES BINBYTES8 BINSTRING SHORT_BINSTRING STRING"
    ).split()
)
_IGNORED: Final = frozenset(("PROTO", "FRAME"))
_MARK: Final = object()


@dataclass(frozen=True, slots=True)
class _Name:
    text: str  # "collections.OrderedDict"


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    key: str
    items: int


def read_torch(file: memoryview) -> dict[str, Tensor]:
    """Return the arrays and values of a file by their place in what was saved. Raises FormatError, BadZipFile."""
    if bytes(file[:2]) != b"PK":
        raise FormatError("torch file", "it is of the kind that torch wrote before 1.6, or none")
    archive = open_zip(file)
    programs = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
    if len(programs) != 1:
        raise FormatError("torch file", "it has no data.pkl")
    folder = programs[0].filename.removesuffix("data.pkl")
    order = next((info for info in archive.infolist() if info.filename == f"{folder}byteorder"), None)
    if order is not None and read_member(archive, order, 64) != b"little":
        raise FormatError("torch file", "big-endian numbers are not understood")
    return flatten(_Machine(archive, folder).run(read_member(archive, programs[0], PROGRAM_SIZE_MAX)))


class _Machine:
    """Follows a pickle program as far as it builds plain data."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> object:
        """Return what the program builds. Raises FormatError."""
        try:
            for step, (opcode, argument, _) in enumerate(pickletools.genops(program)):
                if step > STEPS_MAX:
                    raise FormatError("torch file", f"more than {STEPS_MAX:,} steps")
                if opcode.name == "STOP" and self._stack[-1] is not _MARK:
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except FormatError:
            raise
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise FormatError("torch file", f"its data.pkl makes no sense: {error}") from error
        raise FormatError("torch file", "its data.pkl does not end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[int(argument)])
        elif name == "GLOBAL":
            stack.append(_Name(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            last = stack.pop()
            stack.append(_Name(f"{stack.pop()}.{last}"))
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}.get(name, list)())
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            items = self._marked()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(stack) < count:
                raise IndexError(name)
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("DICT", "SETITEMS", "SETITEM"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._marked()
            if name == "DICT":
                stack.append({})
            self._set(stack[-1], items)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self._marked()
            stack[-1].extend(items)
        elif name == "POP":
            stack.pop()
        elif name in ("BINPERSID", "PERSID"):
            stack.append(_storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack.append(self._call(stack.pop(), arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], dict) and isinstance(state, dict):
                stack[-1].update({f"__state__{len(stack[-1])}": state} if state else {})
        else:
            raise FormatError("torch file", f"its data.pkl uses {name}, which is not understood")

    def _marked(self) -> list[Any]:
        """Take what lies above the last mark."""
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                items = self._stack[at + 1 :]
                del self._stack[at:]
                return items
        raise IndexError("no mark")

    def _set(self, target: Any, items: Sequence[Any]) -> None:
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("items for what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key if isinstance(key, str | int | float | bool | None) else _text_of_key(key)] = value

    def _call(self, what: Any, arguments: Any) -> Any:
        name = what.text if isinstance(what, _Name) else "?"
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return self._tensor(*arguments[:4])
        if name in ("torch._utils._rebuild_parameter", "torch._tensor._rebuild_from_type_v2"):
            return arguments[0] if name.endswith("parameter") else self._call(arguments[0], arguments[2])
        if name == "collections.OrderedDict" and not arguments:
            return {}
        if name == "torch.Size":
            return tuple(arguments[0])
        return {"__called__": name, "__with__": arguments}

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
        sizes = (offset, *shape, *stride)
        if not isinstance(storage, _Storage) or not all(type(size) is int and 0 <= size < 1 << 48 for size in sizes):
            raise TypeError("an array without a storage, or of a size that cannot be")
        if len(shape) != len(stride) or len(shape) > NESTING_MAX:
            raise TypeError("shape and stride do not fit")
        last = (
            offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if all(shape) else offset - 1
        )
        if last >= storage.items:
            raise TypeError("an array beyond its storage")
        is_plain = _is_contiguous(shape, stride)
        count = 1
        for size in shape:
            count *= size
        if count > max(storage.items, 1) and not is_plain:
            raise TypeError("an array that is expanded")
        return Tensor(
            storage.dtype, tuple(shape), lambda: self._load(storage, offset, tuple(shape), tuple(stride), count, is_plain)
        )

    def _load(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], count: int, is_plain: bool
    ) -> Data:
        try:
            info = self._archive.getinfo(f"{self._folder}data/{storage.key}")
        except KeyError:
            raise FormatError("torch file", f"it has no data/{storage.key[:40]}") from None
        item = ITEM_SIZES[storage.dtype]
        if info.file_size != storage.items * item:
            raise FormatError("torch file", f"data/{storage.key[:40]} has {info.file_size:,} bytes, expected otherwise")
        if info.compress_type != zipfile.ZIP_STORED:
            raise FormatError("torch file", f"data/{storage.key[:40]} is compressed, which torch does not do")
        data = memoryview(read_member(self._archive, info, 1 << 40))  # bounded by the file: nothing of it is inflated
        if is_plain:
            return data[offset * item : (offset + count) * item]
        if count > STRIDED_ITEMS_MAX:
            raise FormatError("torch file", f"an array of {count:,} numbers that do not lie in their order")
        places = [offset]
        for size, step in zip(shape, stride, strict=True):
            places = [place + number * step for place in places for number in range(size)]
        return b"".join(data[place * item : (place + 1) * item] for place in places)


def _storage(found: Any) -> _Storage:
    """Return the storage that a persistent ID stands for: ("storage", type, key, place, number of items)."""
    kind, what, key, _, items = found
    name = what.text.rpartition(".")[2] if isinstance(what, _Name) else ""
    if kind != "storage" or name not in _STORAGES or not isinstance(key, str) or type(items) is not int or items < 0:
        raise FormatError("torch file", f"a storage of a kind that is not understood: {name[:40]!r}")
    return _Storage(_STORAGES[name], key, items)


def _is_contiguous(shape: Sequence[int], stride: Sequence[int]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size > 1 and step != expected:
            return False
        expected *= max(size, 1)
    return True


def _text_of_key(key: object) -> str:
    """Return a text for a key that is no plain one; what is in it may hold itself."""
    if isinstance(key, tuple) and len(key) < 16 and all(isinstance(part, str | int | float | bool | None) for part in key):
        return repr(key)
    raise TypeError("a key that is no plain value")
