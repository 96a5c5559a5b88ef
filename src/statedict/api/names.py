"""Names of sources: paths, URLs and `file::path`."""

from __future__ import annotations

import os
import re

from statedict.io.urls import to_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeGuard

Path = str | os.PathLike[str]


def is_path(source: Any) -> TypeGuard[Path]:
    """Whether a source is a file's name: a path or a URL."""
    return isinstance(source, str | os.PathLike)


def split(source: Path) -> tuple[str, str]:
    """The file of `model.pth::optimizer`, and the path in it; a file that is there may have such a name itself."""
    name = to_name(source)
    scheme, mark, rest = name.partition("://")
    host = len(scheme) + 3 + len(rest.partition("/")[0]) if mark else 0  # [::1] is one
    if os.path.lexists(name):
        return name, ""
    marks = [at.start() for at in re.finditer("::", name) if at.start() >= host]
    there = [at for at in marks if os.path.lexists(name[:at])]
    for at in (*there[-1:], *marks):
        return name[:at], name[at + 2 :]
    return name, ""
