"""`vault cache status`, `pin`, `unpin`, `prune` and `check`: what this machine keeps of a remote store."""

import click

from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, node_cache_options, session_options
from vault.cli.output import count_text, size_text
from vault.errors import UsageError
from vault.ids import parse_ref
from vault.settings import size_in_bytes


@click.command("cache status", epilog=examples("vault cache status", "vault cache status --json"))
@node_cache_options
@session_options
def status(session: Session, cache: str, cache_size: str) -> None:
    """Show what this machine keeps of a remote store: where, how much, what is pinned, what is being fetched."""
    from vault.ops.node_cache import status as look
    from vault.ops.warm import under_way

    session.take_cache_options(cache, cache_size)
    repository, out = session.open().repository, session.out
    found = look(repository)
    out.lines([f"{found.folder}: {size_text(found.used_bytes)} of {size_text(found.limit_bytes)}"])
    for kind in found.kinds:
        record = {"name": kind.name, "files": kind.files, "on_disk_bytes": kind.on_disk_bytes}
        out.answer("kind", record, f"  {kind.name}: {count_text(kind.files, 'file')}, {size_text(kind.on_disk_bytes)}")
    for pin in found.pins:
        record = {"snapshot": pin.name, "about": pin.about, "stored_files": len(pin.keys)}
        out.answer("pin", record, f"  pinned: {pin.about} ({count_text(len(pin.keys), 'stored file')})")
    for one in under_way(repository):
        record = {"ref": one.ref, "process": one.process, "done_bytes": one.done_bytes, "total_bytes": one.total_bytes}
        share = 100 * one.done_bytes // max(one.total_bytes, 1)
        text = f"{size_text(one.done_bytes)} of {size_text(one.total_bytes)} ({share} %)"
        out.answer("warming", record, f"  being fetched: {one.ref}, {text}, by process {one.process}")
    out.summary(
        {
            "folder": found.folder,
            "limit_bytes": found.limit_bytes,
            "used_bytes": found.used_bytes,
            "pinned_bytes": found.pinned_bytes,
            "disk_free_bytes": found.disk_free_bytes,
            "requests": found.requests,
            "fetched_bytes": found.fetched_bytes,
            "evicted_bytes": found.evicted_bytes,
        },
        f"since it was made: {size_text(found.fetched_bytes)} fetched in {count_text(found.requests, 'request')}, "
        f"{size_text(found.evicted_bytes)} evicted",
    )


@click.command("cache pin", epilog=examples("vault warm imagenet@v3 --wait", "vault cache pin imagenet@v3"))
@click.argument("ref", shell_complete=complete_ref)
@node_cache_options
@session_options
def pin(session: Session, ref: str, cache: str, cache_size: str) -> None:
    """Keep what is here of the version REF, and what will come, from being evicted.

    It fetches nothing: 'vault warm' does.
    """
    from vault.ops.node_cache import find_need
    from vault.ops.node_cache import pin as keep

    session.take_cache_options(cache, cache_size)
    vault, out, parsed = session.open(), session.out, parse_ref(ref)
    if parsed.path:
        raise UsageError(f"a pin is for a whole version: {parsed.name}@{parsed.selector}")
    version = vault.version(ref)
    named = f"{parsed.name}@v{version.number}"
    with out.progress() as progress:
        need = find_need(vault.repository, version.snapshot, progress=progress)
    kept = keep(vault.repository, version.snapshot, named, need)
    out.summary(
        {"ref": named, "snapshot": version.snapshot.hex(), "stored_files": len(kept.keys)},
        f"{named} stays: {count_text(len(kept.keys), 'stored file')}",
    )


@click.command("cache unpin", epilog=examples("vault cache unpin imagenet@v3"))
@click.argument("ref", shell_complete=complete_ref)
@node_cache_options
@session_options
def unpin(session: Session, ref: str, cache: str, cache_size: str) -> None:
    """Let the version REF be evicted again, when it was not used for longest."""
    from vault.ops.node_cache import unpin as let_go

    session.take_cache_options(cache, cache_size)
    vault, parsed = session.open(), parse_ref(ref)
    version = vault.version(ref)
    named = f"{parsed.name}@v{version.number}"
    was_pinned = let_go(vault.repository, version.snapshot)
    session.out.summary(
        {"ref": named, "snapshot": version.snapshot.hex(), "was_pinned": was_pinned},
        f"{named} may be evicted" if was_pinned else f"{named} was not pinned",
    )


@click.command("cache prune", epilog=examples("vault cache prune --to 100GB", "vault cache prune --all"))
@click.option("--to", "target", metavar="SIZE", default="", help="Until at most so much is used: 100GB, 5% of the disk.")
@click.option("--all", "everything", is_flag=True, help="All of it, pins too.")
@node_cache_options
@session_options
def prune(session: Session, target: str, everything: bool, cache: str, cache_size: str) -> None:
    """Evict what was not used for longest. Nothing is lost: the store has it.

    What programs have open through a mount at this moment stays.
    """
    from vault.ops.node_cache import cache_of
    from vault.ops.node_cache import prune as evict

    if everything == bool(target):
        raise UsageError("say how much may stay: --to SIZE, or --all for nothing")
    session.take_cache_options(cache, cache_size)
    repository = session.open().repository
    target_bytes = 0 if everything else size_in_bytes(target, cache_of(repository).folder.root)
    used, freed = evict(repository, target_bytes, with_pinned=everything)
    session.out.summary({"used_bytes": used, "freed_bytes": freed}, f"{size_text(freed)} freed, {size_text(used)} are used")
    if used > target_bytes:
        session.out.note("what is pinned, or open through a mount, stays: see 'vault cache status' and 'vault cache unpin'")


@click.command("cache check", epilog=examples("vault cache check"))
@node_cache_options
@session_options
def check(session: Session, cache: str, cache_size: str) -> None:
    """Compare all that is here with its checksums, and forget what is damaged.

    It is fetched again when it is needed.
    """
    from vault.ops.node_cache import check as look

    session.take_cache_options(cache, cache_size)
    repository, out = session.open().repository, session.out
    with out.progress() as progress:
        found = look(repository, progress=progress)
    for key in found.damaged:
        out.answer("damaged", {"key": key}, f"{key} was damaged in part, and is forgotten there")
    text = f"{count_text(found.files, 'file')} checked, {len(found.damaged)} damaged"
    out.summary({"files": found.files, "damaged": len(found.damaged)}, text)
