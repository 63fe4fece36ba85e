"""What commands do on a terminal and on a pipe: escapes, colours, the bar, readers that go away, streams not there."""

import contextlib
import os
import re
import subprocess
import sys

import pytest

from vault.testing.mounts import Site
from vault.testing.terminals import terminal, without_color

WAIT_S = 30.0
ESCAPE = "\x1b"


@contextlib.contextmanager
def typed(site: Site, *arguments: str, columns: int = 100, **variables: str):
    """Run a command on a terminal."""
    with terminal(site.command(*arguments), {**surroundings(site), **variables}, columns=columns) as screen:
        yield screen


def surroundings(site: Site) -> dict[str, str]:
    """Return the variables of a command on a terminal that has colours."""
    environment = {
        name: value for name, value in site.environment().items() if name not in ("NO_COLOR", "COLUMNS", "LINES")
    }
    return {**environment, "TERM": "xterm-256color"}


def shown(site: Site, *arguments: str, **variables: str) -> str:
    """Return what a terminal is sent by a command that succeeds."""
    with typed(site, *arguments, **variables) as screen:
        assert screen.end() == 0, screen.shown
        return screen.shown.replace("\r\n", "\n")


# Text that could do harm.


@pytest.mark.parametrize(
    ("arguments", "holds"),
    [
        (("ls", "imagenet@v2"), ["esc\\x1b[31mred\\nnext line\n", "n\\xff\\xfename\n"]),
        (("ls", "-lR", "imagenet@v2"), ["  esc\\x1b[31mred\\nnext line\n"]),
        (("log", "imagenet"), ["    from the\\x1b[31m net\n"]),
        (("show", "imagenet@v1"), ["from the\\x1b[31m net\n"]),
        (("show", os.fsdecode(b"imagenet@v1/esc\x1b[31mred\nnext line")), ["imagenet@v1/esc\\x1b[31mred\\nnext line"]),
        (("diff", "imagenet@v1", "vision/coco@v1"), ["- esc\\x1b[31mred\\nnext line"]),
        (("diff", "--stat", "imagenet@v1", "vision/coco@v1"), []),
        (("diff", "--name-only", "imagenet@v1", "vision/coco@v1"), ["esc\\x1b[31mred\\nnext line"]),
    ],
)
def test_a_terminal_gets_nothing_that_moves_its_cursor_or_fakes_a_line(library, arguments, holds):
    plain = without_color(shown(library, *arguments))
    assert ESCAPE not in plain and plain.isprintable() is False and not re.search(r"[^\x20-\x7e\n…→]", plain)
    for text in holds:
        assert text in plain


def test_errors_and_notes_are_harmless_too(library, tmp_path):
    name = os.fsdecode(b"imagenet@v1/no\x1b[31msuch\nvault: all is well")
    with typed(library, "ls", name) as screen:
        assert screen.end() == 3
        said = screen.shown.replace("\r\n", "\n")
    assert said.startswith(f"{ESCAPE}[31mvault:{ESCAPE}[0m there is no path imagenet@v1/no\\x1b[31msuch")
    assert "\nvault: all is well" not in said, "a second line is indented"


def test_a_pipe_gets_names_as_they_are(library):
    done = subprocess.run(library.command("ls", "imagenet@v2"), env=library.environment(), capture_output=True, check=True)
    assert b"n\xff\xfename\n" in done.stdout and b"esc\x1b[31mred\nnext line\n" in done.stdout
    done = subprocess.run(library.command("log", "imagenet"), env=library.environment(), capture_output=True, check=True)
    assert b"\x1b" not in done.stdout, "but other people's words are no names"


@pytest.mark.parametrize(
    "variables", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_the_locale_does_not_matter(library, variables):
    site = library.with_variables(**variables)
    names = subprocess.run(
        site.command("ls", "imagenet@v2"), env=site.environment(), capture_output=True, check=True
    ).stdout
    assert b"n\xff\xfename\n" in names
    assert "…" in site.vault("audit", "--help").stdout


# Colours.


def test_colours_are_for_terminals_that_want_them(library):
    arguments = ("diff", "imagenet@v1", "imagenet@v2")
    colored = shown(library, *arguments)
    assert f"{ESCAPE}[32m+ new file{ESCAPE}[0m" in colored and f"{ESCAPE}[31m- old/gone.txt{ESCAPE}[0m" in colored
    assert ESCAPE not in shown(library, *arguments, NO_COLOR="1")
    assert ESCAPE not in shown(library, *arguments, TERM="dumb")
    assert shown(library, *arguments, NO_COLOR="") == colored, "empty: as if it were not set"
    assert ESCAPE not in library.vault(*arguments).stdout


# The bar.


WORK = """
import select, sys, time
from vault.cli.output import Output
out = Output(color=True, quiet="--quiet" in sys.argv, as_json="--json" in sys.argv)
with out.progress(lambda: (20, 8_000_000)) as progress:
    for done in range(1, 1_000_000):
        progress.update(phase="working", files=done // 1000, size_bytes=100 * done)
        if done == 5:
            out.answer("thing", {}, "a first answer")
        if select.select([sys.stdin], [], [], 0.001)[0]:
            break
    out.answer("thing", {}, "an answer")
    out.note("a note")
out.summary({}, "done")
"""


@contextlib.contextmanager
def working(*arguments: str, stdout=None):
    """Run work that goes on until a line is typed, with a bar on a terminal, if one is wanted."""
    command = (sys.executable, "-c", WORK, *arguments)
    with terminal(command, surroundings(Site("", "")), stdout=stdout) as screen:
        yield screen


def test_the_bar_shows_counts_rate_and_time_left_and_goes_away():
    with working() as screen:
        screen.wait_for(r"working .*━.* \d+ of 20 files .*/8\.0 MB")
        screen.wait_for(r"\d [kM]B/s \d:\d\d:\d\d")
        screen.type("\n")
        assert screen.end() == 0
        last = without_color(screen.shown.rpartition(ESCAPE + "[2K")[2]).replace("\r\n", "\n")
        assert last.endswith("an answer\na note\ndone\n") and "━" not in last, "nothing of the bar stays"


@pytest.mark.parametrize("options", ["--quiet", "--json"])
def test_no_bar_when_it_is_not_wanted(options):
    with working(options) as screen:
        screen.wait_for("first answer|thing")
        screen.type("\n")
        assert screen.end() == 0
        assert ESCAPE not in screen.shown


def test_a_bar_does_not_take_the_answer_from_a_file(tmp_path):
    """The answer goes where stdout goes, and the bar where stderr goes."""
    with (tmp_path / "answer").open("wb") as answer, working(stdout=answer) as screen:
        screen.wait_for(r"working .*━")
        screen.type("\n")
        assert screen.end() == 0
        assert "an answer" not in screen.shown and "a note" in screen.shown
    assert (tmp_path / "answer").read_text() == "a first answer\nan answer\ndone\n"


def test_ctrl_c_clears_the_bar_and_says_so(site, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    with (source / "endless").open("wb") as file:
        file.truncate(200 << 30)
    with typed(site, "commit", str(source), "d") as screen:
        screen.wait_for(r"0 of 1 files .*/214\.7 GB .*\d (MB|GB)/s")
        screen.type("\x03")
        assert screen.end() == 130
        words = without_color(screen.shown.rpartition(ESCAPE + "[2K")[2])
        assert words.replace("\r\n", "\n").endswith(
            "no version was made; what was stored so far is not stored again by the next commit\nvault: interrupted\n"
        )
        assert "Traceback" not in screen.shown


# Readers that go away, streams that are not there.


def test_a_reader_that_goes_away_ends_the_command_without_a_word(site, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3000):
        (source / f"a-file-with-a-long-name-so-that-a-pipe-is-full-{number}").write_bytes(b"")
    site.vault("commit", str(source), "d")
    for arguments in (("ls", "-R", "d@v1"), ("ls", "-lR", "d@v1", "--json")):
        process = subprocess.Popen(
            site.command(*arguments), env=site.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout.readline() and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(WAIT_S) == 141


def redirected(site: Site, words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of a shell with `vault` in it."""
    line = words.replace("vault", " ".join(site.command()), 1)
    return subprocess.run(
        ["bash", "-c", line], env=site.environment(), capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    ("words", "status", "err"),
    [
        ("vault ls >/dev/full", 9, "vault: standard output: No space left on device\n"),
        ("vault cat imagenet@v1/labels.csv >/dev/full", 9, "vault: standard output: No space left on device\n"),
        ("vault ls >&-", 0, ""),
        ("vault ls <&-", 0, ""),
        ("vault ls nosuch 2>&-", 3, ""),
        ("vault ls nosuch >&- 2>&-", 3, ""),
        ("vault ls nosuch --json 2>/dev/full", 3, ""),
    ],
)
def test_streams_that_cannot_be_written(library, words, status, err):
    done = redirected(library, words)
    assert (done.returncode, done.stderr) == (status, err)


def test_answer_and_talk_come_in_the_order_in_which_they_were_said(library):
    done = redirected(library, "vault diff imagenet@v1 imagenet@v2 2>&1")
    assert done.stdout.splitlines()[-1].startswith("1 added, 1 removed, 1 changed")


# Long things.


def test_a_long_command_is_cut_to_the_width(tmp_path):
    from vault.cli.output import Output

    out = Output()
    command = ["python", "train.py", "--list", ",".join(map(str, range(100_000))), "last"]
    text = out.command(command, indent=4)
    assert len(text) == 96 and text.startswith("python train.py --list 0,1,2,") and text.endswith("…")
    assert out.command(["a", "b c", "d\ne\x1b[31m"]) == "a 'b c' 'd\\ne\\x1b[31m'"


def test_help_fits_a_narrow_terminal(library):
    for columns in (60, 80):
        for line in without_color(shown(library, "--help", columns=columns)).splitlines():
            assert len(line) <= columns or line.startswith("    "), line  # examples are not broken
    with typed(library, "ls", "-l", "imagenet@v1", columns=20) as screen:
        assert screen.end() == 0
