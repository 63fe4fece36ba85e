"""Native libraries that a process has loaded and that change its numbers: CUDA, cuDNN, NCCL, MKL, BLAS, libc ...

From its memory map, as names of files; a version is what the name of the file says. Extension modules of packages are left
out, for the list of packages stands for them. Threads: safe.
"""

import os
import re
from typing import Final

import msgspec

from vault.capture.proc import decode, read_bounded

MAPS_SIZE_MAX: Final = 4 << 20
LIBRARIES_MAX: Final = 256
_NOTABLE = re.compile(
    r"lib(?:cuda|cudart|cudnn|cublas|cufft|curand|cusolver|cusparse|cusparseLt|cupti|nvrtc|nvJitLink|nvToolsExt|nvshmem|nvidia"
    r"|nccl|rccl|amdhip64|hsa-runtime64|MIOpen|rocblas|hipblas|mkl|iomp5|omp|gomp|openblas|scipy_openblas|blas|lapack|blis"
    r"|dnnl|torch|c10|tensorflow|jax|onnxruntime|mpi|ucp|ucs|fabric|gloo|stdc\+\+|c|m|gcc_s|python|R|julia)"
    r"(?:[-_.0-9A-Za-z]*)?\.so(?:[.\d]*)\Z"
)
_VERSION = re.compile(r"(?:\.so\.|-)(\d+(?:\.\d+)*)(?:\.so)?\Z")


class Library(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A loaded library, as it stands in environment.json."""

    path: str
    size: int
    soname: str = ""
    version: str = ""


def read_maps(pid: int) -> bytes:
    """Return the memory map of a process. Raises OSError: it may not be read, or the process is gone."""
    return read_bounded(f"/proc/{pid}/maps", MAPS_SIZE_MAX)


def loaded_libraries(maps: bytes, prefix: str) -> list[Library]:
    """Return the notable libraries in a memory map, ascending by path; those below prefix relative to it."""
    found: dict[str, Library] = {}
    for line in maps.split(b"\n"):
        start = line.find(b"/")
        path = decode(line[start:]) if start > 0 else ""
        name = path.rpartition("/")[2]
        if not path or path in found or not _NOTABLE.match(name) or len(found) >= LIBRARIES_MAX:
            continue
        try:
            real = os.path.realpath(path)
            size = os.stat(real).st_size
        except OSError:
            continue  # deleted, or in another container
        shown = path[len(prefix) + 1 :] if prefix and path.startswith(prefix + "/") else path
        version = _VERSION.search(os.path.basename(real))
        found[path] = Library(path=shown, size=size, soname=_soname(name), version=version[1] if version else "")
    return sorted(found.values(), key=lambda library: library.path)


def _soname(name: str) -> str:
    """Return the name without all of the version but its first number: what programs ask the loader for."""
    match = re.match(r"(.+?\.so)(?:\.(\d+))?", name)
    return "" if not match else match[1] + (f".{match[2]}" if match[2] else "")
