"""Nodes: machines as far as a kernel can pretend them, each with its own network, mounts, processes, name and boot.

    with Node("alpha", to="http://127.0.0.1:7480") as node:
        site = node.site(store, f"{folder}/alpha", AWS_ENDPOINT_URL=node.url)
        with node.mounted(site, "/mnt") as mount:
            node.run("cat", "/mnt/images@v1/a", variables={"VAULTFS_RUN": "r"})
            with node.link_down(): ...

A node reaches one service, through a line of its own: a pair of virtual interfaces and a proxy (`node.proxy`) at our end of
it. Files are those of the machine, mounts are the node's alone. It ends with all of its processes. Needs root and the ip
command. Threads: none, but for the proxy's.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from vault.testing.mounts import COMMAND_TIMEOUT_S, Site, run, wait_for
from vault.testing.proxy import Proxy

NODES_MAX: Final = 64  # of one process: that many small networks are set apart for it
_END_TIMEOUT_S: Final = 30.0
_numbers = itertools.count()


def why_no_nodes() -> str:
    """Return why there can be none on this machine, for a test to be skipped with; "" if there can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    missing = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"{missing[0]} is not installed (Debian: iproute2, util-linux)"
    return ""


class Node:
    """One node. Use as a context manager."""

    def __init__(self, name: str, *, to: str) -> None:
        """Start it.

        Args:
            name: its host name.
            to: URL of the service that it shall reach.
        """
        number = next(_numbers)
        assert number < NODES_MAX, "too many nodes"
        self.name = name
        self._interface = f"vn{os.getpid()}-{number}"[:15]
        # 198.18.0.0/15 is set apart for tests of networks (RFC 2544).
        ours, theirs = (f"198.18.{os.getpid() % 251}.{4 * number + end}" for end in (1, 2))
        with contextlib.ExitStack() as stack:
            self._holder = subprocess.Popen(
                [
                    "unshare",
                    "--net",
                    "--mount",
                    "--uts",
                    "--pid",
                    "--fork",
                    "--mount-proc",
                    "--kill-child",
                    "sleep",
                    "infinity",
                ],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.callback(self._end)
            self.pid = wait_for("the node's first process", self._first_process)
            run("ip", "link", "add", self._interface, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
            stack.callback(lambda: subprocess.run(["ip", "link", "del", self._interface], check=False, capture_output=True))
            run("ip", "address", "add", f"{ours}/30", "dev", self._interface)
            run("ip", "link", "set", self._interface, "up")
            self.run("hostname", name)
            self.run("ip", "address", "add", f"{theirs}/30", "dev", "eth0")
            self.run("ip", "link", "set", "eth0", "up")
            self.run("ip", "link", "set", "lo", "up")
            # A copy of somebody else's mount would keep that alive after it is unmounted where it belongs.
            self.run("sh", "-c", "awk '$3 == \"fuse.vault\" { print $2 }' /proc/self/mounts | xargs -r -n 1 umount --lazy")
            boot_id = f"/dev/shm/{self._interface}.boot_id"
            script = 'echo "$1" > "$2"; mount --bind "$2" /proc/sys/kernel/random/boot_id; rm "$2"'
            self.run("sh", "-ec", script, "sh", str(uuid.uuid4()), boot_id)
            self.proxy = stack.enter_context(Proxy(to, host=ours))
            self.url = self.proxy.url
            self._kept = stack.pop_all()

    @property
    def wrap(self) -> tuple[str, ...]:
        """Return what a command is run by, to run on the node."""
        return ("nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--pid", "--")

    def site(self, store: str, cache: str, **variables: str) -> Site:
        """Return a store as this node uses it, with a cache of its own; its commands run on the node."""
        return Site(store, cache, self.wrap, variables)

    def run(
        self, *command: str, variables: Mapping[str, str] | None = None, timeout_s: float = COMMAND_TIMEOUT_S
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a program on the node. Raises AssertionError if it failed or hung."""
        return run(*self.wrap, *command, variables=variables, timeout_s=timeout_s)

    def start(self, *command: str, variables: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Start a program on the node; its input and output are pipes."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VAULTFS_")}
        return subprocess.Popen(
            [*self.wrap, *command],
            env={**environment, **(variables or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @contextlib.contextmanager
    def mounted(self, site: Site, path: str, options: Sequence[str] = ()) -> Iterator["subprocess.Popen[str]"]:
        """Mount a store on a folder of the node, which is made if need be. Gives the command, in the foreground."""
        os.makedirs(path, exist_ok=True)
        command = site.command("mount", "--foreground", "--json", *options, path)
        with open(f"{site.cache}.{self.name}.log", "ab") as log:
            process = subprocess.Popen(
                command, env=site.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            with open(log.name, encoding="utf-8", errors="replace") as said:
                assert line and json.loads(line)["type"] == "summary", f"{self.name} mounts nothing: {line}{said.read()}"
            yield process
            if process.poll() is None:
                site.vault("umount", path)
                process.wait(_END_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    @contextlib.contextmanager
    def link_down(self) -> Iterator[None]:
        """Cut the node's line while the block runs: what is sent is lost, and nobody is told."""
        run("ip", "link", "set", self._interface, "down")
        try:
            yield
        finally:
            run("ip", "link", "set", self._interface, "up")

    def close(self) -> None:
        """End the node with all of its processes."""
        self._kept.close()

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _first_process(self) -> int:
        assert self._holder.poll() is None, f"a node cannot be made: unshare ended with {self._holder.returncode}"
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children", encoding="ascii") as file:
                child = int(file.read().split()[0])
            with open(f"/proc/{child}/comm", encoding="ascii") as file:
                return child if file.read().strip() == "sleep" else 0
        return 0

    def _end(self) -> None:
        self._holder.send_signal(signal.SIGKILL)  # takes its child along, and with that every process of the node
        self._holder.wait(_END_TIMEOUT_S)
