"""Remedies as one types them in a shell. The library's errors give them in Python: `allow_missing=['x']`.

On the command line that is `--allow-missing x`, by one table of arguments and options.
"""

from __future__ import annotations

import re
import shlex
from ast import literal_eval
from typing import Any

# argument → option, and what stands for a value that the message leaves open
OPTIONS = {
    "allow_missing": ("--allow-missing", "GLOB"),
    "allow_unexpected": ("--allow-unexpected", "GLOB"),
    "shapes": ("--shapes", "[GLOB=]POLICY"),
    "rename": ("--rename", "OLD=NEW"),
    "cast": ("--cast", "GLOB"),
    "prefix": ("--prefix", "PREFIX"),
    "only": ("--only", "GLOB"),
    "max_shard_size": ("--max-shard-size", "SIZE"),
    "overwrite": ("--overwrite", ""),
    "dry_run": ("--dry-run", ""),
}
PHRASES = (
    (re.compile(r"restore from load\(path\)((?:\['[^']*'\])+)"), lambda found: f"name it by --at {_path(found[1])}"),
    (re.compile(r"allow overwriting"), lambda found: "add --overwrite"),
    (
        re.compile(r'load it with (format="\w+")'),
        lambda found: f"open it in Python by statedict.load(path, {found[1]})",
    ),
)
_TEXT = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_PAIR = rf"{_TEXT}(?:: {_TEXT})?"
_VALUE = rf"(?:…|True|{_TEXT}|\[{_TEXT}(?:, {_TEXT})*\]|\{{{_PAIR}(?:, {_PAIR})*\}})"
_ARGUMENT = rf"(?:{'|'.join(OPTIONS)})={_VALUE}"
_ARGUMENTS = re.compile(rf"\b{_ARGUMENT}(?:, {_ARGUMENT})*")


def shell(text: str) -> str:
    """A message with the remedies in it as one types them in a shell.

    >>> print(shell("pass allow_missing=['head.*', 'b'], rename={'a': 'b c'} to accept it"))
    pass --allow-missing 'head.*' --allow-missing b --rename 'a=b c' to accept it
    """
    for phrase, replace in PHRASES:
        text = phrase.sub(replace, text)
    return _ARGUMENTS.sub(lambda found: " ".join(_options(found[0])), text)


def _options(arguments: str) -> list[str]:
    return [_option(*found.groups()) for found in re.finditer(rf"(\w+)=({_VALUE})", arguments)]


def _option(name: str, value: str) -> str:
    option, metavar = OPTIONS[name]
    if value == "…":
        return f"{option} {metavar}".rstrip()
    given: Any = literal_eval(value)
    if given is True:
        return f"{option} '*'" if metavar else option
    if isinstance(given, dict):
        given = [f"{old}={new}" for old, new in given.items()]
    return " ".join(f"{option} {shlex.quote(item)}" for item in ([given] if isinstance(given, str) else given))


def _path(keys: str) -> str:
    return shlex.quote(".".join(re.findall(r"\['([^']*)'\]", keys)))
