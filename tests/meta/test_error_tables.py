"""Every error has a place in every table, travels between processes, and says what it is about."""

import inspect
import pickle
import re
from pathlib import Path

import pytest
from vault_fuse.errnos import ERRNOS, errno_of

from vault import errors
from vault.cli import exit_codes
from vault.cli.exit_codes import EXIT_CODES, exit_code
from vault.errors import VaultError

PAGE = (Path(__file__).parents[2] / "docs/reference/exit-codes.md").read_text()
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, VaultError)]
CONCRETE = [kind for kind in KINDS if "__init__" in vars(kind)]
STATUSES = {name: number for name, number in vars(exit_codes).items() if name.isupper() and isinstance(number, int)}


def example(kind: type[VaultError]) -> VaultError:
    """Return an error with a value for each of its fields."""
    return kind(*map(value, inspect.signature(kind).parameters.values()))


def value(parameter: inspect.Parameter) -> object:
    kind = str(parameter.annotation)
    if "Sequence" in kind:
        return (f"{parameter.name} one", f"{parameter.name} two")
    return 7 if "int" in kind else f"the {parameter.name}"


def families(kind: type) -> list[type]:
    """Return the classes of ours above an error, and itself, without the root."""
    return [above for above in kind.__mro__ if issubclass(above, VaultError) and above is not VaultError]


def test_there_are_errors():
    assert len(CONCRETE) > 20


@pytest.mark.parametrize("kind", CONCRETE, ids=lambda kind: kind.__name__)
def test_it_has_an_exit_status(kind):
    assert any(family in EXIT_CODES for family in families(kind)), "the root's would be: internal error"
    assert exit_code(example(kind)) in STATUSES.values()
    assert exit_code(example(kind)) not in (exit_codes.OK, exit_codes.FINDINGS, exit_codes.INTERNAL)


@pytest.mark.parametrize("kind", CONCRETE, ids=lambda kind: kind.__name__)
def test_it_has_an_errno(kind):
    assert any(family in ERRNOS for family in kind.__mro__)
    assert errno_of(example(kind)) > 0


@pytest.mark.parametrize("kind", CONCRETE, ids=lambda kind: kind.__name__)
def test_it_travels_between_processes(kind):
    error = example(kind)
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), str(there), vars(there)) == (kind, str(error), vars(error))


@pytest.mark.parametrize("kind", CONCRETE, ids=lambda kind: kind.__name__)
def test_its_text_names_what_it_is_about(kind):
    error = example(kind)
    text = str(error)
    assert text and not text.endswith(".") and "<" not in text
    assert error.args == tuple(vars(error).values()) or len(error.args) == len(vars(error)), "all fields are in args"
    named = [value for value in vars(error).values() if isinstance(value, str) and value[:12] in text]
    assert named, f"{text!r} names none of {vars(error)}"


@pytest.mark.parametrize("kind", CONCRETE, ids=lambda kind: kind.__name__)
def test_its_fields_do_not_hide_those_of_json(kind):
    assert not vars(example(kind)).keys() & {"type", "error", "message", "exit_code", "retryable"}


def test_every_error_is_drawn_in_the_tree():
    drawn = re.findall(r"^ +(?:[│├└─ ]*)(\w+)", errors.__doc__ or "", re.M)
    assert {kind.__name__ for kind in KINDS} <= set(drawn)


def test_the_page_has_every_status_and_no_other():
    listed = {name: int(number) for number, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE, re.M)}
    assert listed == STATUSES
    assert len(set(STATUSES.values())) == len(STATUSES), "no number says two things"


def test_the_page_has_every_error_with_its_status():
    listed = {}
    for names, number in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\d+) \|$", PAGE, re.M):
        listed.update(dict.fromkeys(re.findall(r"\w+", names), int(number)))
    assert listed == {kind.__name__: exit_code(example(kind)) for kind in CONCRETE}


def test_what_is_no_error_of_ours_is_a_bug():
    assert exit_code(ZeroDivisionError()) == exit_codes.INTERNAL
    assert exit_code(VaultError()) == exit_codes.INTERNAL, "nobody raises the root"
