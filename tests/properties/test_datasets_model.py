"""Several handles on one store, used in any order, against a dict."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vault.errors import RefNotFound
from vault.format.journal import DATASET_KINDS
from vault.ids import Digest, Ref
from vault.repo.datasets import Datasets
from vault.repo.journals import Journal
from vault.stores.memory import MemoryStore

NAMES = ["a", "a/b", "a.b"]
LABELS = ["best", "step-1"]

names = st.sampled_from(NAMES)
handles = st.integers(0, 2)


class DatasetsModel(RuleBasedStateMachine):
    """What all handles see is what all of them did."""

    @initialize()
    def open(self) -> None:
        self.store = MemoryStore()
        self.handles = [Datasets(self.store) for _ in range(3)]
        self.versions: dict[str, list[Digest]] = {name: [] for name in NAMES}
        self.labels: dict[str, dict[str, int]] = {name: {} for name in NAMES}
        self.entries = dict.fromkeys(NAMES, 0)

    @rule(handle=handles, name=names, fill=st.integers(0, 3))
    def append(self, handle: int, name: str, fill: int) -> None:
        digest = Digest(bytes([fill]) * 32)
        version = self.handles[handle].append_version(name, digest, author="ada", files=fill, size_bytes=fill)
        self.versions[name].append(digest)
        self.entries[name] += 1
        assert (version.number, version.snapshot) == (len(self.versions[name]), digest)

    @rule(handle=handles, name=names, label=st.sampled_from(LABELS), number=st.none() | st.integers(1, 4))
    def label(self, handle: int, name: str, label: str, number: int | None) -> None:
        exists = label in self.labels[name] if number is None else number <= len(self.versions[name])
        try:
            self.handles[handle].set_label(name, label, number, author="ada")
        except RefNotFound:
            assert not exists
            return
        assert exists
        self.entries[name] += 1
        if number is None:
            del self.labels[name][label]
        else:
            self.labels[name][label] = number

    @rule(handle=handles)
    def reopen(self, handle: int) -> None:
        self.handles[handle] = Datasets(self.store)

    @rule(handle=handles, name=names)
    def look(self, handle: int, name: str) -> None:
        datasets = self.handles[handle]
        assert datasets.last_version(name) == len(self.versions[name])
        if not self.versions[name]:
            return
        datasets.refresh(name)
        assert not datasets.refresh(name)
        dataset = datasets.load(name)
        assert [version.snapshot for version in dataset.versions] == self.versions[name]
        assert dataset.labels == self.labels[name]
        for label, number in self.labels[name].items():
            assert datasets.resolve(Ref(name, label)).snapshot == self.versions[name][number - 1]
        oldest = self.versions[name].index(self.versions[name][-1]) + 1
        by_digest = datasets.resolve(Ref(name, f"b3:{self.versions[name][-1].hex()[:8]}")).version
        assert by_digest is not None
        assert by_digest.number == oldest

    @invariant()
    def journals_are_whole(self) -> None:
        assert self.handles[0].names() == sorted(name for name in NAMES if self.entries[name])
        for name in NAMES:
            journal = Journal(self.store, f"datasets/{name}", DATASET_KINDS)
            assert [number for number, _ in journal.entries()] == list(range(1, self.entries[name] + 1))


TestDatasetsModel = DatasetsModel.TestCase
TestDatasetsModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
