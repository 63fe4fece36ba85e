"""Take out of a command line what looks like a secret, before anything is written. Pure; when in doubt, out.

Names of options that carry secrets, credentials in URLs, and the shapes of well-known tokens. Not a guarantee: a password
given as a plain word cannot be told from a word. Threads: pure.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

HIDDEN: Final = "***"
ARGUMENTS_MAX: Final = 256
COMMAND_LENGTH_MAX: Final = 16 << 10

_SECRET_NAME = re.compile(
    r"(?i)(?:pass(?:word|wd|phrase)?|secret|token|credentials?|api[-_.]?key|access[-_.]?key|private[-_.]?key|auth(?:orization)?|bearer|cookie)$"
)
_ASSIGNMENT = re.compile(r"\A(-{0,2}[A-Za-z0-9_.-]{1,64})[=:](.+)\Z", re.DOTALL)
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}|AKIA[A-Z0-9]{12,}"
    r"|xox[abprs]-[\w-]{8,}|AIza[\w-]{20,}|ey[JK][\w-]{8,}\.[\w-]{8,}\.[\w-]{4,})"
)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_NAMES = r"(?:passw(?:or)?d|passphrase|secret|token|api[-_.]?key|access[-_.]?key|private[-_.]?key)"
_PLACES: Final = (
    (_TOKENS, "a token"),
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----"), "a private key"),
    (re.compile(r"://[^/@\s:\"']{0,256}:([^/@\s\"']{1,256})@"), "credentials in a URL"),
    (
        re.compile(rf"(?i){_NAMES}[\w.-]{{0,64}}[\"']?\s{{0,8}}[:=]\s{{0,8}}[rbf]?[\"']([^\"'\s]{{8,512}})[\"']"),
        "a secret given a value",
    ),
    (
        re.compile(r"(?m)^(?:export\s+)?[A-Z0-9_]{0,64}(?:SECRET|TOKEN|PASSWORD|KEY)=([^\s\"']{8,512})$"),
        "a secret given a value",
    ),
)
_PLACEHOLDER = re.compile(
    r"(?i)[<>{}$\[\]()]|\A(?:your|my|some|example|changeme|change[-_]me|placeholder|x{4,}|\*{3,}|redacted)"
)
_RANDOM = re.compile(r"\A(?=[^A-Z]*[A-Z])(?=[^a-z]*[a-z])(?=[^0-9]*[0-9])[A-Za-z0-9+=_-]{24,}\Z")
_SECRET_VARIABLE = re.compile(
    r"(?i)(?:pass(?:word|wd|phrase)?|secret|token|credential|api_?key|access_?key|private_?key|cookie)"
)


def redact_command(command: Sequence[str]) -> tuple[str, ...]:
    """Return a command line with secrets replaced by `***`, cut to size."""
    shown: list[str] = []
    hide_next = False
    left = COMMAND_LENGTH_MAX
    for argument in command[:ARGUMENTS_MAX]:
        text, hide_next = (HIDDEN, False) if hide_next and not argument.startswith("--") else _redact(argument)
        shown.append(text[:left])
        left -= len(text.encode("unicode_escape"))
        if left <= 0:
            break
    return tuple(shown)


def is_secret_name(name: str) -> bool:
    """Say whether a variable of this name may hold a secret. TOKENIZERS_PARALLELISM does not."""
    return bool(_SECRET_VARIABLE.search(name.upper().replace("TOKENIZER", "")))


def looks_secret(value: str) -> bool:
    """Say whether a value is the like of a token: one long word of mixed letters and digits."""
    return bool(_RANDOM.match(value))


def redact_text(text: str) -> str:
    """Return text without well-known tokens and without credentials in URLs."""
    return _without_tokens(text)


def redact_url(url: str) -> str:
    """Return the address of a repository or an index without user, password, query and tokens; `git@host:path` stays."""
    scheme, mark, rest = url.strip().partition("://")
    if not mark:
        return _without_tokens(url.strip())
    place, slash, path = rest.split("?")[0].split("#")[0].partition("/")
    return _without_tokens(f"{scheme}://{place.rpartition('@')[2]}{slash}{path}")


def _redact(argument: str) -> tuple[str, bool]:
    """Return what may be shown of an argument, and whether the next one is its secret."""
    if match := _ASSIGNMENT.match(argument):
        name, value = match.groups()
        if _SECRET_NAME.search(name):
            return f"{name}={HIDDEN}", False
        if not value.startswith("//"):
            return argument[: match.start(2)] + _without_tokens(value), False
    if argument.startswith("-") and _SECRET_NAME.search(argument):
        return argument, True
    return _without_tokens(argument), False


def _without_tokens(text: str) -> str:
    return _TOKENS.sub(HIDDEN, _URL_CREDENTIALS.sub(HIDDEN, text))


def secret_places(text: str) -> Iterator[tuple[int, str]]:
    """Yield (offset, what it looks like) of whatever in a text may be a secret, for those who publish it."""
    for pattern, what in _PLACES:
        for match in pattern.finditer(text):
            value = match[match.lastindex or 0]
            if HIDDEN not in value and not _PLACEHOLDER.search(value):
                yield match.start(), what
