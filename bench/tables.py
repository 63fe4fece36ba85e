"""The tables that a benchmark fills: which figures there are, what they are compared with, and how to read them."""

from typing import Final

from bench.results import Column, Table

SMALL_COMMIT: Final = Table(
    "small_commit",
    "Committing small files",
    "cp -r",
    (
        Column("scratch", "from scratch", "s"),
        Column("changed", "3 % of the files changed", "s", compared=False),
        Column("nothing", "nothing new", "s", compared=False),
        Column("stored", "stored", "MB", compared=False),
        Column("added", "added by the change", "MB", compared=False),
        Column("peak", "peak memory", "MB", compared=False),
    ),
    "The source is in the page cache. `cp -r, synced` waits for the disk as a durable commit does. "
    "Changed: 1 % replaced, 1 % removed, 1 % added.",
)
LARGE_COMMIT: Final = Table(
    "large_commit",
    "Committing a checkpoint",
    "cp -r",
    (
        Column("scratch", "from scratch", "s"),
        Column("changed", "10 % of the tensors changed", "s", compared=False),
        Column("nothing", "nothing new", "s", compared=False),
        Column("stored", "stored", "MB", compared=False),
        Column("added", "added by the change", "MB", compared=False),
        Column("peak", "peak memory", "MB", compared=False),
    ),
    "One file laid out like safetensors, random tensors of 4 to 28 MiB.",
)
_STATES: Final = (("fresh", "fresh mount"), ("warm", "warm"), ("cold", "dropped caches"))
SMALL_READ: Final = Table(
    "small_read",
    "Reading small files in random order",
    "native",
    tuple(
        Column(f"{state}_{readers}", f"{words}, {readers} reader{'s' if readers > 1 else ''}", "files/s")
        for readers in (1, 4)
        for state, words in _STATES
    ),
    "Fresh mount: the first pass after mounting, with the store's files in the page cache. Warm: the second pass. "
    "Dropped caches: a pass right after the kernel's caches were dropped.",
)
LARGE_READ: Final = Table(
    "large_read",
    "Reading one large file",
    "native",
    (
        *(
            Column(f"{state}_{readers}", f"{words}, {readers} reader{'s' if readers > 1 else ''}", "MB/s")
            for readers in (1, 4)
            for state, words in _STATES
        ),
        Column("random_fresh", "4 KiB at random, fresh", "reads/s"),
        Column("random_warm", "4 KiB at random, warm", "reads/s"),
    ),
    "Sequential, 1 MiB a call; four readers take a quarter each. `vault` reads the file as its first version, stored "
    "whole; `vault, changed version` the same bytes where they were committed after others and are stored as a recipe.",
)
LISTING: Final = Table(
    "listing",
    "Listing a tree",
    "native",
    (
        Column("names_fresh", "`find`, fresh mount", "s"),
        Column("names_warm", "`find`, again", "s"),
        Column("attributes_fresh", "`find -size +1M`, fresh mount", "s"),
        Column("attributes_warm", "`find -size +1M`, again", "s"),
        Column("first_listing", "mount to first `ls`", "s", compared=False),
    ),
    "`find` needs names alone, `find -size` the attributes of each file too.",
)
FIRST_LISTING: Final = Table(
    "first_listing",
    "Mount to the first listing, start of the interpreter included",
    "native",
    (
        Column("small", "small files", "s", compared=False),
        Column("large", "checkpoint", "s", compared=False),
    ),
)
SCALE: Final = Table(
    "scale",
    "Large snapshots (Vault alone)",
    "",
    (
        Column("commit", "commit", "s", compared=False),
        Column("commit_peak", "peak memory of the commit", "MB", compared=False),
        Column("first_listing", "mount to first `ls`", "s", compared=False),
        Column("first_listing_empty_cache", "the same, empty cache", "s", compared=False),
        Column("find", "`find`", "s", compared=False),
        Column("worker_peak", "peak memory of a mount process after `find`", "MB", compared=False),
        Column("worker_private", "of which private", "MB", compared=False),
    ),
    "Entries are hard links of a few tiny files, 1,000 a folder. "
    "Empty cache: the cache directory is deleted before mounting, as on another machine.",
)
START: Final = Table("start", "Starting a command", "python -c pass", (Column("time", "time", "ms"),))
RECORDING: Final = Table(
    "recording",
    "What recording costs",
    "recording off",
    (Column("warm_1", "warm pass, 1 reader", "files/s"), Column("warm_4", "warm pass, 4 readers", "files/s")),
    "The same mount with its recorder and with one that does nothing, in turns.",
)
FIRST_OPEN: Final = Table(
    "first-open",
    "What capture costs a job",
    "capture off",
    (Column("first", "first open of a run", "ms"), Column("next", "the 999 opens after it, each", "us")),
    "Each open is of another file; each job is a process in a session of its own, started in a git worktree of 200 files.",
)
MEMORY: Final = Table(
    "memory",
    "Memory of a mount after the passes over the small files",
    "",
    (
        Column("peak", "largest process, peak", "MB", compared=False),
        Column("private", "all processes, private", "MB", compared=False),
    ),
)
ALL: Final = (
    SMALL_COMMIT,
    LARGE_COMMIT,
    FIRST_LISTING,
    SMALL_READ,
    LARGE_READ,
    LISTING,
    SCALE,
    MEMORY,
    RECORDING,
    FIRST_OPEN,
    START,
)
