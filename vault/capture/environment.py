"""What a Python program runs on: its interpreter, and the distributions that its prefix holds, read as files.

Nothing of it is executed: the prefix comes from the path by which the interpreter was called and from pyvenv.cfg, versions
from the names and METADATA of dist-info folders. Equal environments give equal bytes on whatever host, which is why no
path above the prefix and no time goes into the document. Threads: safe. docs/format/runs.md, section 6.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from vault.capture.found import FoundEnvironment
from vault.capture.libraries import Library, loaded_libraries
from vault.capture.proc import decode, read_bounded
from vault.capture.redaction import redact_text, redact_url

DISTRIBUTIONS_MAX: Final = 10_000
LOCK_SIZE_MAX: Final = 4 << 20
_LOCKS_MAX: Final = 32
_LINKED_MAX: Final = 64
_METADATA_SIZE_MAX: Final = 16 << 10  # name and version stand at its front
_INTERPRETER_SIZE_MAX: Final = 64 << 20
_LOCK_NAMES: Final = re.compile(
    r"(?:uv\.lock|poetry\.lock|pdm\.lock|pixi\.lock|Pipfile\.lock|pylock(?:\.[\w-]+)?\.toml|pyproject\.toml|conda-lock\.ya?ml"
    r"|requirements[\w.-]*\.(?:txt|lock|in)|constraints[\w.-]*\.txt|environment[\w.-]*\.ya?ml|renv\.lock|Manifest\.toml"
    r"|Project\.toml|package-lock\.json|Cargo\.lock|flake\.lock|\.python-version)\Z"
)
_PYTHON = re.compile(r"(?:python|pypy)(\d+(?:\.\d+)?)?\Z")
_DIST_INFO = re.compile(r"(.+?)-([^-]+)(?:-.*)?\.(?:dist-info|egg-info)\Z")
_encoder: Final = msgspec.json.Encoder(order="sorted")


class Package(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An installed distribution, as it stands in environment.json."""

    name: str
    version: str
    direct_url: str = ""
    installer: str = ""


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """environment.json."""

    interpreter: str
    packages: Sequence[Package]
    libraries: Sequence[Library]


@dataclass(slots=True)
class Interpreter:
    """Where a Python lives."""

    prefix: str  # of the virtual environment, if it is one
    base: str  # where the standard library is
    version: str = ""  # 3.11.2
    name: str = "CPython"
    sees_system: bool = True  # packages outside of the virtual environment
    sites: list[str] = field(default_factory=list)


def look_at_environment(
    *,
    command: Sequence[str],
    executable: str,
    cwd: str,
    maps: bytes,
    variables: Mapping[str, str],
    code_folders: Sequence[str],
    gaps: list[str],
) -> FoundEnvironment | None:
    """Return the environment of a program; None if there is nothing to say of it. Adds to gaps what could not be seen."""
    interpreter = find_interpreter(command, executable, cwd, variables)
    packages: list[Package] = []
    prefix = text = ""
    if interpreter is None:
        gaps.append("environment: the program is no Python, so its packages are not known")
    else:
        prefix = interpreter.prefix
        text = f"{interpreter.name} {interpreter.version}".strip()
        packages = distributions(interpreter.sites)
        if not interpreter.version:
            gaps.append("environment: the version of the interpreter was not found")
    libraries = loaded_libraries(maps, prefix)
    locks = lock_files(code_folders, prefix)
    if interpreter is None and not libraries and not locks:
        return None
    document = _encoder.encode(Document(interpreter=text, packages=packages, libraries=libraries)) + b"\n"
    return FoundEnvironment(text, prefix[:4096], len(packages), len(libraries), document, locks)


# --- the interpreter


def find_interpreter(command: Sequence[str], executable: str, cwd: str, variables: Mapping[str, str]) -> Interpreter | None:
    """Return the Python that runs a command, or None if none does.

    A virtual environment shows in the path by which its python was called, not in the executable that this leads to.
    """
    executable = executable.removesuffix(" (deleted)")
    called = _called(command, cwd, variables)
    for path in [*called, executable]:
        script = _shebang(path)
        for candidate in [path, *([script] if script else [])]:
            if _PYTHON.match(os.path.basename(candidate)) and os.path.isfile(candidate):
                return _interpreter_at(candidate, executable, variables)
    return None


def linked_folders(site: str) -> list[str]:
    """Return the folders that `.pth` files of a site's folder add to the path: packages that are edited where they lie."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(site))[:DISTRIBUTIONS_MAX]:
            if name.endswith(".pth"):
                lines = decode(read_bounded(f"{site}/{name}", _METADATA_SIZE_MAX)).splitlines()
                found += [line for line in map(str.strip, lines) if line.startswith("/") and os.path.isdir(line)]
    return list(dict.fromkeys(found))[:_LINKED_MAX]


def _called(command: Sequence[str], cwd: str, variables: Mapping[str, str]) -> list[str]:
    """Return the absolute paths that the first word of a command may stand for."""
    first = command[0] if command else ""
    if "/" in first:
        return [os.path.normpath(os.path.join(cwd or "/", first))]
    places = variables.get("PATH", "").split(":")[:64]
    return [path for place in places if place and first and os.path.isfile(path := f"{place}/{first}")][:1]


def _shebang(path: str) -> str:
    """Return the interpreter that a script's first line names, or ""."""
    try:
        start = read_bounded(path, 512)
    except OSError:
        return ""
    if not start.startswith(b"#!"):
        return ""
    words = decode(start[2:].split(b"\n")[0]).split()
    return words[0] if words and words[0].startswith("/") else ""


def _interpreter_at(path: str, executable: str, variables: Mapping[str, str]) -> Interpreter:
    folder = os.path.dirname(path)
    real = os.path.realpath(path)
    base = os.path.dirname(os.path.dirname(real))
    for prefix in (os.path.dirname(folder), folder, variables.get("VIRTUAL_ENV", "")):
        if not prefix or not os.path.isabs(prefix):
            continue
        config = _read_config(f"{prefix}/pyvenv.cfg")
        if config:
            if config.get("home", "").startswith("/"):
                base = os.path.dirname(os.path.normpath(config["home"]))
            sees_system = config.get("include-system-site-packages", "").lower() == "true"
            version = config.get("version_info", "") or config.get("version", "")
            found = Interpreter(
                prefix, base, re.sub(r"\.(?:final|candidate|alpha|beta).*", "", version), _kind(real), sees_system
            )
            break
    else:
        found = Interpreter(base, base, "", _kind(real))
    minor = re.search(r"(\d+\.\d+)", os.path.basename(real))
    found.version = found.version or _version_in(real, base)
    short = ".".join(found.version.split(".")[:2]) or (minor[1] if minor else "")
    found.sites = [site for site in _sites(found, short, variables) if os.path.isdir(site)]
    return found


def _kind(path: str) -> str:
    return "PyPy" if os.path.basename(path).startswith("pypy") else "CPython"


def _read_config(path: str) -> dict[str, str]:
    try:
        text = decode(read_bounded(path, _METADATA_SIZE_MAX))
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip().lower(): value.strip() for name, equals, value in pairs if equals}


def _version_in(executable: str, base: str) -> str:
    """Return the full version that stands in the interpreter's file, or in its library's; "" if neither has it."""
    match = re.search(r"(\d+)\.(\d+)", os.path.basename(executable))
    minor = rf"{match[1]}\.{match[2]}" if match else r"3\.\d+"
    pattern = re.compile(rf"(?<=\0){minor}\.\d+(?:(?:a|b|rc)\d+)?(?=\+?\0)".encode())
    candidates = [executable]
    if match:
        library = f"libpython{match[1]}.{match[2]}.so.1.0"
        candidates += [f"{folder}/{library}" for folder in (f"{base}/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu")]
    for path in candidates:
        try:
            versions = {found.decode() for found in pattern.findall(read_bounded(path, _INTERPRETER_SIZE_MAX))}
        except OSError:
            continue
        if len(versions) == 1:
            return str(versions.pop())
    return ""


def _sites(found: Interpreter, minor: str, variables: Mapping[str, str]) -> Iterator[str]:
    """Yield the folders in which packages may lie, those first that Python looks into first."""
    for path in variables.get("PYTHONPATH", "").split(":")[:64]:
        if path.startswith("/"):
            yield path
    prefixes = [found.prefix]
    if found.sees_system and found.base != found.prefix:
        prefixes.append(found.base)
    if found.sees_system and minor and not variables.get("PYTHONNOUSERSITE") and (home := variables.get("HOME", "")):
        yield os.path.join(variables.get("PYTHONUSERBASE") or f"{home}/.local", f"lib/python{minor}/site-packages")
    for prefix in prefixes:
        for library in ("lib", "lib64"):
            if minor:
                yield f"{prefix}/{library}/python{minor}/site-packages"
        if prefix == "/usr":
            yield from (f"/usr/local/lib/python{minor}/dist-packages", "/usr/lib/python3/dist-packages")


# --- what is installed


def distributions(sites: Sequence[str]) -> list[Package]:
    """Return the distributions in folders of packages, ascending by name; the first folder that has one counts."""
    found: dict[str, Package] = {}
    seen: set[str] = set()
    for site in sites:
        real = os.path.realpath(site)
        if real in seen:
            continue
        seen.add(real)
        try:
            names = sorted(os.listdir(site))
        except OSError:
            continue
        here: dict[str, Package] = {}
        for name in names:
            if name.endswith((".dist-info", ".egg-info")) and len(found) + len(here) < DISTRIBUTIONS_MAX:
                package = _distribution(f"{site}/{name}", name)
                if package is not None:
                    here.setdefault(package.name, package)
        found = {**here, **found}
    return sorted(found.values(), key=lambda package: package.name)


def _distribution(path: str, folder: str) -> Package | None:
    match = _DIST_INFO.match(folder)
    name, version = (match[1], match[2]) if match else ("", "")
    metadata = _text(f"{path}/METADATA") or _text(f"{path}/PKG-INFO") or _text(path)
    for line in metadata.splitlines():
        key, _, value = line.partition(":")
        if not line.strip():
            break
        if key == "Name":
            name = value.strip()
        elif key == "Version":
            version = value.strip()
    if not name:
        return None
    return Package(
        name=re.sub(r"[-_.]+", "-", name).lower()[:256],
        version=version[:256],
        direct_url=_direct_url(_text(f"{path}/direct_url.json")),
        installer=_text(f"{path}/INSTALLER").strip()[:64],
    )


def _direct_url(text: str) -> str:
    """Return where a distribution came from if that was no index: with the commit, without credentials."""
    if not text:
        return ""
    try:
        told = msgspec.json.decode(text.encode(), type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeError):
        return ""
    url = told.get("url")
    vcs = told.get("vcs_info")
    commit = vcs.get("commit_id") if isinstance(vcs, dict) else None
    shown = redact_url(url) if isinstance(url, str) else ""
    if isinstance(vcs, dict) and isinstance(vcs.get("vcs"), str):
        shown = f"{vcs['vcs']}+{shown}"
    return (shown + (f"@{commit}" if isinstance(commit, str) else ""))[:1024]


def _text(path: str) -> str:
    try:
        return decode(read_bounded(path, _METADATA_SIZE_MAX))
    except OSError:
        return ""


# --- lock files


def lock_files(folders: Sequence[str], prefix: str) -> dict[str, bytes]:
    """Return the lock files that lie beside the code, without secrets in them, and what conda says it has installed."""
    locks: dict[str, bytes] = {}
    for folder in dict.fromkeys(folders):
        try:
            names = sorted(name for name in os.listdir(folder) if _LOCK_NAMES.match(name))
        except OSError:
            continue
        for name in names[:_LOCKS_MAX]:
            path = f"{folder}/{name}"
            try:
                if not os.path.isfile(path) or os.path.getsize(path) > LOCK_SIZE_MAX:
                    continue
                data = read_bounded(path, LOCK_SIZE_MAX)
            except OSError:
                continue
            if name not in locks and len(locks) < _LOCKS_MAX and sum(map(len, locks.values())) + len(data) <= LOCK_SIZE_MAX:
                locks[name] = _without_secrets(data)
    try:
        records = sorted(
            name.removesuffix(".json") for name in os.listdir(f"{prefix}/conda-meta") if name.endswith(".json")
        )
    except OSError:
        records = []
    if prefix and records:
        locks["conda-packages.txt"] = "".join(f"{record}\n" for record in records[:DISTRIBUTIONS_MAX]).encode()
    return locks


def _without_secrets(data: bytes) -> bytes:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    clean = redact_text(text)
    return data if clean == text else clean.encode()
