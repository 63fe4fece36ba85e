"""The benchmark over S3: `python -m bench --suite s3`. Starts the service, runs scenarios, writes the page."""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Final

from bench import facts, memory, s3_cluster, s3_page, s3_scenarios
from bench.candidates import missing_tools
from bench.kept import KeptResults
from bench.results import Results
from bench.s3_candidates import PACKAGES, RcloneMount, S3fsMount, VaultMount
from bench.s3_scenarios import BYTES_PER_SMALL_FILE, NORMAL, QUICK, S3Bench
from bench.s3_service import Line, Service, service
from bench.workspace import BenchError, Workspace

SCENARIOS: Final[Mapping[str, Callable[[S3Bench], None]]] = {
    "large": s3_scenarios.large,
    "small": s3_scenarios.small,
    "tiny": s3_scenarios.tiny,
    "first": s3_scenarios.first,
    "cluster": s3_cluster.cluster,
}
_COPIES: Final = 5  # of the small files: the tree, a tar, a folder store, caches


def main(arguments: list[str]) -> int:
    """Run the benchmark; returns an exit status."""
    options = _parse(arguments)
    sizes = QUICK if options.quick else NORMAL
    command = "python -m bench --suite s3 --quick" if options.quick else "make bench-s3"
    failures: dict[str, str] = {}
    try:
        missing = missing_tools("radosgw", "ceph-mon", "ceph-osd", "ceph")
        if missing is not None:
            raise BenchError(f"{missing} is missing: apt-get install --no-install-recommends {' '.join(PACKAGES)}")
        workspace = Workspace(options.dir)
        workspace.require_free(_COPIES * max(sizes.small_files * BYTES_PER_SMALL_FILE, sizes.large_bytes))
        machine = facts.machine(workspace)
        kept = KeptResults(f"{workspace.path}/results-s3.json", command, machine)
        with service() as started:
            for name in options.scenario or SCENARIOS:
                bench = S3Bench(workspace, started, sizes, Results(), failures)
                memory.touch_free()
                SCENARIOS[name](bench)
                kept.keep(name, bench.results)
            versions = _versions(started)
        shown = kept.merged(SCENARIOS if options.write else options.scenario or SCENARIOS)
        words = {
            "small_files": sizes.small_files,
            "tiny_files": sizes.tiny_files,
            "peer_files": sizes.peer_files,
            "latency_ms": round(s3_cluster.LATENCY_S * 1000),
        }
        page = s3_page.render(shown, machine, versions, failures, words, command)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if options.write:
        with open(options.write, "w", encoding="utf-8") as file:
            file.write(page)
    print(page)
    return 0


def _versions(started: Service) -> Mapping[str, str]:
    line: Line = started.far
    mounts = [VaultMount(line, ""), RcloneMount(line, ""), S3fsMount(line, "")]
    known = facts.versions([each for each in mounts if each.missing() is None])  # type: ignore[misc] # names and versions
    return {**known, "Ceph RADOS gateway": facts.first_line(("radosgw", "--version"))}


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench --suite s3", description="Vault over S3 beside its peers.")
    parser.add_argument("--quick", action="store_true", help="small trees, one repetition: minutes")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="this scenario alone; can be repeated")
    parser.add_argument("--dir", default=".bench", help="where it works (default: .bench)")
    parser.add_argument("--write", metavar="FILE", help="write the page to FILE, too")
    return parser.parse_args(arguments)
