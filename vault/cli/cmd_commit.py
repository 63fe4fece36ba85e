"""`vault commit`."""

import os
from collections.abc import Callable
from functools import partial
from typing import cast

import click

from vault.cli.commands import COMMIT_OF_A_VIEW, examples, load_place
from vault.cli.options import Session, complete_dataset, session_options
from vault.cli.output import count_text, digest_text, size_text
from vault.errors import VaultError


@click.command(
    epilog=examples(
        'vault commit ./imagenet imagenet -m "as downloaded"',
        "vault commit ./imagenet imagenet --exclude '*.tmp' --exclude /cache/",
        "vault commit model.safetensors resnet50 --json",
        "vault commit s3://raw-bucket/imagenet imagenet",
        "vault commit /nfs/imagenet imagenet --cluster tcp://scheduler:8786",
        "vault commit ~/clean -m 'non-JPEGs removed'",
        "REF=$(vault commit -q ./imagenet imagenet)",
    )
)
@click.argument("source", type=click.Path(path_type=bytes))
@click.argument("dataset", required=False, default="", shell_complete=complete_dataset)
@click.option("-m", "--message", default="", help="Why: shown by 'vault log'.")
@click.option("--author", default="", help="Who; your login name if left out.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out, as in a .gitignore file. Can be repeated.")
@click.option("--skip-special", is_flag=True, help="Leave sockets, FIFOs, and objects with odd names out, not refuse.")
@click.option("--allow-unchanged", is_flag=True, help="Make a version even if nothing has changed.")
@click.option("--cluster", metavar="ADDRESS", default="", help="Let the workers of a Dask scheduler read and store.")
@click.option(
    "--upload-memory",
    metavar="SIZE",
    default="",
    help="How much may be on its way to a store behind a network, as 256MB.  [default: 512MiB]",
)
@click.option("--rebase", is_flag=True, help="Of an edit view: on top of what others have committed meanwhile.")
@session_options
def commit(
    session: Session,
    source: bytes,
    dataset: str,
    message: str,
    author: str,
    exclude: tuple[str, ...],
    skip_special: bool,
    allow_unchanged: bool,
    cluster: str,
    upload_memory: str,
    rebase: bool,
) -> None:
    """Freeze SOURCE as the next version of DATASET: a folder, a file, or a URL such as s3://bucket/folder.

    Without DATASET, SOURCE is a folder of 'vault edit': what was changed there becomes the next version of its dataset.

    Only what is new is stored; files whose size, times and inode are those of the last commit are not even read.
    Patterns in .vaultignore files are heeded. It can be interrupted at any time: what was stored is not stored again.
    With --quiet the new version's name is all that is printed.
    """
    if not dataset:
        _commit_view(session, source, message=message, author=author, rebase=rebase)
        return
    vault, out = session.open(), session.out
    with out.progress(partial(_count, source, exclude)) as progress:
        try:
            made = vault.commit(
                source,
                dataset,
                message=message,
                author=author,
                exclude=exclude,
                skip_special=skip_special,
                allow_unchanged=allow_unchanged,
                cluster=cluster,
                upload_memory=upload_memory,
                progress=progress,
            )
        except KeyboardInterrupt:
            out.note("no version was made; what was stored so far is not stored again by the next commit")
            raise
    if made.skipped_special:
        out.note(f"left out {count_text(made.skipped_special, 'special file')} (sockets, devices, FIFOs)")
    if not made.files:
        out.note(f"there is no file in it{' but what is excluded' if made.excluded else ''}")
    totals = f"{digest_text(made.snapshot)}  {count_text(made.files, 'file')}  {size_text(made.size_bytes)}"
    news = "nothing new, no version made" if made.unchanged else f"{size_text(made.stored_bytes)} stored"
    out.summary(
        {
            "dataset": made.dataset,
            "version": made.version,
            "ref": made.ref,
            "snapshot": made.snapshot.hex(),
            "files": made.files,
            "bytes": made.size_bytes,
            "new_bytes": made.new_bytes,
            "stored_bytes": made.stored_bytes,
            "files_read": made.files_read,
            "excluded": made.excluded,
            "skipped_special": made.skipped_special,
            "unchanged": made.unchanged,
            "elapsed_s": round(out.elapsed_s, 3),
        },
        f"{out.styled(made.ref, 'yellow')}  {totals}  ({news})",
    )
    if out.quiet:
        out.lines([made.ref])


def _commit_view(session: Session, source: bytes, **options: object) -> None:
    """Commit what was changed in a folder of `vault edit`."""
    from vault.ops.edit_view import find_view

    if find_view(os.fsdecode(source)) is None:
        raise click.UsageError(f"{os.fsdecode(source)} is no edit view: name the dataset that it goes into")
    commit_view = cast("Callable[..., None]", load_place(COMMIT_OF_A_VIEW))
    commit_view(session, source, **options)


def _count(source: bytes, exclude: tuple[str, ...]) -> tuple[int, int]:
    """Return how many files and bytes there are to commit, as far as a second walk beside the first can tell."""
    from vault.ops.source import SourceFile, Walk
    from vault.ops.sources import is_url

    if is_url(source):
        return 0, 0  # its listing, which comes first, counts
    files = size_bytes = 0
    try:
        for step in Walk(source, exclude=[os.fsencode(pattern) for pattern in exclude], skip_special=True):
            if isinstance(step, SourceFile):
                files += 1
                size_bytes += step.size
    except VaultError:
        return 0, 0  # the commit itself says what is wrong
    return files, size_bytes
