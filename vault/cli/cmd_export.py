"""`vault export`."""

import contextlib
import os
from typing import Final

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_run, session_options
from vault.cli.output import count_text
from vault.errors import TargetUnwritable, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vault.api import Vault

_RUN_FORMATS: Final = ("openlineage", "prov", "in-toto")
_DATASET_FORMATS: Final = ("croissant",)


@click.command(
    epilog=examples(
        "vault export RUN --format openlineage",
        "vault export RUN --format prov -o run.prov.json",
        "vault export RUN --format in-toto -o run.intoto.json",
        "vault export imagenet@v2 --format croissant -o imagenet.croissant.json",
    )
)
@click.argument("target", shell_complete=complete_run)
@click.option(
    "--format", "form", required=True, type=click.Choice([*_RUN_FORMATS, *_DATASET_FORMATS]), help="Of which kind."
)
@click.option("-o", "--output", metavar="FILE", default="", help="Write it to this new file.")
@click.option("--license", "license_url", metavar="URL", default="", help="With croissant: the licence of the data.")
@click.option("--url", metavar="URL", default="", help="With croissant: where the dataset is published.")
@session_options
def export(session: Session, target: str, form: str, output: str, license_url: str, url: str) -> None:
    """Write what is on record of a run, or what a version is, in a format of others.

    TARGET is a run for openlineage (events, one a line), prov (PROV-JSON) and in-toto (a statement, not signed), and
    NAME@vN for croissant, which also writes a manifest of all files beside FILE. What is claimed of inputs is "opened".
    """
    if form not in _DATASET_FORMATS and (license_url or url):
        raise UsageError("--license and --url go with --format croissant")
    if form in _DATASET_FORMATS and not output:
        raise UsageError("--format croissant writes two files: name one with -o FILE, the other lies beside it")
    if output and os.path.lexists(output):
        raise TargetUnwritable(output, "there is something already")
    vault, out = session.open(), session.out
    if form in _DATASET_FORMATS:
        files, written = _croissant(vault, target, output, license_url, url)
        record: dict[str, object] = {"target": target, "format": form, "files": written, "document": None}
        out.summary(record, f"{' and '.join(written)}: {count_text(files, 'file')} described")
        return
    data = _run(vault, target, form)
    if output:
        _write(output, [data])
    elif not session.as_json:
        out.raw(data)
    document = None if output else data.decode()
    record = {"target": target, "format": form, "files": [output] if output else [], "document": document}
    out.summary(record, output or None)


def _run(vault: "Vault", target: str, form: str) -> bytes:
    from vault.integrations.exports.facts import collect

    facts = collect(vault, target)
    if form == "openlineage":
        from vault.integrations.exports import openlineage

        return openlineage.encode(facts)
    if form == "prov":
        from vault.integrations.exports import prov

        return prov.encode(facts)
    from vault.integrations.exports import intoto

    return intoto.encode(facts)


def _croissant(vault: "Vault", target: str, output: str, license_url: str, url: str) -> tuple[int, list[str]]:
    """Write the manifest, then the document that states its hash. Returns how many files there are, and the names."""
    from vault.integrations.exports.croissant import Manifest, encode

    found = vault.find(target)
    if found.path:
        raise UsageError(f"croissant describes a version as a whole: leave the path of {target} away")
    stem = output.removesuffix(".json").removesuffix(".jsonld")
    manifest_path = f"{stem}.manifest.jsonl"
    manifest = Manifest(os.path.basename(manifest_path))
    _write(manifest_path, manifest.lines(vault.ls(target, recursive=True)))
    try:
        name = found.ref.partition("@")[0]
        document = encode(name, found.version, manifest, license_url=license_url, url=url)
        _write(output, [document])
    except BaseException:
        _remove(manifest_path)
        raise
    return manifest.files, [output, manifest_path]


def _write(path: str, pieces: "Iterable[bytes]") -> None:
    """Write a new file, all of it or nothing."""
    try:
        file = open(path, "xb")  # noqa: SIM115 - what is below closes it, and removes it if that fails
    except OSError as error:
        raise TargetUnwritable(path, error.strerror or str(error)) from error
    try:
        with file:
            file.writelines(pieces)
    except OSError as error:
        _remove(path)
        raise TargetUnwritable(path, error.strerror or str(error)) from error
    except BaseException:
        _remove(path)
        raise


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
