"""Makes the trees that are measured: the same bytes in every run, and random, so that nobody can compress or share them.

It writes files and returns what it wrote; it measures nothing. One thread.
"""

import json
import os
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_CLASSES: Final = 100
_MEAN_BYTES: Final = 110_000
_TENSOR_BYTES: Final = 16 << 20
_PIECE: Final = 1 << 20
_PER_FOLDER: Final = 1_000


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder and the files in it (paths relative to it)."""

    path: str
    files: tuple[str, ...]
    bytes_total: int


def image_folders(path: str, count: int, *, seed: int = 1) -> Tree:
    """Write files of JPEG-like sizes (40 to 250 KB, about 110 on average) into class folders."""
    chance = random.Random(seed)
    files = []
    total = 0
    for number in range(count):
        name = f"class-{number % _CLASSES:03d}/{number:06d}.jpeg"
        if number < _CLASSES:
            os.makedirs(f"{path}/class-{number:03d}")
        total += _write_random(f"{path}/{name}", chance, _image_size(chance))
        files.append(name)
    return Tree(path, tuple(sorted(files)), total)


def tiny_files(path: str, count: int, *, seed: int = 4) -> Tree:
    """Write files of 1 to 7 KB into folders of _PER_FOLDER."""
    chance = random.Random(seed)
    files = []
    total = 0
    for number in range(count):
        name = f"folder-{number // _PER_FOLDER:03d}/{number:06d}.json"
        if number % _PER_FOLDER == 0:
            os.makedirs(f"{path}/folder-{number // _PER_FOLDER:03d}")
        total += _write_random(f"{path}/{name}", chance, chance.randrange(1_000, 7_000))
        files.append(name)
    return Tree(path, tuple(sorted(files)), total)


def change_images(tree: Tree, seed: int) -> Tree:
    """Replace 1 % of the files, remove 1 % and add 1 %, in place. Returns the tree as it is now."""
    chance = random.Random(f"change {seed}")
    share = max(1, len(tree.files) // 100)
    touched = chance.sample(tree.files, 2 * share)
    removed, replaced = set(touched[:share]), touched[share:]
    for name in removed:
        os.unlink(f"{tree.path}/{name}")
    added = [f"class-{chance.randrange(min(_CLASSES, len(tree.files))):03d}/new-{seed}-{i:05d}.jpeg" for i in range(share)]
    for name in (*replaced, *added):
        _write_random(f"{tree.path}/{name}", chance, _image_size(chance))
    files = sorted((set(tree.files) - removed) | set(added))
    return Tree(tree.path, tuple(files), sum(os.path.getsize(f"{tree.path}/{name}") for name in files))


def checkpoint(path: str, size_bytes: int, *, seed: int = 2) -> Tree:
    """Write one file laid out like safetensors: a header that names the tensors, then tensors of random bytes."""
    count = max(10, size_bytes // _TENSOR_BYTES)
    sizes = _tensor_sizes(count, size_bytes, random.Random(seed))
    header: dict[str, object] = {}
    offset = 0
    for number, size in enumerate(sizes):
        header[f"layers.{number}.weight"] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(f"{path}/model.safetensors", "wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, size in enumerate(sizes):
            _fill(file.fileno(), random.Random(f"{seed}-{number}"), size)
    return Tree(path, ("model.safetensors",), os.path.getsize(f"{path}/model.safetensors"))


def train_on(tree: Tree, seed: int, *, share: float = 0.1) -> Tree:
    """Overwrite a share of a checkpoint's tensors in place, as a step of fine-tuning does."""
    chance = random.Random(f"train {seed}")
    with open(f"{tree.path}/{tree.files[0]}", "r+b", buffering=0) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        tensors = list(json.loads(file.read(length)).values())
        for tensor in chance.sample(tensors, max(1, round(len(tensors) * share))):
            start, end = tensor["data_offsets"]
            file.seek(8 + length + start)
            _fill(file.fileno(), chance, end - start)
    return tree


def many_entries(path: str, count: int) -> Tree:
    """Write a tree of tiny files, folders included in the count; every sixteenth holds a few bytes, the others none."""
    files = []
    for name in _entry_names(path, count):
        descriptor = os.open(f"{path}/{name}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644)
        if len(files) % 16 == 0:
            os.write(descriptor, b"%d\n" % len(files))
        os.close(descriptor)
        files.append(name)
    return Tree(path, tuple(files), -1)


def many_links(path: str, count: int) -> Tree:
    """Write a tree of `count` entries whose files are hard links to a few: quick to make, and no burden on the disk."""
    per_target = 60_000  # ext4 allows 65,000 links to a file
    target = ""
    for number, name in enumerate(_entry_names(path, count)):
        if number % per_target == 0:
            target = f"{path}/{name}"
            with open(target, "w", encoding="ascii") as file:
                file.write(f"{number}\n")
        else:
            os.link(target, f"{path}/{name}")
    return Tree(path, (), -1)


def _entry_names(path: str, count: int) -> Iterator[str]:
    """Yield file names in folders of _PER_FOLDER; folders and files together are `count` entries."""
    folders = -(-count // (_PER_FOLDER + 1))
    for folder in range(folders):
        os.makedirs(f"{path}/folder-{folder:05d}")
        for number in range(min(_PER_FOLDER, count - folders - folder * _PER_FOLDER)):
            yield f"folder-{folder:05d}/sample-{folder * _PER_FOLDER + number:08d}.txt"


def _image_size(chance: random.Random) -> int:
    return min(250_000, max(40_000, int(chance.gauss(_MEAN_BYTES, 35_000))))


def _tensor_sizes(count: int, total: int, chance: random.Random) -> list[int]:
    weights = [chance.uniform(0.25, 1.75) for _ in range(count)]
    return [max(4096, int(total * weight / sum(weights)) & ~1) for weight in weights]


def _write_random(path: str, chance: random.Random, size: int) -> int:
    with open(path, "wb") as file:
        file.write(chance.randbytes(size))
    return size


def _fill(descriptor: int, chance: random.Random, size: int) -> None:
    for offset in range(0, size, _PIECE):
        os.write(descriptor, chance.randbytes(min(_PIECE, size - offset)))
