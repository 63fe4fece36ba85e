"""`vault sync`."""

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, completer, session_options
from vault.cli.output import Output, count_text, digest_text, one_line, size_text
from vault.errors import NotARepository, StoreError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.ops.sync import Synced


@click.command(
    epilog=examples(
        "vault sync imagenet@v3 --to s3://public/vault",
        "vault sync imagenet@v3 --to s3://public/vault --as ilsvrc2012 --label stable",
        "vault sync --store s3://public/vault imagenet@v1 --to ~/vault-store",
        "vault sync imagenet@latest cifar10@v2 --to /media/disk/store --dry-run",
    )
)
@click.argument("refs", metavar="REF...", nargs=-1, required=True, shell_complete=complete_ref)
@click.option(
    "--to", "target", metavar="STORE", required=True, help="Where they go.", shell_complete=completer("complete_folder")
)
@click.option("--as", "name", metavar="DATASET", default="", help="Another name for it there; for one REF.")
@click.option("--label", "labels", multiple=True, metavar="LABEL", help="Put a label on it there. Can be repeated.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@session_options
def sync(session: Session, refs: tuple[str, ...], target: str, name: str, labels: tuple[str, ...], dry_run: bool) -> None:
    """Copy versions into another store, each as the next version of the dataset of the same name.

    They keep their snapshot IDs. Neither their history nor the runs that made or read them go along. Only what the target
    lacks is sent, and every byte is checked before it enters. It can be interrupted at any time, and goes on where it was.
    """
    from vault.api import open_vault

    out = session.out
    if name and len(refs) > 1:
        raise UsageError(f"--as names one dataset, and {len(refs)} refs are given: copy them one after the other")
    vault = session.open()
    try:
        there = open_vault(target, cache_dir=session.cache_dir)
    except NotARepository:
        out.note(f"make one with: vault init {one_line(target)}")
        raise
    done: list[Synced] = []
    for ref in refs:
        with out.progress() as progress:
            try:
                made = vault.sync(ref, there, name=name, labels=labels, dry_run=dry_run, progress=progress)
            except (StoreError, KeyboardInterrupt):
                out.note(f"{one_line(ref)} is not copied; what arrived is not sent again by the next sync")
                raise
        done.append(made)
        _answer(out, made, there.url, dry_run)
    sent = sum(made.sent_bytes for made in done)
    out.summary(
        {
            "to": there.url,
            "versions": len(done),
            "sent_bytes": sent,
            "stored_bytes": sum(made.stored_bytes for made in done),
            "dry_run": dry_run,
            "elapsed_s": round(out.elapsed_s, 3),
        },
        None
        if len(done) == 1
        else f"{count_text(len(done), 'version')}, {size_text(sent)}{' to be sent' if dry_run else ' sent'}",
    )


def _answer(out: Output, made: "Synced", url: str, dry_run: bool) -> None:
    record = {
        "ref": made.ref,
        "target_ref": made.target_ref,
        "snapshot": made.snapshot.hex(),
        "files": made.files,
        "bytes": made.size_bytes,
        "is_there": made.is_there,
        "sent_files": made.sent_files,
        "sent_bytes": made.sent_bytes,
        "stored_bytes": made.stored_bytes,
        "labels": list(made.labels),
    }
    if made.is_there:
        news = "there already"
    elif dry_run:
        news = f"{count_text(made.sent_files, 'file')}, {size_text(made.sent_bytes)} to be sent"
    else:
        news = f"{size_text(made.stored_bytes)} stored"
    totals = f"{digest_text(made.snapshot)}  {count_text(made.files, 'file')}  {size_text(made.size_bytes)}"
    name = out.styled(made.target_ref, "yellow")
    out.answer("version", record, name if out.quiet else f"{name}  {totals}  ({news})  in {one_line(url)}")
