"""`vault commit`."""

import threading

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_dataset, session_options
from vault.cli.output import count_text, digest_text, size_text
from vault.errors import VaultError
from vault.progress import Progress


@click.command(
    epilog=examples(
        'vault commit ./imagenet imagenet -m "as downloaded"',
        "vault commit ./imagenet imagenet --exclude '*.tmp' --exclude /cache/",
        "vault commit model.safetensors resnet50 --json",
    )
)
@click.argument("source", type=click.Path(path_type=bytes))
@click.argument("dataset", shell_complete=complete_dataset)
@click.option("-m", "--message", default="", help="Why: shown by 'vault log'.")
@click.option("--author", default="", help="Who; your login name if left out.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out, as in a .gitignore file. Can be repeated.")
@click.option("--skip-special", is_flag=True, help="Leave sockets, devices and FIFOs out instead of refusing.")
@click.option("--allow-unchanged", is_flag=True, help="Make a version even if nothing has changed.")
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
) -> None:
    """Freeze the folder or file SOURCE as the next version of DATASET.

    Only what is new is stored; files whose size, times and inode are those of the last commit are not even read.
    Patterns in .vaultignore files are heeded. It can be interrupted at any time: what was stored is not stored again.
    """
    vault, out = session.open(), session.out
    with out.progress() as progress:
        _count_ahead(progress, source, exclude)
        made = vault.commit(
            source,
            dataset,
            message=message,
            author=author,
            exclude=exclude,
            skip_special=skip_special,
            allow_unchanged=allow_unchanged,
            progress=progress,
        )
    if made.skipped_special:
        out.note(f"left out {count_text(made.skipped_special, 'special file')} (sockets, devices, FIFOs)")
    ref = f"{made.dataset}@v{made.version}"
    totals = f"{ref}  {digest_text(made.snapshot)}  {count_text(made.files, 'file')}  {size_text(made.size_bytes)}"
    news = "nothing new, no version made" if made.unchanged else f"{size_text(made.stored_bytes)} stored"
    out.summary(
        {
            "dataset": made.dataset,
            "version": made.version,
            "ref": ref,
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
        f"{totals}  ({news})",
    )


def _count_ahead(progress: Progress, source: bytes, exclude: tuple[str, ...]) -> None:
    """Count what there is to do, beside the work, so that the bar can tell the time left. Only where one is drawn."""
    from vault.cli.progress_bar import ProgressBar

    if isinstance(progress, ProgressBar):
        threading.Thread(target=_count, args=(progress, source, exclude), daemon=True).start()


def _count(bar: "object", source: bytes, exclude: tuple[str, ...]) -> None:
    from vault.cli.progress_bar import ProgressBar
    from vault.ops.source import SourceFile, Walk

    assert isinstance(bar, ProgressBar)
    files = size_bytes = 0
    try:
        for step in Walk(source, exclude=[pattern.encode() for pattern in exclude], skip_special=True):
            if isinstance(step, SourceFile):
                files += 1
                size_bytes += step.size
    except VaultError:
        return  # the commit itself says what is wrong
    bar.files_total, bar.size_bytes_total = files, size_bytes
