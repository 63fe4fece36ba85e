"""`vault bundle` and `vault bundle verify`."""

import sys
from typing import Final

import click

from vault.cli.commands import examples
from vault.cli.options import Session, completer, session_options
from vault.cli.output import Output, count_text, digest_text, one_line, size_text
from vault.errors import TargetUnwritable, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.ops.bundle import BundlePlan

_SECRETS_SHOWN: Final = 50


@click.command(
    epilog=examples(
        "vault bundle tree-8e4c7c1b -o run.vault",
        "vault bundle tree-8e4c7c1b -o run.vault --only-opened --key ~/vault.key --yes",
        "vault bundle verify run.vault --key publisher.pub",
        "vault mount --bundle run.vault /mnt; vault ls --store run.vault",
    )
)
@click.argument("run")
@click.option("-o", "--output", "path", metavar="FILE", required=True, help="Where; a name that ends in .vault.")
@click.option("--only-opened", is_flag=True, help="Of data that it read, take only the files that it opened.")
@click.option("--with-host", is_flag=True, help="Leave hosts, users and places in the record.")
@click.option("--outputs", type=click.Choice(["last", "all", "none"]), default="last", help="Which outputs go in.")
@click.option("--key", metavar="FILE", default="", help="Sign with this private key: 'vault key new' makes one.")
@click.option("--allow-secrets", is_flag=True, help="Go on although something looks like a secret.")
@click.option("-y", "--yes", is_flag=True, help="Write it without asking.")
@session_options
def bundle(
    session: Session,
    run: str,
    path: str,
    only_opened: bool,
    with_host: bool,
    outputs: str,
    key: str,
    allow_secrets: bool,
    yes: bool,
) -> None:
    """Put RUN into a file that anybody can check, mount and repeat.

    It holds the run's record, code, environment, data and outputs, and no other run and no other version. Hosts, users
    and places are replaced in the record. What goes in is listed first, with what looks like a secret.
    """
    import os

    from vault.ops.bundle import write_bundle
    from vault.signing.ed25519 import load_private_key

    out = session.out
    if not path.endswith(".vault"):
        raise UsageError(f"a bundle's name ends in .vault, so that commands know it: {path}.vault")
    if os.path.lexists(path):
        raise TargetUnwritable(path, "it exists already: remove it, or choose another name")
    private = load_private_key(key) if key else None
    vault = session.open()
    with out.progress() as progress:
        plan = vault.plan_bundle(run, only_opened=only_opened, with_host=with_host, outputs=outputs, progress=progress)
    _list(out, plan)
    if plan.secrets and not allow_secrets:
        raise UsageError(
            f"{count_text(len(plan.secrets), 'place')} may hold a secret, as listed: remove them from what the run uses, "
            "or give --allow-secrets if they are none"
        )
    if not yes:
        _ask(out)
    with out.progress() as progress:
        made = write_bundle(plan, path, key=private, progress=progress)
    record = {
        "path": made.path,
        "run": made.run,
        "bytes": made.size_bytes,
        "entries": made.entries,
        "files": plan.files,
        "contents": "opened" if only_opened else "all",
        "redacted": plan.is_redacted,
        "signer": made.signer,
        "elapsed_s": round(out.elapsed_s, 3),
    }
    signed = f"signed by {made.signer}" if made.signer else "not signed: --key signs it"
    out.summary(record, f"{one_line(path)}  {size_text(made.size_bytes)}  {count_text(plan.files, 'file')}  ({signed})")


@click.command(
    "bundle verify",
    epilog=examples("vault bundle verify run.vault", "vault bundle verify run.vault --key publisher.pub --json"),
)
@click.argument("path", metavar="FILE", shell_complete=completer("complete_folder"))
@click.option("--key", metavar="FILE", default="", help="It must be signed with this public key.")
@click.option("--ledger-key", metavar="FILE", default="", help="A ledger with this public key must prove its record.")
@session_options
def verify(session: Session, path: str, key: str, ledger_key: str) -> None:
    """Check every byte of the bundle FILE with nothing else at hand.

    Without --key it may be signed by anybody: compare the fingerprint with the publisher's.
    """
    from vault.ops.bundle_verify import verify_bundle
    from vault.signing.ed25519 import load_public_key

    out = session.out
    public = load_public_key(key) if key else None
    notary = load_public_key(ledger_key) if ledger_key else None
    with out.progress() as progress:
        checked = verify_bundle(path, key=public, ledger_key=notary, progress=progress)
    manifest = checked.manifest
    for pin in manifest.pins:
        record = {
            "role": pin.role,
            "name": pin.name,
            "snapshot": pin.snapshot,
            "files": pin.files,
            "bytes": pin.bytes,
            "files_held": pin.files_held,
            "bytes_held": pin.bytes_held,
        }
        out.answer("part", record, _pin_text(pin.role, pin.name, pin.snapshot, pin.files_held, pin.files, pin.bytes_held))
    if not checked.signer:
        out.note("nobody has signed it: it is whole, and whoever made it may have written anything into it")
    elif not checked.is_trusted:
        out.note(f"it is signed by {checked.signer}, a key that it names itself: compare that with its publisher's")
    out.summary(
        {
            "run": manifest.run,
            "contents": manifest.contents,
            "redacted": manifest.redacted,
            "entries": checked.entries,
            "bytes": checked.size_bytes,
            "files": checked.files,
            "absent": checked.absent,
            "signer": checked.signer,
            "trusted": checked.is_trusted,
            "ledger": checked.proven_by,
            "elapsed_s": round(out.elapsed_s, 3),
        },
        f"good: run {one_line(manifest.run)}, {count_text(checked.files, 'file')}, {size_text(checked.size_bytes)}"
        + (f"; {count_text(checked.absent, 'file')} left out on purpose" if checked.absent else "")
        + (f"; on record in {one_line(checked.proven_by)}" if checked.proven_by else ""),
    )


def _list(out: Output, plan: "BundlePlan") -> None:
    """Print what is going to be given away."""
    redacted = "hosts, users and places replaced" if plan.is_redacted else "hosts, users and places as they are"
    record = {"role": "record", "entries": plan.record_entries, "redacted": plan.is_redacted}
    out.answer("part", record, f"record       {count_text(plan.record_entries, 'entry')}, {redacted}")
    for pin in plan.pins:
        fields = {
            "role": pin.role,
            "name": pin.name,
            "snapshot": pin.snapshot,
            "files": pin.files,
            "bytes": pin.bytes,
            "files_held": pin.files_held,
            "bytes_held": pin.bytes_held,
        }
        out.answer("part", fields, _pin_text(pin.role, pin.name, pin.snapshot, pin.files_held, pin.files, pin.bytes_held))
    for note in plan.notes:
        out.answer("note", {"text": note}, None)
        out.note(f"note: {note}")
    for secret in plan.secrets[:_SECRETS_SHOWN]:
        place = f"{secret.where}:{secret.line}" if secret.line else secret.where
        text = one_line(f"may be a secret: {place}: {secret.what}")
        out.answer("secret", {"where": secret.where, "line": secret.line, "what": secret.what}, text)
    if len(plan.secrets) > _SECRETS_SHOWN:
        out.warn(f"and {len(plan.secrets) - _SECRETS_SHOWN} more places")


def _pin_text(role: str, name: str, snapshot: str, held: int, files: int, size_bytes: int) -> str:
    how_many = count_text(held, "file") if held == files else f"{held:,} of {count_text(files, 'file')}"
    words = f"{one_line(name)}  {digest_text(bytes.fromhex(snapshot))}  {how_many}, {size_text(size_bytes)}"
    return f"{role:<11}  {words}"


def _ask(out: Output) -> None:
    """Ask whether to write what was listed. Raises UsageError where nobody can answer."""
    if out.as_json or not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageError("this goes into the bundle, as listed: give --yes to write it")
    if not click.confirm("Write this into a bundle that others may read?", err=True):
        raise click.Abort
