"""Why a file or folder is not a checkpoint, and what to do about it."""

from __future__ import annotations

import errno
import os
import re

from statedict.errors import FileError, MissingFileError
from statedict.io.urls import redact

_NOT_READ = "which this version does not read"
_MSGPACK = rb"([\x81-\x8f]|\xde..|\xdf.{4})([\xa1-\xbf]|\xd9.)[ -~]"  # a map whose first key is text

# how a file begins, as a regular expression, then what it is and what to do
_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "is a git-LFS pointer, not the file; run `git lfs pull`"),
    (
        rb"(?i)\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body|script|title|meta)",
        "is an HTML page; the download needs a login or another address",
    ),
    (rb"\s*<\?xml|\s*<Error>", "is XML, as servers send errors; read it and download again"),
    (
        rb'(?i)\s*\{\s*"(errors?|message|detail|msg|title|reason|code|status|statuscode|__type)"',
        "is a server's error message; check the address and the access, and download again",
    ),
    (rb'\{\s*"[^"]*":\s*\{[^}]*"data_offsets"', "is safetensors without its first 8 bytes; fetch it again"),
    (
        rb"\s*[{\[]",
        "is JSON text: an index or a configuration (the weights lie beside it), or a server's error message; "
        "read it and fetch the weights",
    ),
    (rb"\x1f\x8b", "is compressed by gzip; unpack it first"),
    (rb"\xfd7zXZ", "is compressed by xz; unpack it first"),
    (rb"\]\0\0.{2}", "is compressed by LZMA; unpack it first"),
    (rb"BZh", "is compressed by bzip2; unpack it first"),
    (rb"\x28\xb5\x2f\xfd", "is compressed by Zstandard; unpack it first"),
    (rb"\x04\x22\x4d\x18", "is compressed by LZ4; unpack it first"),
    (
        rb"x[\x01\x5e\x9c\xda](?=.{0,16}[^\t-\r -~])|ZF0x",
        "is compressed by zlib, as joblib does; load it with joblib, which runs the code in it, and save its arrays",
    ),
    (rb"7z\xbc\xaf", "is a 7z archive; unpack it first"),
    (rb"Rar!", "is a RAR archive; unpack it first"),
    (rb"Salted__|-----BEGIN PGP|age-encryption\.org|\x85[\x01-\x04]\x0c\x03", "is encrypted; decrypt it first"),
    (
        rb"\0\0.{1,3}\n.{1,3}\n.{1,3}\n.{1,2}[ -~]",
        "is a checkpoint of TensorFlow's first format, of before 2016; load it with tf.compat.v1.train.Saver, which "
        "saves it in the second one",
    ),
    (rb"\x89HDF", "begins as an HDF5 file and is damaged; fetch it again, in binary"),
    (rb"\n.{1,3}\n.{1,120}\x12.(Placeholder|Const|VariableV2)", f"is a TensorFlow graph, {_NOT_READ}; open it there"),
    (rb".{4}TFL3", f"is a TensorFlow Lite model, {_NOT_READ}; open it with TensorFlow"),
    (
        rb"0\d\x03\x04.{26}[^/]{1,99}/data\.pkl",
        "is a checkpoint of GPT-SoVITS: a file of torch.save whose first two bytes are the version of the model; in a "
        "copy write PK over them: `printf PK | dd of=COPY conv=notrunc`",
    ),
    (_MSGPACK, f"looks like msgpack, {_NOT_READ}; open it with the library that wrote it"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP", "is an image; name the checkpoint, or fetch it from another address"),
    (rb"%PDF", "is a PDF document; name the checkpoint, or fetch it from another address"),
    (
        rb"\x7fELF|\xcf\xfa\xed\xfe|\xca\xfe\xba\xbe|MZ.{58}",
        "is a program or a library; name the checkpoint, or fetch it again",
    ),
    (rb"SQLite format 3", "is an SQLite database; name the checkpoint"),
    (rb"PAR1", "is a Parquet file, which holds tables; name the checkpoint"),
    (rb"ARROW1|\xff{4}.{4}\x10\0{3}", "is an Arrow file, which holds tables; name the checkpoint"),
    (
        rb"\((d|l|i)p?[0-9c]|ccopy_reg\n|c__builtin__\n|[}\]]q.",
        'looks like a pickle of protocol 0 or 1; load it with format="pickle"',
    ),
)
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".!qB", ".tmp")

# the same for zip archives: a regular expression for the names in them, one a line
_ARCHIVES: tuple[tuple[str, str], ...] = (
    (r"com\.apple\.CoreML/", "is a Core ML package in a zip archive; unpack it first"),
    (r"(^|/)saved_model\.pb$", f"holds a TensorFlow SavedModel, {_NOT_READ}; unpack it and open it with TensorFlow"),
)

# the same for folders, whose names are sorted
_FOLDERS: tuple[tuple[str, str], ...] = (
    (r"\A\Z", "is an empty folder; fetch the checkpoint, or name its file"),
    (f"({'|'.join(map(re.escape, _UNFINISHED))})$", "holds an unfinished download; fetch it again"),
    (
        r"\.distcp$",
        "holds a distributed checkpoint without its index .metadata; it was not saved or not fetched whole, fetch it",
    ),
    (r"-\d{5}-of-\d{5}\.", "holds shards without their index *.index.json; fetch that too"),
    (r"^blobs\n([^\n]*\n)*snapshots$", "is the root of a Hugging Face cache; name snapshots/REVISION"),
    (
        r"^((checkpoint|step)[-_])?\d+$",
        "holds the checkpoints of a run, each in a folder of its own; name one of these",
    ),
    (
        r"^zero_to_fp32\.py$|^global_step\d+$",
        "is a checkpoint of DeepSpeed; run `python zero_to_fp32.py . OUTPUT` in it and open OUTPUT, or name "
        "mp_rank_00_model_states.pt in the folder of the step, which has the weights unless ZeRO 3 splits them",
    ),
    (
        r"_(model|optim)_states\.pt$",
        "is a step that DeepSpeed saved, a file for each rank; name mp_rank_00_model_states.pt, which has the weights "
        "unless ZeRO 3 splits them; zero_to_fp32.py, in the folder above, merges the ranks",
    ),
    (r"^coremldata\.bin$", "is a compiled Core ML model; name the .mlpackage that it was made from"),
    (
        r"^manifest\.ocdbt$|^ocdbt\.process_\d+$",
        "is an Orbax checkpoint without _METADATA, in which its tree stands; it was not saved or not fetched whole",
    ),
    (r"\.data-\d{5}-of-\d{5}$", "is a TensorFlow checkpoint without its .index; fetch that too"),
    (
        r"^flax_model.*\.msgpack$",
        f"has weights of another framework than PyTorch, {_NOT_READ}; open them with its own library",
    ),
    (
        r"^(config|tokenizer.*|generation_config)\.json$",
        "is a model's folder without its weights; fetch them too (`git lfs pull`, or download the whole repository)",
    ),
    (r"\.py$", "is a folder of source code; name the checkpoint"),
)


def describe_file(head: bytes, size: int, formats: str) -> str:
    """Say what a file is that is not a checkpoint, and the remedy; `head` is the first of its `size` bytes."""
    if not head:
        return "is empty; fetch or save it again"
    if not head.strip(b"\0"):
        return "begins with zero bytes only; its write was cut short, fetch it again"
    if re.match(rb"\0{16}[\x04-\x7f]\0{3}\x08[\0-\x20]\x10", head):  # two versions, no levels, a description
        return f"is Paddle's binary format (.pdiparams is one), {_NOT_READ}; load it with paddle and save a state_dict"
    if not head[:16].strip(b"\0"):
        return "begins with zero bytes where its header should be; its write or download was cut short, fetch it again"
    head = head.removeprefix(b"\xef\xbb\xbf")  # a text's mark of UTF-8
    text = " ".join(head.decode("utf-8", "ignore").split())
    line = repr(text[:80])[1:-1] + "…" * (len(text) > 80) if text.isprintable() and len(text) > len(head) / 2 else ""
    for pattern, what in _STRANGERS:
        if re.match(pattern, head, re.DOTALL):
            quoted = line and _NOT_READ not in what and head.lstrip()[:1] in (b"{", b"<") and size < 4096
            return what.replace(";", f" ({line});", 1) if quoted else what
    if line:
        return f"is text ({line}); name the checkpoint, or fetch it again"
    short = f"; it has only {size:,} bytes and looks truncated, fetch it again" if size < 64 else ""
    return f"no known checkpoint begins with {head[:8]!r}; formats are {formats}{short}"


def describe_archive(names: list[str]) -> str:
    """Say what a zip archive is that has no checkpoint, and the remedy; empty if its names do not tell."""
    return _find(_ARCHIVES, names)


def _find(table: tuple[tuple[str, str], ...], names: list[str]) -> str:
    lines = "\n".join(names)
    return next((what for pattern, what in table if re.search(pattern, lines, re.MULTILINE)), "")


def describe_folder(path: str, names: list[str]) -> str:
    """Say what a folder is that has no checkpoint, and the remedy; empty if its names do not tell."""
    what = _find(_FOLDERS, names)
    return what and f"{redact(path)}: {what}"


def find_unfinished(path: str) -> str:
    """Say why a file looks like an unfinished download: its name, or a file beside it."""
    why = next((f"its name ends with {ending}" for ending in _UNFINISHED if path.endswith(ending)), "") or next(
        (f"{os.path.basename(path)}{ending} lies beside it" for ending in _UNFINISHED if os.path.exists(path + ending)),
        "",
    )
    return f"{why}, so the download is not finished; let it finish" if why else ""


def explain_unopened(path: str, error: FileError) -> FileError:
    """Add the cause to the error for a local file that cannot be opened, if it can be told."""
    cause = find_unfinished(path)
    if os.path.islink(path) and isinstance(error, MissingFileError):
        cause = f"it is a symbolic link to {os.readlink(path)}, which is not there; fetch that or link anew"
    elif error.errno == errno.EACCES:
        cause = "you may not read it; ask its owner, or change its permissions with chmod"
    return type(error)(error.errno, f"{error.strerror}; {cause}", path) if cause else error
