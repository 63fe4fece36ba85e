"""What differs between two captures: code by file, packages, native libraries, variables, machine.

Threads: one ObjectReader in each.
"""

import difflib
import os
from collections.abc import Iterator
from itertools import islice
from typing import Final

from vault.format.records import CodeTree
from vault.ids import parse_digest
from vault.ops.captured import UNREADABLE, Document, read_environment, read_small, same_code, text_of
from vault.ops.diff import Change, diff_snapshots
from vault.ops.differences import Cause, Difference, differing
from vault.repo.objects import ObjectReader
from vault.repo.run_model import Capture
from vault.repo.trees import TreeReader

CODE_FILES_MAX: Final = 200  # that are named
DIFF_LINES_MAX: Final = 200  # of one file
DIFF_SIZE_MAX: Final = 256 << 10  # of a file that is looked into
_DIFF_FILE_LINES_MAX: Final = 5000  # comparing takes more than linear time
_DIFF_WORK_MAX: Final = 4 << 20  # bytes of files that are compared line by line, over all of them
_LINE_LENGTH_MAX: Final = 400
_DOCUMENTS: Final = frozenset({".md", ".rst", ".txt", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".log", ".html"})
_DOCUMENT_NAMES: Final = frozenset({"LICENSE", "LICENCE", "README", "CHANGELOG", "AUTHORS", "NOTICE", ".gitignore"})
_FRAMEWORKS: Final = frozenset(
    (
        "accelerate bitsandbytes cupy cuda-python datasets deepspeed diffusers flash-attn flax jax jaxlib keras lightgbm"
        " lightning numba numpy nvidia-cublas-cu12 nvidia-cudnn-cu12 nvidia-nccl-cu12 opencv-python optax pandas peft"
        " pillow polars pytorch-lightning safetensors scikit-learn scipy tensorflow timm tokenizers torch torchaudio"
        " torchvision transformers triton xformers xgboost"
    ).split()
)
_RANKS: Final = frozenset(
    (
        "RANK LOCAL_RANK GROUP_RANK ROLE_RANK NODE_RANK GLOBAL_RANK SLURM_PROCID SLURM_LOCALID SLURM_NODEID SLURM_JOB_ID"
        " SLURM_JOBID OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_LOCAL_RANK PMI_RANK PMIX_RANK MV2_COMM_WORLD_RANK"
        " MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT GROUP_WORLD_SIZE"
    ).split()
)  # they say which process it was, or where to meet: they differ between equal runs
_PARALLELISM: Final = frozenset(
    (
        "WORLD_SIZE LOCAL_WORLD_SIZE SLURM_NTASKS SLURM_NNODES SLURM_JOB_NUM_NODES SLURM_NTASKS_PER_NODE"
        " OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_SIZE PMI_SIZE CUDA_VISIBLE_DEVICES"
    ).split()
)


def compare_captures(objects: ObjectReader, old: Capture, new: Capture) -> tuple[list[Difference], list[str]]:
    """Return what differs, and what could not be compared and why."""
    found: list[Difference] = []
    unknown: list[str] = []
    try:
        found += compare_code(objects, old, new)
    except UNREADABLE as error:
        unknown.append(f"code: {error}")
    try:
        before, after = (None, None) if _same(old, new) else (read_environment(objects, side) for side in (old, new))
        if before is not None and after is not None:
            found += _environments(before, after)
            if bool(before.libraries) != bool(after.libraries):  # no program has none: it was not looked at as it ran
                unknown.append(f"native libraries: not captured of the {'second' if before.libraries else 'first'}")
        elif before is not None or after is not None:
            unknown.append(f"packages and libraries: not captured of the {'first' if before is None else 'second'}")
    except UNREADABLE as error:
        unknown.append(f"packages and libraries: {error}")
    for cause, names in ((Cause.PARALLELISM, _PARALLELISM), (Cause.VARIABLE, None)):
        found += differing(
            cause,
            {name: value for name, value in old.variables.items() if names is None or name in names},
            {name: value for name, value in new.variables.items() if names is None or name in names},
            but=_RANKS if names is not None else _RANKS | _PARALLELISM,
        )
    for difference in differing(Cause.PLATFORM, old.platform, new.platform, but=("container",)):
        is_gpu = difference.name.startswith("gpu") or difference.name == "driver"
        cause = Cause.GPU if is_gpu else Cause.PROCESSOR if difference.name.startswith("cpu") else Cause.PLATFORM
        found.append(Difference(cause, difference.name, difference.old, difference.new))
    return found, unknown


def _same(old: Capture, new: Capture) -> bool:
    return old.environment is not None and new.environment is not None and old.environment == new.environment


def compare_code(objects: ObjectReader, old: Capture, new: Capture) -> Iterator[Difference]:
    """Yield the files of code that differ. Raises UNREADABLE: a tree cannot be read."""
    budget = [_DIFF_WORK_MAX]
    for before, after in [] if same_code(old, new) else _pairs(old.code, new.code):
        if before is None or after is None:
            yield Difference(
                Cause.CODE, _tree_name(before or after), None if before is None else _tree_text(before),
                None if after is None else _tree_text(after), "a folder of code that only one of them has",
            )  # fmt: skip
        elif before.snapshot != after.snapshot:
            changes = diff_snapshots(TreeReader(objects), parse_digest(before.snapshot), parse_digest(after.snapshot))
            for change in islice(changes, CODE_FILES_MAX):
                yield _file(objects, change, {before.script, after.script}, budget)
            more = sum(1 for _ in islice(changes, 100 * CODE_FILES_MAX))
            if more:
                at_least = "at least " if more == 100 * CODE_FILES_MAX else ""
                yield Difference(Cause.CODE, _tree_name(after), "", "", f"and {at_least}{more:,} more files")
    for before, after in _pairs(old.code, new.code):
        if before is not None and after is not None and before.head != after.head:
            yield Difference(Cause.COMMIT, _tree_name(after), before.head[:16] or None, after.head[:16] or None)


def _pairs(old: tuple[CodeTree, ...], new: tuple[CodeTree, ...]) -> Iterator[tuple[CodeTree | None, CodeTree | None]]:
    """Pair folders of code: those of the scripts, the others by their name."""
    if old and new:
        yield old[0], new[0]
    rest = {_tree_name(tree): tree for tree in new[1 if old else 0 :]}
    for tree in old[1 if new else 0 :]:
        yield tree, rest.pop(_tree_name(tree), None)
    yield from ((None, tree) for tree in rest.values())


def _file(objects: ObjectReader, change: Change, scripts: set[str], budget: list[int]) -> Difference:
    path = os.fsdecode(change.path)
    old, new = (None if entry is None else f"{entry.size:,} bytes" for entry in (change.old, change.new))
    suffix, base = os.path.splitext(path)[1].lower(), os.path.basename(path)
    if path in scripts:
        cause = Cause.SCRIPT
    elif (suffix in _DOCUMENTS and not base.startswith(("requirements", "constraints"))) or base in _DOCUMENT_NAMES:
        cause = Cause.OTHER_FILE
    else:
        cause = Cause.CODE
    note = ""
    lines: tuple[str, ...] = ()
    if change.old is not None and change.new is not None and change.old.kind != change.new.kind:
        note = "another kind of file"
    elif change.old is not None and change.new is not None:
        lines = _lines(objects, change, budget)
    return Difference(cause, path, old, new, note, lines)


def _lines(objects: ObjectReader, change: Change, budget: list[int]) -> tuple[str, ...]:
    """Return what changed in a small text file, as a unified diff; nothing for other files."""
    sides: list[list[str]] = []
    for entry in (change.old, change.new):
        size = entry.size if entry is not None else 0
        budget[0] -= size
        data = read_small(objects, entry, DIFF_SIZE_MAX) if entry is not None and budget[0] >= 0 else None
        text = None if data is None else text_of(data)
        if text is None or text.count("\n") > _DIFF_FILE_LINES_MAX:
            return ()
        sides.append(text.split("\n"))
    lines = (line[:_LINE_LENGTH_MAX] for line in difflib.unified_diff(sides[0], sides[1], lineterm="", n=2))
    found = list(islice(lines, 2, DIFF_LINES_MAX + 3))  # without the two lines that name files
    return (*found[:DIFF_LINES_MAX], *(["…"] if len(found) > DIFF_LINES_MAX else []))


def _environments(old: Document, new: Document) -> Iterator[Difference]:
    if old.interpreter != new.interpreter:
        yield Difference(Cause.INTERPRETER, "interpreter", old.interpreter or None, new.interpreter or None)
    before, after = ({package.name: package.version for package in side.packages} for side in (old, new))
    for difference in differing(Cause.PACKAGE, before, after):
        cause = Cause.FRAMEWORK if difference.name in _FRAMEWORKS else Cause.PACKAGE
        yield Difference(cause, difference.name, difference.old, difference.new)
    if old.libraries and new.libraries:
        yield from differing(Cause.LIBRARY, _libraries(old), _libraries(new))


def _libraries(document: Document) -> dict[str, str]:
    """Return libraries by what programs ask the loader for: the same one may lie elsewhere."""
    return {
        library.soname or os.path.basename(library.path): f"{library.version} ({library.size:,} bytes)".strip()
        for library in document.libraries
    }


def _tree_name(tree: CodeTree | None) -> str:
    return "" if tree is None else os.path.basename(tree.root.rstrip("/")) or tree.root


def _tree_text(tree: CodeTree) -> str:
    return f"{tree.files:,} files"
