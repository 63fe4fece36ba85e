"""One job: `python -I -S opener.py ROOT NAME...`. Prints how long the first open took, and all others, in nanoseconds."""

import os
import sys
import time

root, *names = sys.argv[1:]
times = [time.monotonic_ns()]
for name in names:
    os.close(os.open(f"{root}/{name}", os.O_RDONLY))
    times.append(time.monotonic_ns())
time.sleep(0.5)  # a training goes on after its first file
print(times[1] - times[0], times[-1] - times[1])
