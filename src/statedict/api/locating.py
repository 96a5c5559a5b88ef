"""Where the models that a configuration names lie: on this disk, in huggingface_hub's cache, or behind a URL."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote

from statedict.api.files import tree_of
from statedict.api.names import split
from statedict.errors import CombineError, FormatError
from statedict.formats.beside import list_own, read_config
from statedict.io.hub_cache import find_snapshot, get_cache, is_repository
from statedict.io.location import location
from statedict.io.urls import is_url, join
from statedict.ops.combine.reference import split_reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from statedict.tree.state_dict import StateDict


class Place(NamedTuple):
    """The path or URL of a model, and that of an adapter to apply to it, if there is one."""

    path: str
    adapter: str = ""

    def open(self) -> StateDict:
        """The model, with its adapter."""
        if not self.adapter:
            return tree_of(self.path)
        from statedict.api.lora import apply

        return apply(self.path, self.adapter)

    def read_config(self) -> dict[str, Any]:
        """Its config.json; empty if there is none."""
        return read_config(split(self.path)[0])


def locate(name: str, folder: str, where: str, download: bool) -> Place:
    """Find a model by the name that a configuration gives it.

    Args:
        name: a path or URL, or `ORG/NAME[@REVISION]` of the hub; of a model, or `MODEL+ADAPTER`.
        folder: that of the configuration, where paths are tried, too.
        where: the configuration, for errors.
        download: whether what is in no cache is read from the hub.

    Raises:
        CombineError: it is not there.
    """
    base, adapter, may_be_file = split_reference(name)
    path = _find(name, folder) if may_be_file or not adapter else None
    if path is None and adapter:
        return Place(*(_find(one, folder) or _find_on_hub(one, where, download) for one in (base, adapter)))
    return Place(path or _find_on_hub(name, where, download))


def _find(name: str, folder: str) -> str | None:
    for path in (name, join(folder, name)):
        place = split(path)[0]
        if is_url(place) or location(place).exists():
            return path
    return None


def _find_on_hub(name: str, where: str, download: bool) -> str:
    repository, _, revision = name.partition("@")
    looked = f"{where}: there is no model {name!r}, here or beside the configuration"
    if not is_repository(repository):
        raise CombineError(looked)
    snapshot = find_snapshot(repository, revision)
    if snapshot is not None and _is_whole(snapshot):
        return snapshot
    looked += f", and {get_cache()} has {'none' if snapshot is None else 'only some of its files'}"
    if "/" not in repository:
        raise CombineError(f"{looked}; the hub's models are OWNER/NAME")
    if not download:
        raise CombineError(f"{looked}; pass download=True to read it from the hub")
    return f"hf://{repository}" + (f"@{quote(revision, safe='')}" if revision else "")


def _is_whole(snapshot: str) -> bool:
    """Whether all weights are there; programs that want a tokenizer only fetch no more than that."""
    try:
        return all(location(join(snapshot, name)).exists() for name in list_own(snapshot))
    except FormatError:
        return False
