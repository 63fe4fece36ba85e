"""Runs one command and reports its time and its peak memory: `python -I -S launch.py RESULT ARGV...`.

A process of its own because Linux counts the memory of a process before exec into its ru_maxrss: started by the benchmark,
which holds long lists, every command would seem at least as large as the benchmark. It imports next to nothing.
"""

import os
import sys
import time


def main(result: str, argv: list[str]) -> int:
    """Run argv; write "seconds peak_bytes" to the file result; return the exit status."""
    started = time.monotonic()
    pid = os.posix_spawnp(argv[0], argv, os.environ)
    _, status, usage = os.wait4(pid, 0)
    elapsed_s = time.monotonic() - started
    with open(result, "w") as file:
        file.write(f"{elapsed_s} {usage.ru_maxrss * 1024}")
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]) & 0xFF)
