"""inspect, verify, stats, diff, scan: what is to be said of checkpoints. Dispatch only."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import chain
from typing import Any

from statedict import formats
from statedict.api.companions import find_config, find_heads
from statedict.api.files import load, name_of, tree_of
from statedict.api.names import is_path, split
from statedict.collector import Paused
from statedict.errors import StateDictError, UnsupportedError
from statedict.formats import beside, places
from statedict.io.urls import join, redact, to_name
from statedict.tree.state_dict import StateDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    from statedict.api.names import Path
    from statedict.reports.diff import Diff
    from statedict.reports.outcomes import ScanReport, VerifyReport
    from statedict.reports.stats import StatsReport
    from statedict.reports.summary import Summary


def inspect(
    source: Any, path: str = "", *, format: str | None = None, config: Mapping[str, Any] | None = None
) -> Summary:
    """See what is in a checkpoint or a state_dict without reading a tensor.

    Args:
        source: a path or URL as for `load`, or a tree, as for `save`.
        path: where the state stands in a larger tree; paths in the summary begin with it.
        format: read the file as this format, as for `load`.
        config: how the model is quantized, as `quantization_config` in `config.json` says; by default what that file
            says beside a checkpoint on this machine.

    >>> import statedict
    >>> statedict.inspect("examples/checkpoint.pth").total
    Total(tensors=20, elements=124012, nbytes=496048)
    """
    from statedict.ops.inspect import summarize

    return summarize(tree_of(source, lazy=False, format=format), path, find_config(source, config))


def verify(path: Path, *, values: bool = False, quick: bool = False, format: str | None = None) -> VerifyReport:
    """Check a checkpoint for damage; every byte of it is read once, unless it is to be `quick`.

    Checked are ranges, overlaps, bytes that belong to nothing, an archive's headers against its directory, shards
    against their index; then the CRC-32 of each record of a zip archive, and digests, as in all files of `save`. Of a
    folder also the files beside the checkpoint that `load` opens are read.

    Args:
        path: as for `load`.
        values: also count NaN and infinities, for which the tensors are read a second time.
        quick: the structure only; no byte of a tensor is read, so damage within tensors is not seen.
        format: read the file as this format, as for `load`.

    Returns:
        What was found; `report.ok` says whether nothing is wrong, `report.problems` what is and where,
        `report.unread` which files nobody looked at.

    Raises:
        FileError: it cannot be opened.
        UnsupportedError: it is a tree or a part of a file, which has no bytes of its own.
        UnknownFormatError: it is not a checkpoint; the message says what it seems to be.
        ValueError: both `values` and `quick`.

    >>> import statedict
    >>> print(statedict.verify("examples/checkpoint.pth"))
    examples/checkpoint.pth: fine (torch, 20 tensors in 26 parts, CRC-32 of 26, digests of 0)
    """
    from statedict.ops.verify import examine

    if values and quick:
        raise ValueError("values are counted by reading them, which quick leaves out; ask for one of them")
    file = _whole_file("verify", path)
    source = places.open_checkpoint(file)
    with Paused():
        name, found = formats.checks(source, format)
        others = beside.check_others(file) if beside.is_folder(file) else ()
        return examine(redact(file), name, chain(found, others), values, quick)


def _whole_file(verb: str, source: Any) -> str:
    """The name of a file that a verb reads byte by byte, which it cannot do with a tree or a part of a file."""
    if not is_path(source):
        raise UnsupportedError(
            f"{verb} checks the bytes of a file, and a {type(source).__name__} has none; name its file, or save it"
        )
    name, at = split(source)
    if at:
        raise UnsupportedError(f"{redact(to_name(source))}: {verb} checks a whole file; name {redact(name)} alone")
    return name


def stats(
    source: Any,
    only: Sequence[str] | str | None = None,
    executor: Executor | None = None,
    *,
    format: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> StatsReport:
    """The figures of every tensor: min, max, mean, std, norm, zeros, NaN, Inf, a histogram; and what deserves a look.

    Args:
        source: a path or URL as for `load`, or a tree, as for `save`.
        only: patterns of the tensors to take.
        executor: as for `save`; the figures are the same.
        format: read the file as this format, as for `load`.
        config: how the model is quantized, as for `inspect`.

    Returns:
        What was found, in float64: to about 12 digits of the largest magnitude. Each tensor is read once, in blocks.
        Quantized weights have those of their dequantized numbers, as `report.weights`; packed numbers have none.

    Raises:
        PatternError: a pattern matches nothing.
        StateDictError: what `load` raises.

    >>> import statedict
    >>> weight = statedict.stats("examples/checkpoint.pth")["model_state.fc1.weight"]
    >>> weight.shape, weight.nan, round(weight.std, 5)
    ((120, 400), 0, 0.03371)
    """
    from statedict.ops.stats.survey import survey

    state = tree_of(source, format=format)
    with Paused():
        return survey(state, only, executor, find_config(source, config))


def diff(
    a: Any,
    b: Any,
    *,
    only: Sequence[str] | str | None = None,
    names_only: bool = False,
    numeric: bool = False,
    rtol: float = 0.0,
    atol: float = 0.0,
    deep: bool = False,
    rank: int | None = None,
    executor: Executor | None = None,
    format: str | None = None,
    map: str | None = None,
) -> Diff:
    """How two checkpoints differ: tensors by name and content, optimizers by parameter, all other values by path.

    Args:
        a: a path or URL as for `load`, or a tree, as for `save`.
        b: likewise; their formats may differ. Of two folders all checkpoints are compared that have the same name.
        only: globs over paths; the rest is not looked at.
        names_only: no tensor is read; names, dtypes, shapes and values are compared.
        numeric: tensors are equal as `torch.equal` has it: 0.0 is -0.0, NaN is nothing, and equal numbers of another
            dtype are equal. By default their bytes decide.
        rtol: with `atol`, tensors are `close`, which is no difference, where `|a - b| <= atol + rtol * |b|` everywhere.
        atol: see `rtol`.
        deep: find the rank of each matrix's change, and whether an adapter explains it; it is read once or twice more.
        rank: with `deep`, count adapters up to this rank; by default those with a quarter of the matrix's numbers.
        executor: as for `save`.
        format: read both files as this format, as for `load`.
        map: compare by PyTorch's names, to which those of this map go, as for `alter.map_names`.

    Returns:
        What was found; `found.same` says whether nothing differs. Weights quantized in two ways compare by numbers.

    Raises:
        PatternError: a pattern matches nothing.
        ValueError: `deep` together with `names_only`, or a `rank` below 1 or without `deep`.
        StateDictError: what `load` raises.

    >>> import statedict, numpy
    >>> weight, lora_b, lora_a = numpy.ones((64, 64)), numpy.eye(64, 2), numpy.eye(2, 64)
    >>> found = statedict.diff({"w": weight}, {"w": weight + lora_b @ lora_a}, deep=True)
    >>> found.changed[0].measures.max_abs, found.changed[0].change.verdict, found.changed[0].change.adapter
    (1.0, 'low-rank', 2)
    """
    from statedict.ops.diff.compare import Rule
    from statedict.ops.diff.differ import compare_trees

    if deep and names_only:
        raise ValueError("names_only reads no tensor, and deep takes their numbers; ask for one of them")
    if rank is not None and (rank < 1 or not deep):
        raise ValueError(f"rank={rank}: a rank of 1 or more is looked for, with deep=True")
    with Paused():
        rule, names = Rule(numeric, rtol, atol), (name_of(a), name_of(b))
        trees = _open_pair(a, b, format, map)
        unread = _add_others((a, b), trees)
        found = compare_trees(*trees, names, only, names_only, rule, executor, deep, rank, _find_configs(a, b))
        return replace(found, unread=unread) if unread else found


def _open_pair(a: Any, b: Any, format: str | None, map: str | None) -> tuple[StateDict, StateDict]:
    from statedict.ops.alter.maps import map_pair

    one, other = tree_of(a, format=format), tree_of(b, format=format)
    if map is None:
        return one, other
    known = find_heads(a), find_heads(b)
    family = known[0][1] or known[1][1]
    return map_pair(one, other, f"gguf:{family}" if map == "gguf" and family else map, known[0][0] or known[1][0])


def _find_configs(a: Any, b: Any) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    return find_config(a), find_config(b)


def _add_others(sources: tuple[Any, Any], trees: tuple[StateDict, StateDict]) -> tuple[str, ...]:
    """Add to the trees of two folders the other checkpoints that both hold, under the names of their files.

    Returns:
        Those that only one of the sources holds.
    """
    folders = [to_name(one) if is_path(one) and beside.is_folder(to_name(one)) else "" for one in sources]
    others = [beside.list_checkpoints(folder) if folder else [] for folder in folders]
    for folder, tree in zip(folders, trees, strict=True):
        for name in others[0]:
            if name in others[1]:
                tree[name] = load(join(folder, name))
    sides = ((others[0], others[1], "first"), (others[1], others[0], "second"))
    return tuple(f"{name} (only in the {which})" for one, other, which in sides for name in one if name not in other)


def scan(path: str | os.PathLike[str]) -> ScanReport:
    """List every global that any pickle in a file names, with a verdict. Nothing is unpickled.

    Args:
        path: a file, or a folder for all files in it. Symbolic links that lead out of the folder are not followed.

    Raises:
        FileError: there is no such file, or it cannot be opened.
        UnsupportedError: a tree or a part of a file, which has no bytes of its own.

    >>> import statedict
    >>> report = statedict.scan("examples/checkpoint.pth")
    >>> report.verdict, report.pickles
    ('data', 1)
    >>> report.globals[0].qualified, report.globals[0].why
    ('collections.OrderedDict', 'builds data')
    """
    from statedict.scanner.scan import Scan

    path = _whole_file("scan", path)
    if not os.path.isdir(path):
        return Scan(path).file(path, "").report()
    found, root = Scan(path), os.path.realpath(path)
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted([*names, *(one for one in folders if os.path.islink(os.path.join(folder, one)))]):
            full = os.path.join(folder, name)
            label = os.path.relpath(full, path)
            target = os.path.realpath(full)
            if os.path.islink(full) and os.path.commonpath([root, target]) != root:
                found.damage.append(f"{label}: a symbolic link out of the folder; not followed")
            elif not os.path.isdir(target):
                try:
                    found.file(full, label)
                except StateDictError as error:
                    found.damage.append(f"{label}: {error}")
    return found.report()
