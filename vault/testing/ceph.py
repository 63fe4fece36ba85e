"""A real S3 service on this machine: one Ceph monitor, one OSD that keeps all data in memory, and the RADOS gateway.

    python -m vault.testing.ceph up DIR [--port 7480]     starts it in some 12 s, unless it runs, and prints what to export
    python -m vault.testing.ceph down DIR                 ends it, and removes DIR with all data

For tests and for trying things out: nothing survives its end. It listens on the loopback interface alone; any user of the
machine who knows the keys below may use it. Needs the Debian packages ceph-mon, ceph-osd, radosgw and ceph-common, and no
rights of root. Each process is noted in DIR/run with the moment of its start, so that never a foreign one is ended.

What tests do with it is in gateway.py. Threads: none.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

from vault.repo.liveness import start_ticks

ACCESS_KEY: Final = "vaultfs-test-key"
SECRET_KEY: Final = "vaultfs-test-secret"
PORT: Final = 7480
PROGRAMS: Final = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
INSTALL: Final = "apt-get install --no-install-recommends ceph-mon ceph-osd radosgw ceph-common"
START_TIMEOUT_S: Final = 100.0
_STARTS_MAX: Final = 3  # a port that was free may be taken by somebody else before Ceph does
_STEP_TIMEOUT_S: Final = 60.0
_END_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.05
_PROCESSES: Final = 3
_children: dict[str, list[subprocess.Popen[bytes]]] = {}  # of this process, by folder: whoever starts one takes its status

# One copy of everything, four placement groups a pool, no sockets for administration (their paths would be too long), and
# space of deleted objects given back within seconds: a test suite writes and deletes more than memory holds. Without
# tcp_nodelay each small GET waits 40 ms for a delayed acknowledgement, which no network of today would add.
_CONFIGURATION: Final = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
mon initial members = a
keyring = {folder}/keyring
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
run dir = {folder}/run
admin socket =
log file = {folder}/run/$name.log
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 8589934592
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw thread pool size = 128
rgw gc obj min wait = 5
rgw gc processor period = 5
rgw gc processor max time = 5
rgw enable usage log = false
"""


class CephFailed(Exception):
    """The gateway did not start."""


def missing_programs() -> list[str]:
    """Return which of the programs that this needs are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def start(folder: str, *, port: int = 0, bound_to_us: bool = False) -> str:
    """Start a gateway whose state lies in a folder, after ending what an earlier one left there. Returns its URL.

    Args:
        folder: its own; what is there is removed.
        port: where it listens; 0 takes a free one.
        bound_to_us: the kernel ends it when the thread that called this ends, however that happens.

    Raises:
        CephFailed: a program is missing, or one did not come up; says where its words are.
    """
    missing = missing_programs()
    if missing:
        raise CephFailed(f"{', '.join(missing)} cannot be found: {INSTALL}")
    for attempt in range(1, _STARTS_MAX + 1):
        stop(folder)
        if port and not _is_free(port):
            raise CephFailed(f"port {port} of this machine is in use: choose another one")
        try:
            return _start(os.path.abspath(folder), port or _free_ports(1)[0], bound_to_us)
        except CephFailed:
            _end_processes(folder)  # the words of what failed stay
            if attempt == _STARTS_MAX:
                raise
        except BaseException:
            stop(folder)
            raise
    raise AssertionError("the last attempt returns or raises")


def running(folder: str) -> str:
    """Return the URL of the gateway that runs with its state in a folder; an empty text if none does."""
    if len(list(_noted(folder))) < _PROCESSES:
        return ""
    with open(f"{folder}/ceph.conf", encoding="utf-8") as file:
        found = re.search(r"endpoint=(127\.0\.0\.1:\d+)", file.read())
    return f"http://{found[1]}" if found else ""


def stop(folder: str) -> None:
    """End the gateway of a folder and remove the folder. Nothing happens if there is none."""
    _end_processes(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _start(folder: str, port: int, bound_to_us: bool) -> str:
    for part in ("run", "mon", "osd"):
        os.makedirs(f"{folder}/{part}")
    mon_v2, mon_v1 = _free_ports(2)
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    with open(f"{folder}/ceph.conf", "w", encoding="utf-8") as file:
        file.write(_CONFIGURATION.format(folder=folder, fsid=fsid, mon_v2=mon_v2, mon_v1=mon_v1, port=port))
    daemons = _Daemons(folder, bound_to_us)
    _make_keys(daemons)
    monitor = f"[v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]"
    daemons.run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", monitor, f"{folder}/monmap")
    daemons.run_configured(
        "ceph-mon", "-i", "a", "--mkfs", "--monmap", f"{folder}/monmap", "--keyring", f"{folder}/keyring"
    )
    daemons.begin("ceph-mon", "-i", "a")
    daemons.run_configured("ceph", "osd", "new", osd)
    daemons.run_configured("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    daemons.begin("ceph-osd", "-i", "0")
    daemons.begin("radosgw", "-n", "client.rgw")
    url = f"http://127.0.0.1:{port}"
    daemons.wait_for_answer(url)
    user = ("--uid=vaultfs", "--display-name=vaultfs", f"--access-key={ACCESS_KEY}", f"--secret={SECRET_KEY}")
    # With this capability tests make more users over HTTP, in milliseconds.
    daemons.run_configured("radosgw-admin", "user", "create", *user, "--caps=users=*")
    return url


def _make_keys(daemons: "_Daemons") -> None:
    rights = {
        "mon.": ("mon", "allow *"),
        "client.admin": ("mon", "allow *", "osd", "allow *", "mgr", "allow *"),
        "client.rgw": ("mon", "allow rwx", "osd", "allow rwx"),
        "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
    }
    for number, (name, pairs) in enumerate(rights.items()):
        create = () if number else ("--create-keyring",)
        capabilities = [text for pair in zip(pairs[::2], pairs[1::2], strict=True) for text in ("--cap", *pair)]
        daemons.run("ceph-authtool", *create, f"{daemons.folder}/keyring", "--gen-key", "-n", name, *capabilities)


class _Daemons:
    """Runs Ceph's programs, and notes those that stay."""

    def __init__(self, folder: str, bound_to_us: bool) -> None:
        self.folder = folder
        self._until_s = time.monotonic() + START_TIMEOUT_S
        self._wrap = ("setpriv", "--pdeathsig", "KILL") if bound_to_us else ()
        self._begun: dict[str, subprocess.Popen[bytes]] = {}

    def run_configured(self, program: str, *arguments: str) -> None:
        """Run a program of this cluster to its end."""
        self.run(program, "-c", f"{self.folder}/ceph.conf", *arguments)

    def run(self, *command: str) -> None:
        """Run a program to its end."""
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_STEP_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise CephFailed(f"{command[0]} did not end within {_STEP_TIMEOUT_S:.0f} s; see {self.folder}/run") from error
        if done.returncode:
            raise CephFailed(f"{' '.join(command[:4])} ended with {done.returncode}: {done.stderr.strip()[-500:]}")

    def begin(self, program: str, *arguments: str) -> None:
        """Start a program that stays."""
        name = program.rpartition("-")[2]
        command = [*self._wrap, program, "-f", "-c", f"{self.folder}/ceph.conf", *arguments]
        with open(f"{self.folder}/run/{name}.out", "wb") as words:
            # A session of its own: Ctrl-C is for the tests, which end it in order.
            begun = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True)
        self._begun[name] = begun
        _children.setdefault(os.path.abspath(self.folder), []).append(begun)
        with open(f"{self.folder}/run/{name}.pid", "w", encoding="ascii") as file:
            file.write(f"{begun.pid} {start_ticks(begun.pid) or 0}\n")

    def wait_for_answer(self, url: str) -> None:
        """Return once the gateway answers."""
        while True:
            for name, begun in self._begun.items():
                if begun.poll() is not None:
                    raise CephFailed(f"{name} ended with {begun.returncode}; its words are in {self.folder}/run")
            with contextlib.suppress(OSError):
                try:
                    urllib.request.urlopen(url, timeout=5).close()
                except urllib.error.HTTPError as error:
                    error.close()  # it says no to a stranger: that is an answer
                return
            if time.monotonic() > self._until_s:
                raise CephFailed(f"the gateway did not answer within {START_TIMEOUT_S:.0f} s; see {self.folder}/run")
            time.sleep(_POLL_S)


def _end_processes(folder: str) -> None:
    """Kill what `begin` has noted, and wait until it is gone. There is no data worth an orderly end."""
    for pid in list(_noted(folder)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for child in _children.pop(os.path.abspath(folder), []):
        child.wait(_END_TIMEOUT_S)
    until_s = time.monotonic() + _END_TIMEOUT_S
    while list(_noted(folder)) and time.monotonic() < until_s:
        time.sleep(_POLL_S)


def _noted(folder: str) -> Iterator[int]:
    """Yield the processes of a folder that still run."""
    try:
        names = os.listdir(f"{folder}/run")
    except OSError:
        return
    for name in names:
        if name.endswith(".pid"):
            with open(f"{folder}/run/{name}", encoding="ascii") as file:
                pid, ticks = map(int, file.read().split())
            if ticks and start_ticks(pid) == ticks:
                yield pid


def _free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nobody uses now."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def variables(url: str) -> dict[str, str]:
    """Return the environment variables by which boto3 finds a gateway."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Start or end a gateway from the command line."""
    parser = argparse.ArgumentParser(prog="python -m vault.testing.ceph", description="A test S3 service on this machine.")
    parser.add_argument("verb", choices=["up", "down"])
    parser.add_argument("folder", metavar="DIR", help="for its state; removed by 'down'")
    parser.add_argument("--port", type=int, default=PORT, help=f"where it listens on 127.0.0.1 (default {PORT})")
    given = parser.parse_args(arguments)
    if given.verb == "down":
        stop(given.folder)
        return 0
    if os.path.isdir(given.folder) and os.listdir(given.folder) and not os.path.exists(f"{given.folder}/ceph.conf"):
        parser.error(f"{given.folder} holds something else: give a new or empty folder")
    try:
        url = running(given.folder) or start(given.folder, port=given.port)
    except CephFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for name, value in variables(url).items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    sys.stderr.write(f"end it with: python -m vault.testing.ceph down {shlex.quote(given.folder)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
