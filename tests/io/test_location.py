"""A Location opens, lists and publishes, whether it is on disk or in a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from statedict.errors import MissingFileError
from statedict.io.location import Location, location
from statedict.io.pipeline import put_bytes
from statedict.io.urls import join


def here(folder: Path) -> Location:
    return location(str(folder))


def test_what_is_published_is_listed_opened_and_measured(tmp_path: Path) -> None:
    file = location(join(str(tmp_path), "a"))
    assert not file.exists()
    file.publish(lambda sink: put_bytes(b"three", sink))
    assert file.exists()
    assert bytes(file.open().read(0, 5)) == b"three"
    assert (file.size(), here(tmp_path).size()) == (5, 5)
    assert here(tmp_path).names() == ["a"]
    assert [(name, item.size, item.folder) for name, item in (here(tmp_path).contents() or {}).items()] == [
        ("a", 5, False)
    ]


def test_a_file_is_no_folder_and_lists_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    file = here(tmp_path / "a")
    assert (file.is_folder(), file.names(), file.contents()) == (False, None, None)
    assert here(tmp_path).is_folder()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for read in (here(tmp_path / "none").open, here(tmp_path / "none").size):
        with pytest.raises(MissingFileError, match="none: cannot open"):
            read()


def test_a_file_and_a_folder_with_what_is_in_it_are_removed(tmp_path: Path) -> None:
    inside = location(str(tmp_path / "folder" / "a"))
    inside.make_folder_above()
    inside.publish(lambda sink: put_bytes(b"x", sink))
    inside.remove()
    assert here(tmp_path / "folder").names() == []
    inside.publish(lambda sink: put_bytes(b"x", sink))
    here(tmp_path / "folder").remove()
    assert here(tmp_path).names() == []
    with pytest.raises(FileNotFoundError):
        inside.remove()


def test_a_url_that_ends_in_a_slash_is_a_folder_and_asks_for_many_at_a_time() -> None:
    assert location("s3://bucket/a/").is_folder()
    assert not location("s3://bucket/a").is_folder()
    assert location("s3://bucket/a").workers > location("a").workers == 1
