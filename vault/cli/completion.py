"""What shells are told when somebody presses Tab: commands, options, datasets, versions, labels, paths inside, runs.

The scripts hand over the line up to the cursor, and get a line for each word that fits: `plain`, `file` or `dir`, a tab,
the word, a tab, a line of help. Whatever fails, nothing is offered: a shell waits for words and not for reasons.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

from vault.cli.options import COMPLETE_VARIABLE, Session
from vault.format.tree import Kind

if TYPE_CHECKING:
    from vault.api import Vault

PROGRAMS: Final = ("vault", "vaultfs")
_OFFERED_MAX: Final = 1000
_CURSOR: Final = "\x01"  # ends the line, so that what a quote or a backslash makes of its last blank is seen

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


# What arguments and options are completed with.


def complete_ref(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer datasets, then versions and labels, then paths."""
    return _offer(ctx, incomplete, lambda vault: _refs(vault, incomplete))


def complete_dataset(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer names of datasets."""
    return _offer(ctx, incomplete, lambda vault: vault.datasets())


def complete_label(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the labels that are in use, of the dataset that was named before."""
    name = str(ctx.params.get("ref") or "").partition("@")[0]
    return _offer(ctx, incomplete, lambda vault: sorted(vault.dataset(name).labels))


def complete_run(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer runs, the newest first."""
    return _offer(ctx, incomplete, lambda vault: (run.run for run in vault.runs()))


def complete_folder(_ctx: click.Context, _param: click.Parameter, _incomplete: str) -> list[CompletionItem]:
    """Let the shell offer folders."""
    return [CompletionItem("", "dir")]


def complete_ref_or_run(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer datasets, versions and labels, then runs."""
    return _offer(ctx, incomplete, lambda vault: chain(_refs(vault, incomplete), (run.run for run in vault.runs())))


def complete_file(_ctx: click.Context, _param: click.Parameter, _incomplete: str) -> list[CompletionItem]:
    """Let the shell offer files."""
    return [CompletionItem("", "file")]


def _offer(ctx: click.Context, incomplete: str, find: "Callable[[Vault], Iterable[str]]") -> list[CompletionItem]:
    try:
        session = Session(quiet=True)
        for known in (ctx.find_root(), ctx):
            session.store = known.params.get("store") or session.store
            session.cache_dir = known.params.get("cache_dir") or session.cache_dir
        session.configure()
        fitting = (word for word in find(session.open()) if word.startswith(incomplete) and word.isprintable())
        return [CompletionItem(word) for word in islice(fitting, _OFFERED_MAX)]
    except Exception:  # noqa: BLE001 - see above
        return []


def _refs(vault: "Vault", incomplete: str) -> Iterator[str]:
    name, at, rest = incomplete.partition("@")
    if not at:
        for dataset in vault.datasets():
            yield dataset
            yield f"{dataset}@"
        return
    selector, slash, path = rest.partition("/")
    if not slash:
        found = vault.dataset(name)
        for known in ("latest", *sorted(found.labels), *(f"v{version.number}" for version in reversed(found.versions))):
            yield f"{name}@{known}"
            yield f"{name}@{known}/"
        return
    folder = path.rpartition("/")[0]
    prefix = f"{name}@{selector}/{folder}/" if folder else f"{name}@{selector}/"
    for child, entry in vault.ls(prefix.rstrip("/")):
        yield f"{prefix}{child.decode(errors='surrogateescape')}{'/' if entry.kind == Kind.DIRECTORY else ''}"


# How shells ask.


class _Complete(ShellComplete):
    def source(self) -> str:
        """Return the script that makes the shell ask."""
        return self.source_template.replace("PROGRAMS", " ".join(PROGRAMS)).replace("VARIABLE", COMPLETE_VARIABLE)

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words after the program's name that are complete, and the one that is not."""
        words = split_arg_string(os.environ["COMP_LINE"] + _CURSOR)
        return words[1:-1], words[-1].removesuffix(_CURSOR)

    def format_completion(self, item: CompletionItem) -> str:
        """Return one line of the answer."""
        return f"{item.type}\t{item.value}\t{item.help or ''}"


class Bash(_Complete):
    """Bash takes '@' and ':' for the end of a word: what it takes for the word's beginning must not be offered again."""

    name = "bash"
    source_template = r"""_vault_completion() {
    local line=${COMP_LINE:0:COMP_POINT} kind word help
    local before=${line%"$2"}
    local cut=${before##*[[:space:]]}
    COMPREPLY=()
    while IFS=$'\t' read -r kind word help; do
        case $kind in
        file) compopt -o default ;;
        dir) compopt -o dirnames ;;
        plain)
            [[ $word == *[/@] ]] && compopt -o nospace
            [[ $before == *[\"\'] ]] || printf -v word %q "$word"
            COMPREPLY+=("${word#"$cut"}")
            ;;
        esac
    done < <(COMP_LINE=$line VARIABLE=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F _vault_completion PROGRAMS
"""


class Zsh(_Complete):
    """Zsh quotes what it needs to by itself."""

    name = "zsh"
    source_template = r"""#compdef PROGRAMS
_vault_completion() {
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX" kind word help
    while IFS=$'\t' read -r kind word help; do
        case $kind in
        file) _files ;;
        dir) _files -/ ;;
        plain) if [[ $word == *[/@] ]]; then compadd -S '' -- "$word"; else compadd -- "$word"; fi ;;
        esac
    done < <(COMP_LINE=$line VARIABLE=zsh_complete ${words[1]} 2>/dev/null)
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _vault_completion "$@"
else
    compdef _vault_completion PROGRAMS
fi
"""


class Fish(_Complete):
    """Fish shows the help beside each word."""

    name = "fish"
    source_template = r"""function _vault_completion
    for answer in (COMP_LINE=(commandline -cp) VARIABLE=fish_complete vault 2>/dev/null)
        set -l parts (string split \t -- $answer)
        switch $parts[1]
            case file
                __fish_complete_path (commandline -ct)
            case dir
                __fish_complete_directories (commandline -ct)
            case plain
                printf '%s\t%s\n' $parts[2] $parts[3]
        end
    end
end
for program in PROGRAMS
    complete --no-files --command $program --arguments "(_vault_completion)"
end
"""


SHELLS: Final = {shell.name: shell for shell in (Bash, Zsh, Fish)}


def answer_shell(program: click.Command, instruction: str) -> int:
    """Print what a shell asks for (`bash_complete`), and return the exit status."""
    shell = SHELLS.get(instruction.partition("_")[0])
    if shell is None or not instruction.endswith("_complete") or "COMP_LINE" not in os.environ:
        return 1
    with contextlib.suppress(Exception):
        answer = shell(program, {}, PROGRAMS[0], COMPLETE_VARIABLE).complete()
        click.echo(answer.encode(errors="surrogateescape"))
    return 0
