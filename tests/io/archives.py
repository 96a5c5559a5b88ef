"""Archives by Python's own zipfile, the oracle of ours."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping


def stored(
    records: Mapping[str, bytes], comment: bytes = b"", method: int = zipfile.ZIP_STORED, level: int | None = None
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=level) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
        archive.comment = comment
    return file.getvalue()


def deflated(records: Mapping[str, bytes]) -> bytes:
    return stored(records, method=zipfile.ZIP_DEFLATED)
