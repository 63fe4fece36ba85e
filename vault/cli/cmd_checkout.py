"""`vault checkout`."""

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, session_options
from vault.cli.output import count_text, name_text, one_line, size_text


@click.command(
    epilog=examples("vault checkout imagenet@v2 ./imagenet-v2", "vault checkout imagenet@v2/labels.csv labels.csv")
)
@click.argument("ref", shell_complete=complete_ref)
@click.argument("target", metavar="DIR", type=click.Path(path_type=bytes))
@session_options
def checkout(session: Session, ref: str, target: bytes) -> None:
    """Copy REF into the new or empty folder DIR as ordinary files, every byte verified.

    Nothing appears under DIR until all of it is there. To read without a copy, use 'vault mount'.
    """
    vault, out = session.open(), session.out
    found = vault.find(ref)
    with out.progress() as progress:
        done = vault.checkout(found.ref, target, progress=progress)
    made = f"{count_text(done.files, 'file')}, {size_text(done.size_bytes)} in {one_line(name_text(target))}"
    out.summary(
        {
            "ref": found.ref,
            "snapshot": found.snapshot.hex(),
            "target": name_text(target),
            "files": done.files,
            "directories": done.directories,
            "symlinks": done.symlinks,
            "bytes": done.size_bytes,
            "elapsed_s": round(out.elapsed_s, 3),
        },
        f"{one_line(found.ref)}: {made}",
    )
