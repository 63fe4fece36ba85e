"""Which names of objects can be paths of files. Pure.

An object store takes any text as a key. A tree has names between slashes, each of up to 255 bytes; what cannot be written
so is refused by name, or left out when asked to.
"""

from vault.format.tree import DEPTH_MAX, DOTS, NAME_LENGTH_MAX


def name_fault(path: str) -> str:
    """Return what keeps a path from being that of a file, or of a folder if it ends in a slash; "" if nothing does."""
    try:
        names = path.encode().removesuffix(b"/").split(b"/")
    except UnicodeEncodeError:
        return "an object whose name is not UTF-8"
    if len(names) > DEPTH_MAX:
        return f"an object below more than {DEPTH_MAX} folders"
    for name in names:
        if not name:
            return "an object with an empty name between two slashes"
        if name in DOTS:
            return f"an object below '{name.decode()}', which no file can be"
        if b"\0" in name:
            return "an object with a NUL in its name"
        if len(name) > NAME_LENGTH_MAX:
            return f"an object with a name of more than {NAME_LENGTH_MAX} bytes between two slashes"
    return ""
