"""Checkpoints that others wrote into a directory: recognised by their names and their content, read and never changed.

| kind | looks like | metrics are |
|---|---|---|
| `transformers` | `checkpoint-500/` with `trainer_state.json` | what its `log_history` has of that step |
| `accelerate` | `checkpoint_3/` with `random_states_0.pkl` | none |
| `distributed` | `step-500/` with `.metadata`: torchtitan's, or of any `torch.distributed.checkpoint` | none |
| `folder` | any other folder of weights that `statedict.load` opens | none |
| `lightning` | `epoch=3-step=500.ckpt`, `last.ckpt` | in its name, and the score by which its callback chose it |
| `sharded` | `model.safetensors.index.json` | none |
| `torch`, `safetensors`, … | `step_500.pt`, `500.pth`: a file of that format | in its name |

The step is the number behind `step` or `iter` in the name; without one that behind `epoch`; without that the one which
ends it, if nothing else or a word for a checkpoint stands before it (`500`, `ckpt-500`, `model_500`). Any other number
is part of a name (`resnet50`, `2024-11-22`). Names of a series of one (best, last, final) without `step` have none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from statedict import formats
from statedict.api.files import load
from statedict.errors import FileError, FormatError, MissingFileError, StateDictError
from statedict.formats import places
from statedict.io.json import parse, read_document
from statedict.io.location import location
from statedict.io.urls import Item, join, redact

_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_INDEX = ".index.json"
_SHARD = re.compile(r"-\d+-of-\d+\.")
_BESIDE = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|sampler|dataloader)\b.*|rng_.*"
)
_TRAINER = "trainer_state.json"
_NOT_METRICS = re.compile(
    r"epoch|step|total_flos|.*_runtime|.*_per_second|num_input_tokens_seen|.*_model_preparation_time"
)
_NUMBER = r"(?>-?(?:\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|inf))"
_METRIC = re.compile(rf"(?:^|[-_.])([A-Za-z][\w/]*?)=({_NUMBER})(?=$|[-_.])")
_STEPS = re.compile(r"(?<![A-Za-z])(?:global)?(?:step|iter|iteration)s?[-_=.]*(\d+)(?![\d.]*\d)", re.IGNORECASE)
_EPOCHS = re.compile(r"(?<![A-Za-z])epochs?[-_=.]*(\d+)(?![\d.]*\d)", re.IGNORECASE)
_ONE = re.compile(r"(?:^|[-_.])(best|last|latest|final|newest)(?:$|[-_.])", re.IGNORECASE)
_NUMBERED = re.compile(
    r"(?:^|(?:^|.*[-_. ])(?:ckpt|chkpt|checkpoint|model|weights?|state|state_dict|snapshot|saved?|params)s?[-_.= ]?)"
    r"(\d{1,18})(?:[-_.](?:ema|avg|swa))?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A checkpoint of another writer.

    Attributes:
        step: from its name; None if that has none.
        path: the file or folder, or its URL.
        kind: of the table above.
        nbytes: of the file, or of the files in the folder.
        time: when it was changed, in seconds since 1970.
        metrics: by name.
        damage: why it is none that can be opened; None if nothing is known against it.
    """

    step: int | None
    path: str
    kind: str
    nbytes: int
    time: float
    metrics: Mapping[str, float]
    damage: str | None = None


def step_of(name: str) -> int | None:
    """The step that a name has.

    >>> [step_of(name) for name in ("epoch=3-step=500.ckpt", "ckpt-500.pth", "epoch_3.pt", "best-7.pt", "resnet50.pt")]
    [500, 500, 3, None, None]
    """
    stem = _stem(name)
    for pattern in (_STEPS, _EPOCHS) if not _ONE.search(stem) else (_STEPS,):
        found = pattern.findall(stem)
        if found:
            return int(found[-1][:18])
    if _ONE.search(stem):
        return None
    numbered = _NUMBERED.fullmatch(_METRIC.sub("", stem))
    return int(numbered[1]) if numbered else None


def metrics_of(name: str) -> dict[str, float]:
    """The metrics in a name, as Lightning writes them.

    >>> metrics_of("epoch=3-step=500-val_loss=0.12.ckpt")
    {'val_loss': 0.12}
    """
    found = {key.lstrip("_"): float(number) for key, number in _METRIC.findall(_stem(name))}
    return {key: number for key, number in found.items() if key not in ("epoch", "step", "global_step", "v")}


def _stem(name: str) -> str:
    for suffix in (_INDEX, *_SUFFIXES):
        name = name.removesuffix(suffix)
    return re.sub(r"-v\d+$", "", name)


def recognize(directory: str, name: str, item: Item) -> Foreign | None:
    """The checkpoint of that name in a directory; None if it is none."""
    if name.startswith(".") or _BESIDE.fullmatch(name):
        return None
    try:
        places.inside(directory, name)
    except FormatError as error:
        step = step_of(name) if item.folder or name.endswith((_INDEX, *_SUFFIXES)) else None
        path = join(directory, name)
        return None if step is None else Foreign(step, path, "link", 0, item.time, metrics_of(name), str(error))
    return _folder(join(directory, name), name) if item.folder else _file(directory, name, item)


def _folder(path: str, name: str) -> Foreign | None:
    inside = location(path).contents() or {}
    files = {one: item for one, item in inside.items() if not item.folder}
    kind = next((kind for kind, is_one in _FOLDERS.items() if is_one(files)), None)
    if kind is None:
        return None
    damage = None
    try:
        places.entry(path)
    except FormatError as error:
        if kind == "folder":
            return None
        damage = str(error)
    nbytes, time = sum(item.size for item in files.values()), max(item.time for item in files.values())
    metrics: dict[str, float] = {}
    if kind == "transformers":
        try:
            metrics = _read_log(places.inside(path, _TRAINER), step_of(name))
        except StateDictError as error:
            damage = damage or str(error)
    return Foreign(step_of(name), path, kind, nbytes, time, metrics, damage)


_FOLDERS: dict[str, Any] = {
    "distributed": lambda files: ".metadata" in files or any(name.endswith(".distcp") for name in files),
    "transformers": lambda files: _TRAINER in files,
    "accelerate": lambda files: any(name.startswith("random_states_") for name in files),
    "folder": lambda files: any(name.endswith((".safetensors", ".bin", _INDEX)) for name in files),
}


def _read_log(path: str, step: int | None) -> dict[str, float]:
    """The numbers of the log's records of a step, or of its last step."""
    state = parse(read_document(location(path).open()), redact(path), constants=True)
    try:
        records = [record for record in state["log_history"] if isinstance(record, dict)]
        step = state.get("global_step", step) if step is None else step
        return {
            key: float(value)
            for record in records
            if record.get("step") == step
            for key, value in record.items()
            if type(value) in (int, float) and not _NOT_METRICS.fullmatch(key)
        }
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise FormatError(f"{redact(path)}: is no log of a Trainer ({type(error).__name__}: {error})") from None


def _file(directory: str, name: str, item: Item) -> Foreign | None:
    path = join(directory, name)
    if name.endswith(_INDEX):
        return Foreign(step_of(name), path, "sharded", _of_shards(directory, name), item.time, metrics_of(name))
    if not name.endswith(_SUFFIXES) or _SHARD.search(name):
        return None
    step, metrics = step_of(name), metrics_of(name)
    try:
        kind = formats.detect(location(path).open())
        if name.endswith(".ckpt"):
            scores = _scores(path, name)
            if scores is not None:
                kind, metrics = "lightning", scores | metrics
    except (FormatError, FileError) as error:
        if step is None or name.endswith(".bin") or isinstance(error, MissingFileError):
            return None
        return Foreign(step, path, "file", item.size, item.time, metrics, str(error))
    return Foreign(step, path, kind, item.size, item.time, metrics)


def _of_shards(directory: str, name: str) -> int:
    stem = name.removesuffix(_INDEX)
    first, _, suffix = stem.rpartition(".")
    shards = re.compile(re.escape(first or suffix) + r"-\d+-of-\d+\..*")
    return sum(item.size for one, item in (location(directory).contents() or {}).items() if shards.fullmatch(one))


def _scores(path: str, name: str) -> dict[str, float] | None:
    """The scores that Lightning's callbacks gave a checkpoint; None if Lightning has not written it."""
    state = load(path)
    if "pytorch-lightning_version" not in state:
        return None
    callbacks = state.get("callbacks")
    return dict(_list_callbacks(callbacks, name)) if isinstance(callbacks, dict) else {}


def _list_callbacks(callbacks: Mapping[Any, Any], name: str) -> Iterator[tuple[str, float]]:
    for callback in callbacks.values():
        if not isinstance(callback, dict) or not isinstance(callback.get("monitor"), str):
            continue
        best = callback.get("best_k_models")
        scores = (
            {PurePosixPath(path).name: score for path, score in best.items() if isinstance(path, str)}
            if isinstance(best, dict)
            else {}
        )
        chosen = callback.get("best_model_path")
        if isinstance(chosen, str) and PurePosixPath(chosen).name == name:
            scores.setdefault(name, callback.get("best_model_score"))
        score = scores.get(name, callback.get("current_score"))
        try:
            yield callback["monitor"], float(score)  # type: ignore[arg-type]
        except FormatError:
            raise
        except (TypeError, ValueError, OverflowError, RuntimeError):  # it is no number, or one that no float holds
            pass
