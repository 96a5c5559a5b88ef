"""Text for terminals."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text from a file, with what could steer a terminal escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
