"""Output as the terminal can show it: its colours, characters and width, and a pager for what is longer than it.

Pipes and files get everything, as wide as it is.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import click

from statedict.render.text import STAND_IN, Screen, screen

_LINES = 1_000  # on a terminal, without --all
_ALL = "statedict.all"


def _remember(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta[_ALL] = value
    return value


def all_option(text: str = "Print every line, to a terminal too.", **options: Any) -> Callable[[Any], Any]:
    """`--all`: a command with it prints up to 1,000 lines to a terminal, without those in the middle."""
    return click.option("--all", is_flag=True, callback=_remember, help=text, **options)


ALL = all_option(expose_value=False)


def prepare() -> None:
    """Set up standard output and error: stand-ins for what they lack, and how wide tables may be."""
    encoding = "ascii" if os.environ.get("LC_ALL") in ("C", "POSIX") else None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=STAND_IN, encoding=encoding)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    screen.set(Screen(width, getattr(sys.stdout, "encoding", None) or "utf-8"))


def wants_colours() -> bool:
    """Whether to colour: as https://no-color.org, https://force-color.org and http://bixense.com/clicolors say."""
    env = os.environ
    if env.get("NO_COLOR"):
        return False
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
        if env.get(name):
            return env[name] != "0"
    return sys.stdout.isatty() and env.get("TERM") != "dumb" and env.get("CLICOLOR") != "0"


def echo(lines: Iterable[str], paged: bool = True) -> None:
    """Print lines, which may be styled."""
    shown = "\n".join(lines).split("\n")
    if sys.stdout.isatty():
        context = click.get_current_context(silent=True)
        if context is not None and not context.meta.get(_ALL, True) and len(shown) > _LINES:
            more = f"… {len(shown) - _LINES:,} more lines, --all shows them"
            shown[_LINES // 2 : -_LINES // 2] = [click.style(more, bold=True)]
        text = "\n".join(shown) if wants_colours() else click.unstyle("\n".join(shown))
        if paged and len(shown) >= shutil.get_terminal_size().lines and _page(text + "\n"):
            return
    write("\n".join(shown))


def write(text: str, err: bool = False, nl: bool = True) -> None:
    """Print a text, in the encoding of the stream even if that is ASCII, for which `click.echo` takes UTF-8."""
    click.echo(text, sys.stderr if err else sys.stdout, nl=nl)


def _page(text: str) -> bool:
    """Show a text by the user's pager, as git does; False if there is none."""
    pager = os.environ.get("PAGER", "less" if shutil.which("less") else "")
    if pager in ("", "cat") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    encoding = screen.get().encoding
    defaults = {"LESS": "FRX", "LV": "-c"} | ({"LESSCHARSET": "utf-8"} if encoding == "utf-8" else {})
    process = subprocess.Popen(pager, shell=True, stdin=subprocess.PIPE, env=defaults | os.environ)
    assert process.stdin is not None
    with suppress(OSError, KeyboardInterrupt), process.stdin:  # it ended before the text did
        process.stdin.write(text.encode(encoding, STAND_IN))
    while True:
        with suppress(KeyboardInterrupt):  # means the pager
            return process.wait() not in (126, 127)  # the shell did not find it
