"""Everything goes wrong at random for a while, and nothing that a reader gets is wrong, and nothing it opened is forgotten.

Before a real S3 service sits a proxy that fails at random, goes away and hangs. A mount with a small cache is killed whole
or in parts, and made again; its cache is damaged; versions are committed meanwhile. Readers compare every byte. In the end
the bucket is verified, and the record holds each open that was answered.

`make soak SECONDS=3600` runs it for long; the seed of what happens is printed, VAULTFS_SOAK_SEED sets it.
"""

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import pytest

from vault.repo.spool import list_spools
from vault.testing import proxy_faults as faults
from vault.testing.gateway import Gateway
from vault.testing.mounts import Mount, Site, is_mounted, mounted, wait_for, why_not_mountable
from vault.testing.proxy import Proxy
from vault.testing.trees import noise

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

SHORT_S: Final = 20.0
LONG_S: Final = float(os.environ.get("VAULTFS_SOAK_S", "600"))
READERS: Final = 3
DEADLINE_S: Final = 10
HANG_S: Final = 6 * DEADLINE_S + 30  # a try opens, lists and reads several times, and a mount may be made in between
CACHE_SIZE: Final = "12MB"
FAULT_SHARE: Final = 0.03  # of requests
FLIP_SHARE: Final = 0.1  # of answers with data, which are hashed by who reads them
DATA: Final = ("/packs/", "/whole/", "/maps/")
PAUSE_S_MAX: Final = 0.5
COMMIT_TIMEOUT_S: Final = 120
HERE: Final = os.path.dirname(os.path.abspath(__file__))


def content(size: int, seed: int) -> bytes:
    """Return what reader.py expects of a file."""
    return b"%08d%08d" % (size, seed) + noise(size - 16, seed)


class Source:
    """A folder that changes from commit to commit."""

    def __init__(self, path: str, chance: random.Random) -> None:
        self.path = path
        self._chance = chance
        for number in range(150):
            self._write(f"small/{number % 7}/{number:04}", chance.randrange(20, 60_000))
        for number in range(4):
            self._write(f"middle/{number}", chance.randrange(500_000, 3_000_000))
        for number in range(2):
            self._write(f"large/{number}", chance.randrange(5_000_000, 7_000_000))

    def change(self) -> None:
        """Make it another version."""
        for _ in range(self._chance.randrange(1, 12)):
            self._write(
                f"small/{self._chance.randrange(7)}/{self._chance.randrange(400):04}", self._chance.randrange(20, 60_000)
            )
        if self._chance.random() < 0.5:
            self._write(f"middle/{self._chance.randrange(6)}", self._chance.randrange(500_000, 3_000_000))
        if self._chance.random() < 0.2:
            self._write(f"large/{self._chance.randrange(3)}", self._chance.randrange(5_000_000, 7_000_000))

    def _write(self, name: str, size: int) -> None:
        place = os.path.join(self.path, name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)
        with open(place, "wb") as file:
            file.write(content(size, self._chance.randrange(100_000_000)))


@dataclass
class Watched:
    """A reader, and what it has said."""

    run: str
    process: "subprocess.Popen[str]"
    opened: set[tuple[str, str]] = field(default_factory=set)
    tries: int = 0
    errors: Counter[int] = field(default_factory=Counter)
    wrong: str = ""
    heard_s: float = field(default_factory=time.monotonic)
    listener: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.listener = threading.Thread(target=self.listen, daemon=True)

    def listen(self) -> None:
        """Take down what it says until it ends. In a thread of its own."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            self.tries += 1
            self.heard_s = time.monotonic()
            if said["opened"]:
                self.opened.add(tuple(said["opened"]))
            if "error" in said:
                self.errors[said["error"]] += 1
            self.wrong = said.get("wrong", "")

    def check(self) -> None:
        """Raise AssertionError if it saw what must not be, died or hangs."""
        assert not self.wrong, f"{self.run}: {self.wrong}"
        assert self.process.poll() is None, f"{self.run} ended with {self.process.returncode}"
        silent_s = time.monotonic() - self.heard_s
        assert silent_s < HANG_S, f"{self.run} has been waiting for {silent_s:.0f} s"


class Soak:
    """One soak."""

    def __init__(self, store: str, gateway: Gateway, proxy: Proxy, folder: str, seed: int) -> None:
        self._chance = random.Random(seed)
        self._proxy = proxy
        self.plain = Site(store, f"{folder}/elsewhere", variables=gateway.variables())
        self.plain.vault("init")
        through = gateway.variables(AWS_ENDPOINT_URL=proxy.url)
        self._node = Site(store, f"{folder}/node", variables=through)
        self._workstation = Site(store, f"{folder}/workstation", variables=through)
        self._mountpoint = f"{folder}/vault"
        self._source = Source(f"{folder}/source", self._chance)
        self.plain.commit(self._source.path, "data")
        self._commit: subprocess.Popen[str] | None = None
        self._stack = contextlib.ExitStack()
        self.mount = self._make_mount()
        self.done: Counter[str] = Counter()
        self.readers: list[Watched] = []

    def run(self, seconds: float) -> None:
        """Let things go wrong for so long."""
        self._proxy.decide = self._fault
        actions = self._actions()
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            name = self._chance.choices(list(actions), [weight for weight, _ in actions.values()])[0]
            actions[name][1]()
            self.done[name] += 1
            pause_until_s = time.monotonic() + self._chance.uniform(0.05, PAUSE_S_MAX)
            while time.monotonic() < pause_until_s:
                for reader in self.readers:
                    reader.check()
                time.sleep(0.02)

    def _actions(self) -> dict[str, tuple[int, Callable[[], None]]]:
        return {
            "killed a worker": (4, lambda: self._kill(self.mount.workers)),
            "killed a helper": (4, lambda: self._kill(self.mount.shippers)),
            "killed the mount": (1, self._kill_mount),
            "mounted anew": (1, self._remount),
            "service away": (2, self._away),
            "service silent": (2, self._silent),
            "damaged the cache": (2, self._damage_cache),
            "committed": (3, self._begin_commit),
        }

    def _fault(self, method: str, target: str) -> faults.Action | None:
        """Decide what a request meets. Called by the proxy's threads."""
        if method == "GET" and any(part in target for part in DATA) and random.random() < FLIP_SHARE:
            return faults.Rewrite(self._flip)
        if random.random() > FAULT_SHARE:
            return None
        return random.choice(
            (
                faults.Answer(500, faults.error_body("InternalError")),
                faults.Answer(503, faults.error_body("SlowDown")),
                faults.Cut(int(random.expovariate(1 / 100_000))),
                faults.Lose(),
                faults.Drop(),
                faults.Delay(random.uniform(0.05, 0.5)),
            )
        )

    def _flip(self, body: bytes) -> bytes:
        """Invert a bit of an answer."""
        if not body:
            return body
        self.done["flipped a bit"] += 1
        changed = bytearray(body)
        changed[random.randrange(len(body))] ^= 1 << random.randrange(8)
        return bytes(changed)

    # What goes wrong.

    def _kill(self, processes: Callable[[], list[int]]) -> None:
        found = processes()
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._chance.choice(found), signal.SIGKILL)

    def _kill_mount(self) -> None:
        for process in [self.mount.pid, *self.mount.processes()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.mount.wait_for_end()
        self.mount.remove()
        self.mount = self._make_mount()

    def _remount(self) -> None:
        self.mount.remove()
        self.mount = self._make_mount()

    def _make_mount(self) -> Mount:
        """Mount, however often that takes while the service fails."""
        self._stack.close()
        options = ("--cache-size", CACHE_SIZE, "--deadline", str(DEADLINE_S))

        def try_once() -> Mount | None:
            made = contextlib.ExitStack()
            try:
                mount = made.enter_context(mounted(self._node, self._mountpoint, engine="direct", options=options))
            except AssertionError as error:
                assert "ended with 4" in str(error) or "ended with 5" in str(error), error  # the store fails; or lied
                return None
            self._stack = made.pop_all()
            return mount

        return wait_for("a mount", try_once, timeout_s=HANG_S)  # type: ignore[return-value]

    def _away(self) -> None:
        with self._proxy.away():
            time.sleep(self._chance.uniform(0.1, 2))

    def _silent(self) -> None:
        with self._proxy.silent():
            time.sleep(self._chance.uniform(0.1, 3))

    def _damage_cache(self) -> None:
        # What says that a folder is a cache is left alone: without it the mount does without one, for good.
        places = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(self._node.cache)
            if "/blocks" in folder
            for name in names
            if name != "format"
        ]
        if not places:
            return
        for place in self._chance.choices(sorted(places), k=10):
            with contextlib.suppress(OSError), open(place, "r+b") as file:
                size = os.fstat(file.fileno()).st_size
                if size:
                    file.seek(self._chance.randrange(size))
                    file.write(self._chance.randbytes(min(100, size)))

    def _begin_commit(self) -> None:
        if self._commit is not None and self._commit.poll() is None:
            return
        if self._commit is not None:
            self._end_commit()
            self._source.change()
        command = self._workstation.command("commit", self._source.path, "data", "-m", "soak")
        self._commit = subprocess.Popen(
            command,
            env=self._workstation.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _end_commit(self) -> None:
        assert self._commit is not None
        _, words = self._commit.communicate(timeout=COMMIT_TIMEOUT_S)
        assert self._commit.returncode in (0, 4, 5), words  # done; the store fails; or lied
        self.done[f"commits that ended with {self._commit.returncode}"] += 1

    # Its end.

    def settle(self) -> None:
        """Let everything work again, and deliver what waits."""
        self._proxy.decide = None
        if self._commit is not None:
            self._end_commit()
            self._workstation.vault("commit", self._source.path, "data", "-m", "the last one")
        self.stop_readers()
        self._remount()
        wait_for("records of the mounts that were killed", lambda: len(self._spools()) <= 1, timeout_s=90)
        self.mount.unmount()
        assert not self._spools()

    def stop_readers(self) -> None:
        """End the readers in order."""
        for reader in self.readers:
            reader.check()
            assert reader.process.stdin is not None
            reader.process.stdin.close()
        for reader in self.readers:
            assert reader.process.wait(HANG_S) == 0
            assert not reader.wrong

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        for reader in self.readers:
            reader.process.kill()
            reader.process.wait()
            reader.listener.join()
            for stream in (reader.process.stdin, reader.process.stdout):
                assert stream is not None
                stream.close()
        if self._commit is not None:
            self._commit.kill()
            self._commit.communicate()
        self.mount.remove()
        self._stack.close()
        assert not is_mounted(self._mountpoint)

    def _spools(self) -> list[str]:
        roots = [f"{self._node.cache}/{name}/spool" for name in os.listdir(self._node.cache)]
        return [spool.folder for root in roots for spool in list_spools(root)]

    def start_readers(self, seed: int) -> None:
        """Let them begin."""
        for number in range(READERS):
            run = f"soak-{number}"
            process = subprocess.Popen(
                [sys.executable, f"{HERE}/reader.py", self._mountpoint, str(seed + number)],
                env={**os.environ, "VAULTFS_RUN": run},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            watched = Watched(run, process)
            self.readers.append(watched)
            watched.listener.start()


@contextlib.contextmanager
def soaked(gateway: Gateway, folder: str, seed: int) -> Iterator[Soak]:
    with gateway.bucket() as bucket, Proxy(gateway.url) as proxy:
        soak = Soak(f"s3://{bucket}/vault", gateway, proxy, folder, seed)
        try:
            yield soak
        finally:
            soak.close()


def soak_for(seconds: float, gateway: Gateway, folder: str) -> None:
    seed = int(os.environ.get("VAULTFS_SOAK_SEED") or secrets.randbelow(1 << 30))
    print(f"\nsoak of {seconds:.0f} s, VAULTFS_SOAK_SEED={seed}", flush=True)
    with soaked(gateway, folder, seed) as soak:
        soak.start_readers(seed)
        soak.run(seconds)
        soak.settle()
        tries, errors = sum(r.tries for r in soak.readers), sum((r.errors for r in soak.readers), Counter[int]())
        print(f"{tries:,} reads; errors {dict(errors)}; {dict(soak.done)}", flush=True)
        assert tries - errors.total() > seconds, "readers got something most of the time"
        elsewhere = replace(soak.plain, cache=f"{folder}/third")
        elsewhere.vault("verify", "--data", timeout_s=300)
        for reader in soak.readers:
            missing = reader.opened - elsewhere.opened(reader.run).keys()
            assert not missing, f"{reader.run}: not on record: {sorted(missing)[:5]}"


@pytest.fixture
def direct() -> None:
    if missing := why_not_mountable("direct"):
        pytest.skip(missing)


def test_nothing_wrong_is_read_and_nothing_read_is_forgotten(gateway: Gateway, direct: None, tmp_path) -> None:
    soak_for(SHORT_S, gateway, str(tmp_path))


@pytest.mark.soak
def test_the_same_for_long(gateway: Gateway, direct: None, tmp_path) -> None:
    soak_for(LONG_S, gateway, str(tmp_path))
