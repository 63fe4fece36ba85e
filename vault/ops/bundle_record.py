"""The record of one run as a bundle has it: its journals alone, without hosts, users and places unless asked for.

What is replaced is replaced by the same word everywhere, so that what the record says still fits together: a script is
still below its folder, and rank 1 still on another host (docs/format/bundle.md, section 5).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from vault.errors import FormatError
from vault.format.bundle import JournalHead
from vault.format.journal import Entry, UnknownEntry, encode_entry, entry_digest, entry_key
from vault.format.layout import RUNS
from vault.format.records import CaptureEntry, RecordEntry, ReportEntry, run_journal
from vault.ids import RunId
from vault.repo.run_model import Run
from vault.repo.runs import Runs
from vault.stores.base import Store

NOBODY: Final = 65534  # the number of every user
PLACES: Final = "/tmp/bundle"  # a folder that anybody can make, so that anybody can put code back in its place
_DIRECT: Final = frozenset(
    {"kind", "v", "n", "prev", "snapshot", "ref", "dataset", "delta", "order", "class", "level", "of", "head"}
)
_DROPPED: Final = frozenset({"details", "trackers", "disagreement", "boot", "remote"})
_DROPPED_FACTS: Final = frozenset({"container", "container.id", "hostname", "host"})
_SYSTEM: Final = ("/usr", "/opt", "/bin", "/lib", "/etc", "/nix", "/proc", "/dev")
_HOME: Final = re.compile(r"(/(?:home|Users)/)([^/\s:'\"]+)")
_OWNER: Final = re.compile(r"another user \([^)]*\)")  # in what a capture says of a tree that it could not ask about
_COMMON: Final = frozenset({"", "root", "nobody", "localhost", "unknown"})  # name no person and no machine


@dataclass(frozen=True, slots=True)
class RecordFile:
    """One entry, ready to be stored."""

    key: str
    data: bytes
    head: JournalHead  # of its journal, if it ended here


class Redactor:
    """Replaces what names a host, a user or a place."""

    def __init__(self, run: Run, datasets: Iterable[str]) -> None:
        """Learn the names of a run. What is part of a dataset's name stays: paths below a mount have it."""
        kept = {part for name in datasets for part in re.split(r"[^a-z0-9]+", name)}
        words: dict[str, str] = {}
        hosts = dict.fromkeys(a.start.host for a in run.history)
        for number, short in enumerate(dict.fromkeys(host.partition(".")[0] for host in hosts), 1):
            words |= {name: f"host-{number}" for name in (short, *hosts) if name.partition(".")[0] == short}
        users = dict.fromkeys(a.start.user for a in run.history)
        for number, user in enumerate(users, 1):
            words.setdefault(user, f"user-{number}")
        self.hosts = {host: words[host] for host in hosts}
        self.users = {user: words[user] if user not in _COMMON else user for user in users}
        self.names = tuple(sorted(word for word in words if word not in _COMMON))
        self._words = {word: words[word] for word in self.names if word not in kept and len(word) > 1}
        self._word_pattern = _any_of(self._words, r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])")
        self._paths = dict(_places(run))
        self._path_pattern = _any_of(self._paths, r"(?<![A-Za-z0-9._/-])", r"(?![A-Za-z0-9._-])")
        self._homes: dict[str, str] = {}

    def text(self, text: str) -> str:
        """Return a text without the names."""
        if self._path_pattern is not None:
            text = self._path_pattern.sub(lambda match: self._paths[match[0]], text)
        text = _OWNER.sub("another user", _HOME.sub(self._home, text))
        if self._word_pattern is not None:
            text = self._word_pattern.sub(lambda match: self._words[match[0]], text)
        return text

    def value(self, value: object) -> object:
        """Return what `msgspec.to_builtins` made of an entry, or a part of it, without the names."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {key: self._field(key, item) for key, item in value.items() if key not in _DROPPED}
        return value

    def _field(self, key: str, value: object) -> object:
        if key in _DIRECT:
            return value
        if key == "uid":
            return NOBODY
        if key == "host" and isinstance(value, str):
            return self.hosts.get(value, "host")
        if key == "user" and isinstance(value, str):
            return self.users.get(value, "user")
        if key == "platform" and isinstance(value, dict):
            value = {name: fact for name, fact in value.items() if name not in _DROPPED_FACTS}
        return self.value(value)

    def _home(self, match: re.Match[str]) -> str:
        name = match[2]
        if name.startswith("user-"):
            return match[0]
        number = self._homes.setdefault(name, self.users.get(name) or f"user-{len(self.users) + len(self._homes) + 1}")
        return match[1] + number


class Record:
    """The journals of a run as they go into a bundle: as they are, or with everything replaced if there is a redactor."""

    def __init__(self, store: Store, run: RunId, redactor: Redactor | None) -> None:
        """Find the journals. The first pass over `files` decides where each ends: what comes later stays out."""
        self._store = store
        self._run = run
        self._redactor = redactor
        self._writers = sorted({key.split("/")[2] for key in store.list(f"{RUNS}{run}/") if key.count("/") == 3})
        self._ends: dict[str, int] = {}

    def files(self) -> Iterator[RecordFile]:
        """Yield every entry, a journal after the other; each time the same.

        Raises:
            Damaged: a journal is; it cannot be published.
            FormatError: an entry cannot be told without its names.
        """
        for index, writer in enumerate(self._writers, 1):
            shown = writer if self._redactor is None else f"writer-{index}"
            number, last, prev = 0, 0, None
            for position, entry in Runs(self._store).follow(self._run, writer, check_end=True):
                if position.number > self._ends.get(writer, position.number):
                    break
                last = position.number
                if self._redactor is None:
                    data = self._store.get(entry_key(run_journal(self._run, writer), last))
                elif isinstance(entry, UnknownEntry):
                    continue  # what is not understood may hold anything
                else:
                    data = encode_entry(_redacted(entry, self._redactor, number + 1, prev, shown))
                prev = entry_digest(data)
                number += 1
                head = JournalHead(writer=shown, entries=number, origin_entries=last, origin_head=position.digest or "")
                yield RecordFile(entry_key(run_journal(self._run, shown), number), data, head)
            self._ends.setdefault(writer, last)


def strings_of(data: bytes) -> str:
    """Return the strings of an entry, a line each."""

    def strings(value: object) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for key, item in value.items():
                if key not in _DIRECT:
                    yield from strings(item)
        elif isinstance(value, list):
            for item in value:
                yield from strings(item)

    return "\n".join(strings(msgspec.json.decode(data)))


def _redacted(entry: Entry, redactor: Redactor, number: int, prev: str | None, writer: str) -> Entry:
    fields = redactor.value(msgspec.to_builtins(entry))
    assert isinstance(fields, dict)
    fields |= {"n": number, "prev": prev, "writer": writer}
    try:
        return msgspec.convert(fields, RecordEntry | CaptureEntry | ReportEntry)
    except msgspec.ValidationError as error:
        raise FormatError("record of the run", f"its names cannot be taken out: {error}; publish it --with-host") from error


def _places(run: Run) -> Iterator[tuple[str, str]]:
    """Yield (path, what stands for it) of folders that say where somebody works."""
    code: list[str] = []
    environments: list[str] = []
    rest: list[str] = []
    for attempt in run.history:
        capture = attempt.capture
        if capture is not None:
            code.extend(tree.root for tree in capture.code)
            if capture.environment is not None:
                environments.append(capture.environment.prefix)
        rest.append(attempt.start.cwd)
    outputs = [output.path for output in run.outputs]
    mounts = {attempt.start.mountpoint for attempt in run.history}
    known: set[str] = set()
    for name, paths in (("code", code), ("env", environments), ("out", outputs), ("work", rest)):
        number = 0
        for path in dict.fromkeys(path.rstrip("/") for path in paths):
            below_mount = any(mount and (path == mount or path.startswith(mount + "/")) for mount in mounts)
            if path.count("/") < 2 or path.startswith(_SYSTEM) or below_mount or path in known:
                continue
            known.add(path)
            if any(path.startswith(other + "/") for other in known):
                continue  # goes with what it lies in
            number += 1
            yield path, f"{PLACES}/{name}-{number}"


def _any_of(literals: Iterable[str], before: str, behind: str) -> re.Pattern[str] | None:
    longest_first = sorted(literals, key=len, reverse=True)
    if not longest_first:
        return None
    return re.compile(f"{before}(?:{'|'.join(map(re.escape, longest_first))}){behind}")
