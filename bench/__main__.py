"""The command: chooses candidates and scenarios, runs them, writes the page."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace

from bench import commits, facts, listing, memory, overhead, reading, report, trees
from bench.candidates import Candidate, Copy, Mirror, Native
from bench.kept import KeptResults
from bench.peers import PEERS
from bench.results import Results
from bench.scenario import FULL, NORMAL, QUICK, Bench, Sizes
from bench.tables import ALL
from bench.trees import Tree
from bench.vaultfs import Vault
from bench.workspace import BenchError, Workspace

CANDIDATES: tuple[Candidate, ...] = (
    Native(),
    Copy(),
    Copy(name="cp -r, synced", synced=True),
    Vault(),
    Vault(name="vault, fusepy", engine="fusepy", shares_image_of="vault"),
    Mirror(),
    *PEERS,
)
SCENARIOS = ("small", "large", "entries", "scale", "recording", "starts")
_BYTES_PER_SMALL_FILE = 110_000
_COPIES = 9  # of each tree, by the candidates that keep them at the same time


def main() -> int:
    """Run the benchmark; returns an exit status."""
    if sys.argv[1:3] == ["--suite", "s3"]:
        from bench import s3  # which needs boto3

        return s3.main(sys.argv[3:])
    options = _parse()
    sizes = QUICK if options.quick else FULL if options.full else NORMAL
    candidates = _present([c for c in CANDIDATES if not options.only or c.name in options.only])
    flags = ["--quick"] * options.quick + ["--full"] * options.full
    command = " ".join(("python -m bench", *flags)) if flags else "make bench"
    try:
        workspace = Workspace(options.dir)
        workspace.require_free(_COPIES * max(sizes.small_files * _BYTES_PER_SMALL_FILE, sizes.large_bytes))
        machine = facts.machine(workspace)
        kept = KeptResults(f"{workspace.path}/results.json", " ".join(flags), machine)
        for name in options.scenario or SCENARIOS:
            bench = Bench(workspace, candidates, sizes, Results())
            memory.touch_free()
            _scenario(name)(bench, sizes)
            kept.keep(name, bench.results)
        shown = SCENARIOS if options.write else options.scenario or SCENARIOS
        page = report.render(kept.merged(shown), ALL, machine, facts.versions(candidates), command)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if options.write:
        with open(options.write, "w", encoding="utf-8") as file:
            file.write(page)
    print(page)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Vault beside its peers, in one run.", epilog="With --suite s3 first: over S3."
    )
    parser.add_argument("--quick", action="store_true", help="small trees, one repetition: minutes")
    parser.add_argument("--full", action="store_true", help="more repetitions, and 10,000,000 entries")
    parser.add_argument("--only", action="append", metavar="NAME", help="this candidate alone; can be repeated")
    parser.add_argument(
        "--scenario",
        action="append",
        choices=SCENARIOS,
        help="this scenario alone, the page keeps the rest; can be repeated",
    )
    parser.add_argument("--dir", default=".bench", help="where it works (default: .bench)")
    parser.add_argument("--write", metavar="FILE", help="write the page to FILE, too")
    return parser.parse_args()


def _present(candidates: list[Candidate]) -> list[Candidate]:
    """Return the candidates that this machine has what is needed for; say what the others lack."""
    present = []
    for candidate in candidates:
        missing = candidate.missing()
        if missing is None:
            present.append(candidate)
        else:
            print(f"bench: without {candidate.name}: {missing} is missing", file=sys.stderr)
    return present


def _scenario(name: str) -> Callable[[Bench, Sizes], None]:
    return {
        "small": _small,
        "large": _large,
        "entries": _entries,
        "scale": _scale,
        "recording": _recording,
        "starts": lambda bench, _: overhead.starts(bench),
    }[name]


def _small(bench: Bench, sizes: Sizes) -> None:
    folder = bench.workspace.folder("small-tree")
    tree = commits.commit_small(bench, trees.image_folders(folder, sizes.small_files))
    reading.read_small(bench, tree, 1 + 2 * sizes.repeat)
    bench.workspace.remove(folder)
    bench.workspace.remove(bench.workspace.folder("small"))


def _large(bench: Bench, sizes: Sizes) -> None:
    folder = bench.workspace.folder("large-tree")
    tree = commits.commit_large(bench, trees.checkpoint(folder, sizes.large_bytes))
    changed = _keep_changed(bench, tree)
    reading.read_large(replace(bench, candidates=(*bench.candidates, *changed)), tree, 1 + 2 * sizes.repeat)
    bench.workspace.remove(folder)
    bench.workspace.remove(bench.workspace.folder("large"))


def _keep_changed(bench: Bench, tree: Tree) -> list[Candidate]:
    """Commit a tree from scratch with Vault beside the store in which it is a changed version: reading them differs."""
    vault = _vault(bench)
    if vault is None:
        return []
    changed = Vault(name="vault, changed version", shares_image_of="vault changed")
    place = bench.place("large", vault)
    os.rename(place, bench.place("large", changed))
    place = bench.place("large", vault)
    for command in (*vault.prepare(place), vault.commit(place, tree.path, 1)):
        bench.run(command)
    return [changed]


def _entries(bench: Bench, sizes: Sizes) -> None:
    folder = bench.workspace.folder("entries-tree")
    listing.list_entries(bench, trees.many_entries(folder, sizes.entries), sizes.entries)
    bench.workspace.remove(folder)
    bench.workspace.remove(bench.workspace.folder("entries"))


def _scale(bench: Bench, sizes: Sizes) -> None:
    for count in sizes.scales:
        listing.scale_up(bench, count)


def _recording(bench: Bench, sizes: Sizes) -> None:
    """Commit a tree of its own: the one of `small` has gone with its scenario."""
    vault = _vault(bench)
    if vault is None:
        return
    folder = bench.workspace.folder("recording-tree")
    tree = trees.image_folders(folder, sizes.small_files)
    place = bench.place("small", vault)
    for command in (*vault.prepare(place), vault.commit(place, tree.path, 1)):
        bench.run(command)
    overhead.recording(bench, tree, 1)
    overhead.first_opens(bench, tree, 1)
    bench.workspace.remove(folder)
    bench.workspace.remove(bench.workspace.folder("small"))


def _vault(bench: Bench) -> Vault | None:
    return next((c for c in bench.candidates if isinstance(c, Vault) and c.commits), None)


if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.exit(main())
