"""Patterns mean what they mean to git."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vault.errors import UsageError
from vault.ops.exclude import is_excluded, parse_rules
from vault.ops.source import BeginDirectory, EndDirectory, SourceFile, Walk
from vault.testing.trees import Tree, write_tree

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is what patterns are compared with")

TREE: Tree = {
    b"a": b"",
    b"b": {b"a": b"", b"b": {b"a": b"", b"c.o": b""}, b"c.o": b""},
    b"c.o": b"",
    b"a.txt": b"",
    b"a b": b"",
    b"a ": b"",
    b" a": b"",
    b"#x": b"",
    b"!x": b"",
    b"[a]": b"",
    b"a[": b"",
    b"]": b"",
    b"-": b"",
    b"^": b"",
    b"x\\": b"",
    b"x\\y": b"",
    b"*": b"",
    b"a*": b"",
    b".hidden": b"",
    b"Z": b"",
    b"\xff": b"",
    b"\xc3\xa4": b"",
    b"a\rb": b"",
    b"foo": {b"bar": {b"baz": b"", b"a": b""}, b"baz": b"", b"foo": b""},
    b"bar": {b"foo": {b"bar": b"", b"baz": b""}, b"a": {b"b": b""}},
    b"9": {b"9": b""},
}

PATTERNS: list[bytes] = [
    b"a", b"/a", b"a/", b"*.o", b"/*.o", b"b/*.o", b"**/a", b"**/b/a", b"b/**", b"foo/**/baz", b"foo/**", b"**/foo",
    b"**/foo/**", b"foo/**/", b"**", b"**/", b"*", b"*/", b"/*", b"/", b"//", b"a//", b"//a", b"foo//bar", b"**foo",
    b"foo**", b"f**o", b"foo/b**r/baz", b"?", b"??", b"[ab]", b"[!ab]", b"[^ab]", b"[a-c]", b"[a-c].o", b"[]]", b"[!]]",
    b"[]-a]", b"[a-]", b"[-a]", b"[[]a]", b"[[]", b"a[", b"[", b"[a", b"[a]", b"\\[a]", b"[\\]]", b"[\\\\]", b"x[\\\\]",
    b"[!-]", b"[z-a]", b"[[:alpha:]]", b"[[:digit:]]", b"[[:upper:]]", b"[^[:alpha:]]", b"[[:space:]]a",
    b"a[[:blank:]]", b"[[:punct:]]", b"[[:xdigit:][:upper:]]", b"[[:alnum:]_]", b"[[:nonsense:]]", b"[[:alpha:]",
    b"[:alpha:]", b"[[:cntrl:]]", b"a[[:cntrl:]]b", b"a\\ ", b"a ", b"a\\\\ ", b" a", b"a\\ b", b"a b", b"a\t", b"\\#x",
    b"#x", b"\\!x", b"!x", b"!", b"!!x", b"\\a", b"\\*", b"a\\*", b"x\\\\", b"x\\", b"x\\\\y", b"x\\y", b"\\", b"\\\\",
    b"*a", b"a*", b"*a*", b"*[*", b".*", b".", b"..", b"./a", b"b/../a", b"b/./a", b"b/a", b"b/b", b"b/b/", b"/b/b/a",
    b"b/*", b"b/*/a", b"b/?/a", b"b[/]a", b"b?a", b"*b*", b"foo*bar", b"foo/*", b"foo/*/baz", b"*/baz", b"*/*/baz",
    b"**/baz", b"***", b"***/baz", b"foo/***", b"**/**/baz", b"foo/**/**/baz", b"/**/baz", b"/**", b"bar/**/bar",
    b"\xff", b"\xc3\xa4", b"?" * 2, b"[\xff]", b"[\xc3]\xa4", b"[\xa0-\xff]", b"z", b"[[:lower:]]", b"a\rb", b"a\r",
    b"", b" ", b"\t", b"!a\n*", b"a\n!a", b"*\n!a", b"*\n!*/\n!baz", b"/*\n!/foo\n/foo/*\n!/foo/bar", b"foo/\n!foo/bar",
    b"*.o\n!c.o", b"b\n!b/a", b"[a-c-e]", b"[\\a-\\c]", b"[a\\-c]", b"[!\\]]", b"[[.a.]]", b"[[=a=]]", b"[a]]", b"[\\",
    b"a[\\", b"[!", b"[^", b"[]", b"[!]", b"**/*", b"**/*.o", b"b/**/*.o", b"b/**.o", b"foo/**baz", b"**a**",
]  # fmt: skip


def kept_by_walk(root: Path) -> set[bytes]:
    """Return the paths of the files that a walk yields."""
    found = set()
    names: list[bytes] = []
    for step in Walk(os.fsencode(root)):
        if isinstance(step, BeginDirectory):
            names.append(step.name + b"/" if names else b"")
        elif isinstance(step, EndDirectory):
            names.pop()
        elif isinstance(step, SourceFile):
            found.add(b"".join(names) + step.name)
    return {name for name in found if name.rpartition(b"/")[2] not in (b".vaultignore", b".gitignore")}


def kept_by_git(repository: Path, root: Path) -> set[bytes]:
    """Return the paths of the files that git would add."""
    prefix = os.fsencode(root.relative_to(repository)) + b"/"
    answer = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-per-directory=.gitignore", "-z", "--", os.fsdecode(prefix)],
        cwd=repository, check=True, capture_output=True, env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"},
    ).stdout  # fmt: skip
    names = {name.removeprefix(prefix) for name in answer.split(b"\0") if name}
    return {name for name in names if name.rpartition(b"/")[2] not in (b".vaultignore", b".gitignore")}


def ignore(root: Path, lines: bytes, below: str = ".") -> None:
    for name in (".gitignore", ".vaultignore"):
        (root / below / name).write_bytes(lines)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("git")
    subprocess.run(["git", "init", "-q", str(place)], check=True, capture_output=True)
    return place


@needs_git
def test_each_pattern_as_git_reads_it(repository: Path) -> None:
    wrong = []
    for number, pattern in enumerate(PATTERNS):
        root = repository / f"each{number}"
        write_tree(os.fsencode(root), TREE)
        ignore(root, pattern + b"\n")
        expected, found = kept_by_git(repository, root), kept_by_walk(root)
        if found != expected:
            wrong.append((pattern, "kept too much", sorted(found - expected), "too little", sorted(expected - found)))
    assert not wrong


@needs_git
@pytest.mark.parametrize(
    "lines", [b"a\r\n*.o\r\n", b"\xef\xbb\xbfa\n", b"a", b"a\r", b"# c\n\n a \n", b"b/a  \n", b"a\\ \\ \n"]
)
def test_lines_of_a_file_as_git_reads_them(repository: Path, lines: bytes, request: pytest.FixtureRequest) -> None:
    root = repository / f"lines{abs(hash(lines))}"
    write_tree(os.fsencode(root), TREE)
    ignore(root, lines)
    assert kept_by_walk(root) == kept_by_git(repository, root)


@needs_git
def test_deeper_files_beat_those_above(repository: Path) -> None:
    root = repository / "deeper"
    write_tree(os.fsencode(root), TREE)
    ignore(root, b"a\n*.o\n/foo/bar/baz\n")
    ignore(root, b"!a\n!*.o\n", "b")
    ignore(root, b"/a\nb/c.o\n", "b/b")
    ignore(root, b"!/bar/baz\n/baz\n", "foo")
    assert kept_by_walk(root) == kept_by_git(repository, root)


pieces = st.sampled_from([*b"a b c foo bar baz * ** ? / / [a-c] [!a] \\ ! .o ] [".split(), b" "])


@needs_git
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(pieces, min_size=1, max_size=6).map(b"".join), min_size=1, max_size=3))
def test_random_patterns_as_git_reads_them(repository: Path, patterns: list[bytes]) -> None:
    # Here git 2.39 does not do what its manual says: in `foo**/bar` the stars are not those of one segment.
    assume(not any(re.search(rb"[^/*]\*\*+/", pattern) for pattern in patterns))
    root = repository / "random"
    if not root.exists():
        write_tree(os.fsencode(root), TREE)
    ignore(root, b"\n".join(patterns) + b"\n")
    assert kept_by_walk(root) == kept_by_git(repository, root)


def test_the_command_line_beats_every_file(tmp_path: Path) -> None:
    write_tree(os.fsencode(tmp_path), {b".vaultignore": b"a\n!b\n", b"a": b"", b"b": b"", b"c": b"", b"d": {b"c": b""}})
    walk = Walk(os.fsencode(tmp_path), exclude=[b"b", b"!a", b"/c"])
    names = [step.name for step in walk if isinstance(step, SourceFile)]
    assert names == [b".vaultignore", b"a", b"c"]
    assert walk.report.excluded == 2


def test_a_hostile_pattern_is_quick(tmp_path: Path) -> None:
    rules = parse_rules([b"*a" * 40 + b"b", b"**/" * 40 + b"x", b"/" + b"**/a/" * 30 + b"x"])
    assert not is_excluded(b"a" * 255, False, [rules])
    assert not is_excluded(b"a/" * 120 + b"y", False, [rules])


def test_a_huge_ignore_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".vaultignore").write_bytes(b"a\n" * (1 << 20))
    with pytest.raises(UsageError, match="vaultignore"):
        list(Walk(os.fsencode(tmp_path)))
