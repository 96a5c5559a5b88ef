"""How a tar archive begins."""

from __future__ import annotations


def is_tar(head: bytes) -> bool:
    """Whether a file begins with the header of a tar archive, by its magic or by its checksum."""
    if len(head) < 512 or not head[0]:
        return False
    if head[257:262] == b"ustar":
        return True
    try:
        return sum(head[:148]) + 256 + sum(head[156:512]) == int(head[148:156].strip(b"\0 "), 8)
    except ValueError:
        return False
