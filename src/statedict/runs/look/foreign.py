"""Checkpoints that others wrote into a directory: recognised by name and content, never changed.

| kind | looks like | metrics are |
|---|---|---|
| `transformers` | `checkpoint-500/` with `trainer_state.json` | what its `log_history` has of that step |
| `accelerate` | `checkpoint_3/` with `random_states_0.pkl` | none |
| `distributed` | `step-500/` with `.metadata`: torchtitan's, or of any `torch.distributed.checkpoint` | none |
| `orbax` | `500/` of a `CheckpointManager` of Orbax, with `_CHECKPOINT_METADATA` | those that it was given |
| `folder` | any other folder of weights that `statedict.load` opens | none |
| `lightning` | `epoch=3-step=500.ckpt`, `last.ckpt` | in its name, and the score by which its callback chose it |
| `sharded` | `model.safetensors.index.json` | none |
| `torch`, `safetensors`, … | `step_500.pt`, `500.pth`: a file of that format | in its name |

The step is the number behind `step` or `iter` in the name, else the one behind `epoch`, else the one at the end if
nothing or a word for a checkpoint stands before it (`500`, `ckpt-500`, `model_500`). Any other number is part of the
name (`resnet50`, `2024-11-22`). `best`, `last` and `final` without `step` have no step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from statedict import formats
from statedict.api.files import load
from statedict.errors import FileError, FormatError, MissingFileError, StateDictError
from statedict.formats import places
from statedict.io.json import parse, read_document
from statedict.io.location import location
from statedict.io.urls import Item, join, redact
from statedict.reports.runs import DAMAGED, FOREIGN, Checkpoint

WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
INDEX = ".index.json"
_SHARD = re.compile(r"-\d+-of-\d+\.")
_BESIDE = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|sampler|dataloader)\b.*|rng_.*"
)
_TRAINER = "trainer_state.json"
_LARGEST = 1e300  # an int may be larger than any float
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


def step_of(name: str) -> int | None:
    """The step in a name.

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
    for suffix in (INDEX, *WEIGHTS):
        name = name.removesuffix(suffix)
    return re.sub(r"-v\d+$", "", name)


def recognize(directory: str, inside: Mapping[str, Item], name: str) -> Checkpoint | None:
    """The checkpoint that another writer left under a name in a directory; None if it is something else."""
    if name.startswith(".") or _BESIDE.fullmatch(name):
        return None
    path, item = join(directory, name), inside[name]
    try:
        places.resolve_inside(directory, name)
    except FormatError as error:
        if step_of(name) is None or not (item.folder or name.endswith((INDEX, *WEIGHTS))):
            return None
        return _make(path, name, "link", 0, item.time, metrics_of(name), error)
    return _read_folder(path, name) if item.folder else _read_file(path, inside, name)


def _make(
    path: str, name: str, kind: str, nbytes: int, time: float, metrics: Mapping[str, float], error: object = None
) -> Checkpoint:
    state, damage = (FOREIGN, "") if error is None else (DAMAGED, str(error))
    return Checkpoint(step_of(name), path, kind, nbytes, time, metrics, state, False, name, damage)


def _read_folder(path: str, name: str) -> Checkpoint | None:
    files = {one: item for one, item in (location(path).contents() or {}).items() if not item.folder}
    kind = next((kind for kind, is_one in _FOLDERS.items() if is_one(files)), None)
    if kind is None:
        return None
    damage: StateDictError | None = None
    try:
        places.find_entry(path)
    except FormatError as error:
        if kind == "folder":
            return None
        damage = error
    metrics: dict[str, float] = {}
    if kind == "transformers":
        try:
            metrics = _read_log(places.resolve_inside(path, _TRAINER), step_of(name))
        except StateDictError as error:
            damage = damage or error
    nbytes, time = sum(item.size for item in files.values()), max(item.time for item in files.values())
    if kind == "orbax":
        nbytes = location(path).size()
        try:
            metrics = _to_numbers(json.loads(load(path).metadata.get("metrics", "{}")))
        except StateDictError as error:
            damage = error
    return _make(path, name, kind, nbytes, time, metrics, damage)


_FOLDERS: dict[str, Any] = {
    "distributed": lambda files: ".metadata" in files or any(name.endswith(".distcp") for name in files),
    "transformers": lambda files: _TRAINER in files,
    "accelerate": lambda files: any(name.startswith("random_states_") for name in files),
    "orbax": lambda files: "_CHECKPOINT_METADATA" in files,
    "folder": lambda files: any(name.endswith((".safetensors", ".bin", INDEX)) for name in files),
}


def _to_numbers(found: Any) -> dict[str, float]:
    items = found.items() if isinstance(found, dict) else ()
    return {key: float(value) for key, value in items if type(value) in (int, float) and abs(value) < _LARGEST}


def _read_log(path: str, step: int | None) -> dict[str, float]:
    """The metrics that a Trainer logged at a step, or at its last step."""
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
        raise FormatError(f"{redact(path)}: not the log of a Trainer ({type(error).__name__}: {error})") from None


def _read_file(path: str, inside: Mapping[str, Item], name: str) -> Checkpoint | None:
    item, metrics = inside[name], metrics_of(name)
    if name.endswith(INDEX):
        first, _, suffix = name.removesuffix(INDEX).rpartition(".")
        shards = re.compile(re.escape(first or suffix) + r"-\d+-of-\d+\..*")
        nbytes = sum(one.size for shard, one in inside.items() if shards.fullmatch(shard))
        return _make(path, name, "sharded", nbytes, item.time, metrics)
    if not name.endswith(WEIGHTS) or _SHARD.search(name):
        return None
    try:
        kind = formats.detect(location(path).open())
        if name.endswith(".ckpt"):
            scores = _read_scores(path, name)
            if scores is not None:
                kind, metrics = "lightning", scores | metrics
    except (FormatError, FileError) as error:
        if step_of(name) is None or name.endswith(".bin") or isinstance(error, MissingFileError):
            return None
        return _make(path, name, "file", item.size, item.time, metrics, error)
    return _make(path, name, kind, item.size, item.time, metrics)


def _read_scores(path: str, name: str) -> dict[str, float] | None:
    """The scores that Lightning's callbacks gave a checkpoint; None if Lightning did not write it."""
    state = load(path)
    if "pytorch-lightning_version" not in state:
        return None
    callbacks = state.get("callbacks")
    found: dict[str, float] = {}
    for callback in callbacks.values() if isinstance(callbacks, dict) else ():
        if not isinstance(callback, dict) or not isinstance(callback.get("monitor"), str):
            continue
        best = callback.get("best_k_models")
        best = best if isinstance(best, dict) else {}
        scores = {PurePosixPath(path).name: score for path, score in best.items() if isinstance(path, str)}
        chosen = callback.get("best_model_path")
        if isinstance(chosen, str) and PurePosixPath(chosen).name == name:
            scores.setdefault(name, callback.get("best_model_score"))
        score: Any = scores.get(name, callback.get("current_score"))
        try:
            found[callback["monitor"]] = float(score)
        except FormatError:
            raise
        except (TypeError, ValueError, OverflowError, RuntimeError):  # not a number that a float holds
            pass
    return found
