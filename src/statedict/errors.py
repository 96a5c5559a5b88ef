"""Every exception of statedict.

    StateDictError
    ├── FormatError (ValueError)          the file cannot be read as a checkpoint
    │   ├── UnknownFormatError            no format recognises it
    │   ├── CorruptFileError              inconsistent or damaged
    │   │   └── TruncatedError            the file ends early
    │   ├── EncodingError (UnicodeDecodeError)   a string of Python 2 is not in the requested encoding
    │   └── LimitError                    it asks for more memory or time than its size justifies
    ├── RefusedError (UnpicklingError)    only running code from the file could make what it holds
    ├── FileError (OSError)               the file system refused
    │   ├── MissingFileError (FileNotFoundError)
    │   └── ExistingFileError (FileExistsError)
    ├── OutOfMemoryError (MemoryError)    there is no more memory
    ├── PathError (KeyError)              no such path in the tree
    │   └── PatternError (AlterError)     a pattern matches nothing, or is not a pattern
    ├── TreeError (ValueError)            a tree that cannot be flattened or rebuilt
    ├── UnsupportedError (TypeError)      a value or dtype that the target cannot hold
    │   └── DeviceError (RuntimeError)    this PyTorch has no such device
    ├── RenameError (ValueError)          a rule is malformed, matches nothing, or makes two names one
    ├── AlterError (ValueError)           an operation on a state cannot be done
    ├── CombineError (ValueError)         states cannot be combined
    ├── RestoreError (ValueError)         the plan does not fit, or writing it failed
    ├── WorkerError (RuntimeError)        a worker of an executor died
    ├── RunError (RuntimeError)           a run's directory is unusable: locked, or another run's
    │   └── ArgumentError (ValueError)    an argument of a manager, a policy or a query is invalid
    └── MissingExtraError (ImportError)   an optional dependency is not installed

A message says what, where, expected, got, and the remedy.
"""

from __future__ import annotations

import errno
from _pickle import UnpicklingError  # pickle.UnpicklingError, without the cost of importing all of pickle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class StateDictError(Exception):
    """The base of everything that statedict raises on purpose."""


class FormatError(StateDictError, ValueError):
    """The file cannot be read as a checkpoint."""


class UnknownFormatError(FormatError):
    """No format recognises the file."""


class CorruptFileError(FormatError):
    """The file is inconsistent or damaged."""


class TruncatedError(CorruptFileError):
    """The file ends early."""


class LimitError(FormatError):
    """The file asks for more memory or time than its size justifies."""


class EncodingError(FormatError, UnicodeDecodeError):
    """A string of Python 2 is not in the requested encoding; a UnicodeDecodeError, as `torch.load` raises."""

    def __init__(self, text: str, error: UnicodeDecodeError | None = None) -> None:
        super().__init__(*(("ascii", b"", 0, 0, text) if error is None else error.args))
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return EncodingError, (self._text,)


class RefusedError(StateDictError, UnpicklingError):
    """Only running code from the file could make its contents."""


class FileError(StateDictError, OSError):
    """The file system refused."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}" if self.filename is not None else Exception.__str__(self)


class MissingFileError(FileError, FileNotFoundError):
    """There is no such file."""


class ExistingFileError(FileError, FileExistsError):
    """The file exists, and replacing it was not allowed."""


def file_error(path: str, doing: str, error: OSError) -> FileError:
    """The FileError for an error of the operating system while `doing` something with `path`."""
    kind = {errno.ENOENT: MissingFileError, errno.EEXIST: ExistingFileError}.get(error.errno or 0, FileError)
    return kind(error.errno, f"{doing}: {error.strerror}", path)


class OutOfMemoryError(StateDictError, MemoryError):
    """The system has no more memory, or a limit allows no more."""


def is_failure_of_code(error: BaseException) -> bool:
    """Whether code failed rather than data: a module or class lacks a name, a function an argument.

    Readers take most errors for damage of the file, but not these: they usually mean another release of a library.
    """
    if isinstance(error, AttributeError):
        return isinstance(error.obj, type | type(errno))
    if isinstance(error, TypeError):
        return "unexpected keyword argument" in str(error)
    return isinstance(error, NameError | ImportError)


class PathError(StateDictError, KeyError):
    """There is no such path in the tree.

    Args:
        args: the message, or the missing key.
        explain: makes the message when it is read, since most callers who miss a key never read it.
    """

    def __init__(self, *args: object, explain: Callable[[], str] | None = None) -> None:
        super().__init__(*args)
        self._explain = explain

    def __str__(self) -> str:
        return Exception.__str__(self) if self._explain is None else self._explain()

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return PathError, (str(self),)


class TreeError(StateDictError, ValueError):
    """The tree cannot be flattened or rebuilt."""


class UnsupportedError(StateDictError, TypeError):
    """The target cannot hold this value or dtype."""


class DeviceError(UnsupportedError, RuntimeError):
    """This PyTorch lacks the device that a file or `map_location` names; a RuntimeError, as `torch.load` raises."""


class RenameError(StateDictError, ValueError):
    """A rule for names is malformed, matches nothing, or makes two names one."""


class AlterError(StateDictError, ValueError):
    """An operation on a state is impossible: nothing matches, or shapes or names conflict."""


class CombineError(StateDictError, ValueError):
    """States cannot be combined: names, shapes or dtypes differ, or a weight or a rule is not valid."""


class PatternError(PathError, AlterError):
    """A pattern matches nothing, or there is none, or it is not a text."""


class RestoreError(StateDictError, ValueError):
    """The state does not fit its target and nothing was written, or writing failed half-way, as the message says."""


class WorkerError(StateDictError, RuntimeError):
    """A worker of an executor died."""


class RunError(StateDictError, RuntimeError):
    """A run's directory is unusable: it is locked, or has another run's checkpoints."""


class ArgumentError(RunError, ValueError):
    """An argument of a manager, a policy or a query of a run is invalid."""


class MissingExtraError(StateDictError, ImportError):
    """An optional dependency is not installed."""
