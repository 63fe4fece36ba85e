"""What a recorded run has made, restored, so that what its repetition makes can be held against it. Threads: one."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from vault.errors import RefNotFound
from vault.ids import Digest, parse_digest
from vault.ops.audit import Audit
from vault.ops.checkout import checkout
from vault.ops.listing import root_entry
from vault.ops.repetition_place import Place
from vault.repo.repository import Repository
from vault.repo.run_model import Run
from vault.repo.trees import TreeReader


@dataclass(frozen=True, slots=True)
class Original:
    """Something that the original made and that can be held against what a repetition makes."""

    name: str
    path: str  # on the original's host; "" if it is only known by its version
    is_file: bool
    restored: str  # where it lies now


def restore_outputs(audit: Audit, run: Run, folder: str) -> list[Original]:
    """Write what a run has committed to folders: of each path the last version, and not what lies below another path.

    Raises:
        StoreError, IntegrityError: it cannot be read.
        TargetUnwritable: it cannot be written.
    """
    last = {output.path or f"{output.dataset}@v{output.version}": output for output in run.outputs}
    found: list[Original] = []
    for path, output in last.items():
        if any(path.startswith(f"{other}/") for other in last if other.startswith("/")):
            continue
        name = f"{output.dataset}@v{output.version}"
        found.append(
            _restored(audit, parse_digest(output.snapshot), name, output.path, os.path.join(folder, str(len(found))))
        )
    reported = {(output.dataset, output.version) for output in run.outputs}
    for made in audit.versions.made_by(run.run):
        if (made.dataset, made.number) not in reported:
            found.append(_restored(audit, made.snapshot, made.ref, "", os.path.join(folder, str(len(found)))))
    return found


def pair_with_new(originals: Sequence[Original], place: Place, private: Repository) -> list[tuple[str, str, str]]:
    """Return name, original and repetition of what is to be compared; the last may not exist.

    Args:
        originals: what the original made. What is only known by its version is the n-th of its dataset.
        place: of the repetition.
        private: the store into which the repetition has committed.
    """
    pairs: list[tuple[str, str, str]] = []
    counts: dict[str, int] = {}
    for original in originals:
        if not original.path:
            dataset = original.name.partition("@")[0]
            counts[dataset] = counts.get(dataset, 0) + 1
            new = os.path.join(place.folder("committed"), str(len(pairs)))
            with contextlib.suppress(RefNotFound):
                version = private.datasets.load(dataset).version(counts[dataset])
                if version is not None:
                    root = root_entry(TreeReader(private.object_reader()), version.snapshot)
                    checkout(private.object_reader(), root, os.fsencode(new))
        elif original.is_file:
            folder, name = os.path.split(original.path)
            new = os.path.join(place.real(place.leads_to(folder)), name)
        else:
            new = place.real(place.leads_to(original.path))
        pairs.append((original.name, original.restored, new))
    return pairs


def _restored(audit: Audit, snapshot: Digest, name: str, path: str, target: str) -> Original:
    trees = TreeReader(audit.repository.object_reader())
    entries = list(trees.entries(snapshot)) if path else []
    is_file = len(entries) == 1 and entries[0].is_file and os.fsdecode(entries[0].name) == os.path.basename(path)
    checkout(audit.repository.object_reader(), root_entry(trees, snapshot), os.fsencode(target))
    return Original(name, path, is_file, os.path.join(target, os.path.basename(path)) if is_file else target)
