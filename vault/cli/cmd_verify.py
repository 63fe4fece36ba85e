"""`vault verify`."""

import click

from vault.cli.commands import examples
from vault.cli.exit_codes import FINDINGS, OK
from vault.cli.options import Session, session_options
from vault.cli.output import count_text, one_line, size_text


@click.command(epilog=examples("vault verify", "vault verify --data --json"))
@click.option("--data", is_flag=True, help="Read and hash every stored byte, too.")
@session_options
def verify(session: Session, data: bool) -> int:
    """Check the store and name what is damaged, down to dataset, version and path. Changes nothing.

    Without --data: journals, trees, indexes, maps, and that everything that a version needs is there.
    Exit status 1 if something is damaged.
    """
    out = session.out
    with out.progress() as progress:
        verification = session.open().verify(data=data, progress=progress)
        for problem in verification:
            record: dict[str, object] = {"kind": str(problem.kind), "where": problem.where, "reason": problem.reason}
            out.answer("problem", record, one_line(f"{problem.where}: {problem.reason}"))
    result = verification.result
    looked = (
        f"{count_text(result.versions, 'version')} of {count_text(result.datasets, 'dataset')}, "
        f"{count_text(result.files, 'file')}, {count_text(result.packs, 'pack')}, "
        f"{count_text(result.whole_files, 'whole file')}, {count_text(result.runs, 'run')}"
    )
    how = f"all {size_text(result.read_bytes)} read" if data else "contents not read: --data does"
    if result.absent:
        looked += f"; {count_text(result.absent, 'file')} left out of this bundle on purpose"
    verdict = count_text(result.problems, "problem") if result.problems else "no damage found"
    out.summary(
        {
            "problems": result.problems,
            "datasets": result.datasets,
            "versions": result.versions,
            "files": result.files,
            "packs": result.packs,
            "whole_files": result.whole_files,
            "maps": result.maps,
            "runs": result.runs,
            "absent": result.absent,
            "read_bytes": result.read_bytes,
            "with_data": data,
            "elapsed_s": round(out.elapsed_s, 3),
        },
        f"{verdict}: {looked} ({how})",
    )
    return FINDINGS if result.problems else OK
