"""`vault log`."""

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, session_options
from vault.cli.output import count_text, digest_text, one_line, size_text, time_text
from vault.errors import UsageError
from vault.ids import parse_ref
from vault.repo.datasets import Dataset, Version


@click.command(epilog=examples("vault log imagenet", "vault log imagenet -n 5 --json", "vault log imagenet@v3"))
@click.argument("dataset", metavar="DATASET[@SELECTOR]", shell_complete=complete_ref)
@click.option("-n", "--number", metavar="N", type=click.IntRange(min=1), help="Show the newest N versions only.")
@session_options
def log(session: Session, dataset: str, number: int | None) -> None:
    """List the versions of DATASET, newest first, with who made them, when and why.

    With a selector: that version and what came before it.
    """
    vault, ref = session.open(), parse_ref(dataset)
    if ref.path:
        raise UsageError(f"versions are those of a whole dataset: vault log {ref.name}@{ref.selector}")
    newest = vault.version(dataset).number if "@" in dataset else None
    found = vault.dataset(ref.name)
    shown = [v for v in reversed(found.versions) if newest is None or v.number <= newest][:number]
    for version in shown:
        session.out.answer("version", version_record(found, version), _text(session, found, version))
    session.out.summary({"dataset": found.name, "versions": len(found.versions)})


def version_record(dataset: Dataset, version: Version) -> dict[str, object]:
    """Return what is known of a version, for JSON."""
    return {
        "dataset": dataset.name,
        "version": version.number,
        "ref": f"{dataset.name}@v{version.number}",
        "snapshot": version.snapshot.hex(),
        "parents": [parent.hex() for parent in version.parents],
        "author": version.author,
        "message": version.message,
        "time": version.time,
        "files": version.files,
        "bytes": version.size_bytes,
        "labels": labels_of(dataset, version),
        "run": version.run,
    }


def labels_of(dataset: Dataset, version: Version) -> list[str]:
    """Return the labels on a version, `latest` first if it is that."""
    latest = ["latest"] if version.number == dataset.newest else []
    return latest + sorted(label for label, number in dataset.labels.items() if number == version.number)


def _text(session: Session, dataset: Dataset, version: Version) -> str:
    labels = ", ".join(labels_of(dataset, version))
    head = session.out.styled(f"{dataset.name}@v{version.number}", "yellow") + (f" ({labels})" if labels else "")
    size = f"{count_text(version.files, 'file')}  {size_text(version.size_bytes)}"
    line = f"{head}  {digest_text(version.snapshot)}  {time_text(version.time)}  {one_line(version.author)}  {size}"
    made_by = [f"    made by run {version.run}"] if version.run else []
    return "\n".join([line, *made_by, *(f"    {one_line(part)}" for part in version.message.splitlines())])
