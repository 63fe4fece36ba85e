"""Weights of several formats, read without their libraries, and the verdict ladder over them."""

import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest

from vault.errors import FormatError, UsageError
from vault.ops.tensor_errors import Tolerance, parse_tolerance
from vault.ops.tensors import open_tensors
from vault.ops.verdict import Comparison, FileVerdict, compare_outputs, judge, spreads

np = pytest.importorskip("numpy")
EXACT = Tolerance(0, 0)


def safetensors(path: Path, arrays: dict, metadata: dict | None = None) -> Path:
    header: dict = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    names = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64"}
    for name, array in arrays.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": names[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


class _Storage:
    """Pickled as torch pickles a storage: by a persistent ID."""

    def __init__(self, key, array):
        self.key, self.array = key, array


class FloatStorage:
    __module__ = "torch"


class _Rebuilt:
    def __init__(self, storage, shape, stride, offset=0):
        self.parts = (storage, offset, shape, stride, False, OrderedDict())

    def __reduce__(self):
        return (_rebuild_tensor_v2, self.parts)


def _rebuild_tensor_v2(*_):
    raise AssertionError("this must never run")


_rebuild_tensor_v2.__module__ = "torch._utils"


class _Pickler(pickle._Pickler):
    def persistent_id(self, obj):
        return ("storage", FloatStorage, obj.key, "cpu", obj.array.size) if isinstance(obj, _Storage) else None

    def save_global(self, obj, name=None):
        self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__name__}\n".encode())

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 - as its parent has it
    dispatch[type] = save_global
    dispatch[type(_rebuild_tensor_v2)] = save_global


def torch_file(path: Path, what: object, storages: list, compression: int = zipfile.ZIP_STORED) -> Path:
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(what)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/byteorder", b"little")
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())
    return path


def level(old: Path, new: Path, tolerance: Tolerance = EXACT) -> tuple[str, str]:
    found = compare_outputs([("out", str(old), str(new))], tolerance)
    return found.level, "; ".join(file.reason for file in found.files)


# The ladder.


def test_equal_bytes_are_l0_and_unknown_files_that_differ_l4(tmp_path):
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("x")
    b.write_text("x")
    assert level(a, b) == ("L0", "")
    b.write_text("y")
    assert level(a, b)[0] == "L4"


def test_equal_tensors_in_other_bytes_are_l1(tmp_path):
    arrays = {"w": np.arange(6, dtype="f4").reshape(2, 3)}
    a = safetensors(tmp_path / "a.safetensors", arrays, {"time": "1"})
    b = safetensors(tmp_path / "b.safetensors", arrays, {"time": "22"})
    assert level(a, b)[0] == "L1"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_last_bit_is_one_ulp_in_every_type(tmp_path, dtype):
    old = np.array([1.0, -3.5, 0.0, 7.25], dtype)
    new = np.nextafter(old, np.array(np.inf, dtype), dtype=dtype)
    new[2] = -0.0
    a, b = safetensors(tmp_path / "a.safetensors", {"w": old}), safetensors(tmp_path / "b.safetensors", {"w": new})
    found = compare_outputs([("out", str(a), str(b))], Tolerance(ulp=1))
    assert found.level == "L2" and found.errors.ulp == 1 and found.errors.beyond == 0
    assert found.errors.absolute == float(np.abs(new.astype("f8") - old.astype("f8")).max())
    assert level(a, b, Tolerance(ulp=0))[0] == "L4"
    assert level(a, b, Tolerance(rtol=1e-2))[0] == "L2"


def test_nan_and_infinity_are_no_small_error(tmp_path):
    def file(name: str, *values: float) -> Path:
        return safetensors(tmp_path / f"{name}.safetensors", {"w": np.array(values, "f4")}, {"n": name})

    same = file("a", math.nan, math.inf, 1.0)
    assert level(same, file("b", math.nan, math.inf, 1.0), EXACT)[0] == "L1"
    assert level(same, file("c", 1.0, math.inf, 1.0), Tolerance(1e9, 1e9))[0] == "L4"
    assert level(same, file("d", math.nan, -math.inf, 1.0), Tolerance(1e9, 1e9))[0] == "L4"


def test_other_shapes_names_and_integers_are_l4(tmp_path):
    old = safetensors(tmp_path / "a.safetensors", {"w": np.zeros(4, "f4"), "n": np.array([1])})
    for number, arrays in enumerate(
        [
            {"w": np.zeros((2, 2), "f4"), "n": np.array([1])},
            {"w": np.zeros(4, "f4")},
            {"w": np.zeros(4, "f4"), "n": np.array([2])},
        ]
    ):
        new = safetensors(tmp_path / f"b{number}.safetensors", arrays)
        assert level(old, new, Tolerance(1, 1))[0] == "L4"


def test_npy_npz_and_json(tmp_path):
    old, new = np.arange(4, dtype="f4"), np.arange(4, dtype="f4") + np.float32(1e-6)
    np.save(tmp_path / "a.npy", old)
    np.save(tmp_path / "b.npy", new)
    assert level(tmp_path / "a.npy", tmp_path / "b.npy", Tolerance())[0] == "L4"
    assert level(tmp_path / "a.npy", tmp_path / "b.npy", Tolerance(atol=1e-5))[0] == "L2"
    np.savez(tmp_path / "a.npz", w=old)
    np.savez_compressed(tmp_path / "b.npz", w=old)
    assert level(tmp_path / "a.npz", tmp_path / "b.npz")[0] == "L1"
    (tmp_path / "a.json").write_text('{"acc": 0.5, "name": "x"}')
    (tmp_path / "b.json").write_text('{"acc": 0.5000001, "name": "x"}')
    (tmp_path / "c.json").write_text('{"acc": 0.5, "name": "y"}')
    assert level(tmp_path / "a.json", tmp_path / "b.json", Tolerance(1e-5, 0))[0] == "L2"
    assert level(tmp_path / "a.json", tmp_path / "c.json", Tolerance(1e-5, 0))[0] == "L4"


def test_folders_are_compared_file_by_file_and_the_worst_decides(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "same").write_text("x")
        safetensors(tmp_path / name / "w.safetensors", {"w": np.zeros(2, "f4")}, {"n": name})
    assert level(tmp_path / "old", tmp_path / "new")[0] == "L1"
    (tmp_path / "new" / "more").write_text("y")
    assert level(tmp_path / "old", tmp_path / "new")[0] == "L4"
    assert level(tmp_path / "old", tmp_path / "gone") == ("not comparable", "the repetition did not make it")


def test_symlinks_of_a_repetition_are_not_followed(tmp_path):
    (tmp_path / "a").write_text("x")
    os.symlink("a", tmp_path / "b")
    assert level(tmp_path / "a", tmp_path / "b")[0] == "not comparable"


# torch


def test_torch_files_are_read_without_torch(tmp_path):
    def save(name: str, bump: float, lr: float) -> Path:
        storage = _Storage("0", np.arange(6, dtype="f4") + np.float32(bump))
        plain, turned = _Rebuilt(storage, (2, 3), (3, 1)), _Rebuilt(storage, (3, 2), (1, 3))
        return torch_file(tmp_path / name, {"model": {"w": plain, "t": turned}, "lr": lr, "epoch": 3}, [storage])

    old = save("a.pt", 0, 0.1)
    with open_tensors(str(old)) as tensors:
        assert tensors is not None
        assert tensors["model.w"].shape == (2, 3)
        assert np.frombuffer(tensors["model.t"].load(), "f4").tolist() == [0, 3, 1, 4, 2, 5]
    assert level(old, save("b.pt", 0, 0.1))[0] in ("L0", "L1")
    assert level(old, save("c.pt", 1e-6, 0.1), Tolerance(atol=1e-5))[0] == "L2"
    assert level(old, save("d.pt", 0, 0.2))[0] == "L4"


def test_nothing_in_a_torch_file_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/executed",))

    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": Evil()}, 2))
    with open_tensors(str(tmp_path / "evil.pt")) as tensors:
        assert tensors is not None and any(b"system" in bytes(tensor.load()) for tensor in tensors.values())
    assert not (tmp_path / "executed").exists()


def _program(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02",
        _program(),
        _program(b"("),
        _program(b"0"),
        _program(b"h\x05"),
        _program(b"r\xff\xff\xff\x7f"),
        _program(b"}", b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7e"),
        _program(b"\x8b\xff\xff\xff\x7f"),
        _program(b"X\xff\xff\xff\xff"),
        _program(b"]q\x00h\x00a"),  # a list that holds itself
        _program(b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(40))),  # 2^40 leaves
        _program(b"]" * 5000 + b"a" * 4999),
        _program(b"K\x01Q"),
        _program(b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
        _program(b"}(K\x01u"),
        _program(b"K\x01K\x01K\x01s"),
        pickle.dumps({("a", ("b",)): 1}, 2),
        pickle.dumps(1 << 400_000, 2)[:-900] + b".",
    ],
    ids=range(19),
)
def test_hostile_programs_are_refused(tmp_path, program):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(FormatError), open_tensors(str(tmp_path / "a.pt")) as tensors:
        assert tensors is not None
        for tensor in tensors.values():
            tensor.load()


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((7,), (1,), 0),
        ((2,), (6,), 0),
        ((6,), (1,), 1),
        ((1 << 60,), (0,), 0),
        ((1 << 40,), (0,), 0),
        ((2, 3), (3,), 0),
        ((-1,), (1,), 0),
    ],
)
def test_arrays_beyond_their_storage_are_refused(tmp_path, shape, stride, offset):
    storage = _Storage("0", np.arange(6, dtype="f4"))
    path = torch_file(tmp_path / "a.pt", {"w": _Rebuilt(storage, shape, stride, offset)}, [storage])
    with pytest.raises(FormatError), open_tensors(str(path)) as tensors:
        assert tensors is not None
        tensors["w"].load()


def test_compressed_or_missing_storages_are_refused(tmp_path):
    storage = _Storage("0", np.zeros(1 << 20, dtype="f4"))
    for name, storages, how in [("a", [storage], zipfile.ZIP_DEFLATED), ("b", [], zipfile.ZIP_STORED)]:
        path = torch_file(tmp_path / f"{name}.pt", {"w": _Rebuilt(storage, (1 << 20,), (1,))}, storages, how)
        with pytest.raises(FormatError), open_tensors(str(path)) as tensors:
            assert tensors is not None
            tensors["w"].load()


# Hostile headers.


def _with_header(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _info(begin: int, end: int, dtype: str = "F32", shape: tuple = (1,)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1\2",
        _with_header({}, length=1 << 62),
        _with_header(b"[" * 100_000),
        _with_header(b'{"a":' * 50_000),
        _with_header(b"\xff"),
        _with_header({"w": _info(0, 8)}, bytes(4)),
        _with_header({"w": _info(0, 4), "v": _info(2, 6)}, bytes(6)),
        _with_header({"w": _info(0, 4), "v": _info(0, 4)}, bytes(4)),
        _with_header({"w": _info(4, 8)}, bytes(8)),
        _with_header({"w": _info(0, 4)}, bytes(8)),
        _with_header({"w": _info(4, 0)}, bytes(8)),
        _with_header({"w": _info(-4, 0)}, bytes(8)),
        _with_header({"w": _info(0, 4, shape=(1 << 47, 1 << 47))}, bytes(4)),
        _with_header({"w": _info(0, 4, shape=(-1,))}, bytes(4)),
        _with_header({"w": _info(0, 4, dtype="F4096")}, bytes(4)),
        _with_header({"w": 3}, bytes(4)),
    ],
    ids=range(17),
)
def test_hostile_safetensors_are_refused(tmp_path, data):
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(FormatError), open_tensors(str(tmp_path / "a.safetensors")):
        pass


def _npy(header: str, data: bytes = b"", length: int | None = None) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header) if length is None else length) + header.encode() + data


@pytest.mark.parametrize(
    "data",
    [
        b"\x93NUMPY",
        _npy("", length=60_000),
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", bytes(8)),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", bytes(4)),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999999999,), }\n", bytes(4)),
        _npy("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }\n", bytes(4)),
        _npy("{'descr': __import__('os').system('x'), 'fortran_order': False, 'shape': (1,), }\n", bytes(4)),
    ],
    ids=range(7),
)
def test_hostile_npy_files_are_refused(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(FormatError), open_tensors(str(tmp_path / "a.npy")):
        pass


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    for name in ("a.npz", "a.pt"):
        (tmp_path / name).write_bytes(b"PK\3\4" + bytes(100))
        with pytest.raises(FormatError), open_tensors(str(tmp_path / name)):
            pass


# Verdicts.


def _compared(*levels: str) -> Comparison:
    return Comparison([FileVerdict(f"f{number}", level, "why") for number, level in enumerate(levels)])


def test_a_metric_within_the_spread_lifts_to_l3_and_one_outside_does_not():
    repeats = [{"acc": 0.70}, {"acc": 0.72}, {"acc": 0.71}]
    inside, outside = spreads({"acc": 0.705}, repeats), spreads({"acc": 0.9}, repeats)
    assert judge("r", _compared("L4"), inside, EXACT, []).level == "L3"
    assert judge("r", _compared(), inside, EXACT, []).level == "L3"
    found = judge("r", _compared("L4"), outside, EXACT, ["another CPU"])
    assert found.level == "L4" and "another CPU" in found.reasons
    assert judge("r", _compared(), outside, EXACT, []).level == "L4"
    assert judge("r", _compared("L0"), inside, EXACT, []).level == "L0"
    assert spreads({"acc": 0.705}, repeats[:2]) == []


def test_without_anything_to_compare_there_is_no_verdict():
    found = judge("r", _compared(), [], EXACT, [])
    assert found.level == "not comparable" and "nothing on record" in found.reasons[0]
    assert judge("r", _compared("L0", "not comparable"), [], EXACT, []).level == "not comparable"
    assert judge("r", _compared("L4", "not comparable"), [], EXACT, []).level == "L4"


@pytest.mark.parametrize("text", ["", "x", "rtol=", "rtol=-1", "ulp=1.5", "ulp=4,rtol=1", "rtol=inf", "atol=nan", "foo=1"])
def test_tolerances_that_make_no_sense_are_refused(text):
    with pytest.raises(UsageError, match="--tolerance"):
        parse_tolerance(text)


def test_tolerances_read_as_they_are_written():
    for text in ("rtol=1e-05,atol=1e-08", "ulp=4"):
        assert str(parse_tolerance(text)) == text
