"""`vault identify`."""

import shlex

import click

from vault.cli.change_text import change_record, change_text, totals_record
from vault.cli.commands import examples
from vault.cli.exit_codes import NOT_FOUND, OK
from vault.cli.options import Session, session_options
from vault.cli.output import count_text, name_text, one_line, size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.ops.identify import Identified, Place, Sampled

_SHOWN_MAX = 10


@click.command(
    epilog=examples(
        "vault identify /nfs/old/imagenet",
        "vault identify --diff ./imagenet_final_v2_new",
        "vault identify --sample 1000 /nfs/huge",
    )
)
@click.argument("folder", type=click.Path(path_type=bytes))
@click.option("--diff", "with_diff", is_flag=True, help="Show every path in which it differs from the nearest version.")
@click.option(
    "--sample",
    metavar="N",
    type=click.IntRange(min=1),
    default=None,
    help="Look into N files only, and say how sure that makes the answer.",
)
@session_options
def identify(session: Session, folder: bytes, with_diff: bool, sample: int | None) -> int:
    """Say which version the FOLDER of this machine is, by what its files hold: the same, or the nearest one.

    Files whose size, times and inode are known are not read again. Exit status 3 if no version has any of its files.
    """
    with session.out.progress() as progress:
        if sample is not None:
            return _sampled(session, folder, session.open().identify_sample(folder, sample, progress=progress))
        found = session.open().identify(folder, progress=progress)
    return _identified(session, folder, found, with_diff=with_diff)


def _identified(session: Session, folder: bytes, found: "Identified", *, with_diff: bool) -> int:
    out = session.out
    for place in found.exact:
        out.answer("place", _place_record(place))
    if with_diff:
        for change in found.changes:
            out.answer("change", change_record(change), change_text(out, change))
    nearest = found.nearest
    totals = found.totals
    record = {
        "path": name_text(folder),
        "match": "exact" if found.exact else "none" if nearest is None else "layout" if found.is_other_layout else "near",
        "ref": found.exact[0].ref if found.exact else None if nearest is None else nearest.ref,
        "files": found.files,
        "bytes": found.size_bytes,
        **totals_record(totals),
        "versions": found.versions,
        "unreadable": found.unreadable,
    }
    out.summary(record, one_line(_answer(found)))
    if out.quiet and record["ref"]:
        out.lines([str(record["ref"])])
    if found.unreadable:
        out.warn(f"{count_text(found.unreadable, 'version')} could not be looked into: 'vault verify' says why")
    if nearest is not None and not with_diff:
        name = shlex.quote(name_text(folder))
        out.note(one_line(f"'vault diff {nearest.ref} {name}' shows the difference"))
    return OK if found.exact or nearest is not None else NOT_FOUND


def _answer(found: "Identified") -> str:
    size = f"{count_text(found.files, 'file')}, {size_text(found.size_bytes)}"
    if found.exact:
        more = [place.ref for place in found.exact[1:]]
        also = f"; also {', '.join(more[:_SHOWN_MAX])}" if more else ""
        also += f" and {len(more) - _SHOWN_MAX:,} more" if len(more) > _SHOWN_MAX else ""
        return f"{found.exact[0].ref} exactly ({size}){also}"
    among = f"of {count_text(found.versions, 'version')}"
    if found.nearest is None:
        return f"no version has any of its files ({size}; {among})"
    if found.is_other_layout:
        renamed = f"{found.totals.renamed:,} renamed"
        return f"the files of {found.nearest.ref} in another layout: {renamed} ({size}; nearest {among})"
    totals = found.totals
    words = [
        f"minus {count_text(totals.removed, 'file')}" if totals.removed else "",
        f"plus {totals.added:,}" if totals.added else "",
        f"with {totals.changed:,} changed" if totals.changed else "",
        f"{totals.renamed:,} renamed" if totals.renamed else "",
    ]
    return f"{found.nearest.ref} {' '.join(filter(None, words))} ({size}; nearest {among})"


def _sampled(session: Session, folder: bytes, found: "Sampled") -> int:
    out, nearest = session.out, found.nearest
    record = {
        "path": name_text(folder),
        "match": "none" if nearest is None else "sample",
        "ref": None if nearest is None else nearest.ref,
        "also": [place.ref for place in found.also],
        "files": found.files,
        "looked_at": found.looked_at,
        "found": found.found,
        "at_their_path": found.at_their_path,
        "share_low": round(found.low, 6),
        "share_high": round(found.high, 6),
        "versions": found.versions,
        "unreadable": found.unreadable,
    }
    among = f"of {count_text(found.versions, 'version')}"
    looked_at = f"{found.looked_at:,} of {count_text(found.files, 'file')}"
    if nearest is None:
        text = f"no version has any of the files that were looked at ({looked_at}; {among})"
    else:
        seen = f"{found.found:,} of {found.looked_at:,} files that were looked at, of {found.files:,}"
        sure = f"{found.low:.1%} to {found.high:.1%} of all, with 95 % confidence"
        same = f"{found.at_their_path:,} under the same path"
        text = f"like {nearest.ref}: it has {seen}; so {sure}; {same} (nearest {among})"
    out.summary(record, one_line(text))
    if found.also:
        out.note(one_line(f"the sample cannot tell it from {', '.join(place.ref for place in found.also[:_SHOWN_MAX])}"))
    return OK if nearest is not None else NOT_FOUND


def _place_record(place: "Place") -> dict[str, object]:
    return {"ref": place.ref, "snapshot": place.made.snapshot.hex(), "path": name_text(place.path), "time": place.made.time}
