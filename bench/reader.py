"""One reader: `python -I -S reader.py JOB`. Opens and reads through system calls alone, into one buffer that it keeps.

JOB is a JSON file: {"kind": "files" | "sequential" | "random", "root", "names", "start", "end", "seconds", "seed"}. It says
"ready" when it could start, starts at the first byte on standard input, and ends with a JSON line of what it read and when
(on the clock that all readers share). It checks nothing: the parent compares the number of bytes.
"""

import json
import os
import random
import sys
import time

BUFFER_BYTES = 1 << 20
BLOCK_BYTES = 4096


def read_files(job: dict, buffer: bytearray) -> tuple[int, int]:
    """Open and read each file to its end; returns (files, bytes)."""
    root, total = job["root"], 0
    buffers = [buffer]
    for name in job["names"]:
        descriptor = os.open(f"{root}/{name}", os.O_RDONLY)
        while count := os.readv(descriptor, buffers):
            total += count
        os.close(descriptor)
    return len(job["names"]), total


def read_range(job: dict, buffer: bytearray) -> tuple[int, int]:
    """Read one part of one file in order; returns (reads, bytes)."""
    descriptor = os.open(f"{job['root']}/{job['names'][0]}", os.O_RDONLY)
    position, end, reads = job["start"], job["end"], 0
    view = memoryview(buffer)
    while position < end:
        count = os.preadv(descriptor, [view[: end - position]], position)
        if count == 0:
            break
        position += count
        reads += 1
    os.close(descriptor)
    return reads, position - job["start"]


def read_blocks(job: dict, buffer: bytearray) -> tuple[int, int]:
    """Read blocks at random places of one file until the time is over; returns (reads, bytes)."""
    descriptor = os.open(f"{job['root']}/{job['names'][0]}", os.O_RDONLY)
    blocks, chance, total, reads = job["end"] // BLOCK_BYTES, random.Random(job["seed"]), 0, 0
    buffers = [memoryview(buffer)[:BLOCK_BYTES]]
    deadline = time.monotonic() + job["seconds"]
    while time.monotonic() < deadline:
        total += os.preadv(descriptor, buffers, chance.randrange(blocks) * BLOCK_BYTES)
        reads += 1
    os.close(descriptor)
    return reads, total


def main(path: str) -> None:
    """Wait for the start, read, report."""
    with open(path) as file:
        job = json.load(file)
    work = {"files": read_files, "sequential": read_range, "random": read_blocks}[job["kind"]]
    buffer = bytearray(BUFFER_BYTES)
    print("ready", flush=True)
    sys.stdin.buffer.raw.read(1)
    started = time.monotonic()
    count, total = work(job, buffer)
    print(json.dumps({"started": started, "ended": time.monotonic(), "count": count, "bytes": total}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
