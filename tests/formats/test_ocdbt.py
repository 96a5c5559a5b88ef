"""OCDBT stores and zarr arrays that TensorStore itself writes, of shapes that Orbax rarely makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import tensorstore

from statedict.errors import CorruptFileError, FormatError, LimitError
from statedict.formats.orbax import ocdbt
from statedict.formats.orbax.zarr import Array
from statedict.io.json import parse
from statedict.io.source import BytesSource


def open_store(folder: Path, **config: Any) -> Any:
    base = {"driver": "ocdbt", "base": f"file://{folder}/", "config": config}
    return tensorstore.KvStore.open(base).result()


@pytest.mark.parametrize("compression", [None, {"id": "zstd"}])
@pytest.mark.parametrize(("node", "inline"), [(400, 10), (1 << 20, 1000), (800, 0)])
def test_a_store_of_many_nodes_has_the_keys_and_values_of_tensorstore(
    tmp_path: Path, node: int, inline: int, compression: Any
) -> None:
    live = open_store(tmp_path, max_decoded_node_bytes=node, max_inline_value_bytes=inline, compression=compression)
    wanted = {f"layers.{index}/{'x' * (index % 7)}c": bytes(index % 40) for index in range(150)}
    write(live, wanted)
    store = ocdbt.Store(str(tmp_path))
    assert store.values.keys() == wanted.keys()
    assert {key: read(store, key) for key in wanted} == wanted
    assert [*store.faults()] == []
    assert (len(store.nodes) > 5) is (node < 1000)


def write(live: Any, values: dict[str, bytes]) -> None:
    with tensorstore.Transaction() as transaction:
        for key, value in values.items():
            live.with_transaction(transaction)[key] = value


def read(store: ocdbt.Store, key: str) -> bytes:
    found = store.get(key)
    assert found is not None
    return bytes(found.read(0, found.size))


def test_an_empty_store_has_no_keys(tmp_path: Path) -> None:
    live = open_store(tmp_path)
    live.write("a", b"1").result()
    live.delete_range(tensorstore.KvStore.KeyRange("", "z")).result()
    assert ocdbt.Store(str(tmp_path)).values == {}


def make(folder: Path, **config: Any) -> bytes:
    open_store(folder, compression=None, **config).write("key", b"value").result()
    return (folder / ocdbt.MANIFEST).read_bytes()


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        (lambda data: data[:10], CorruptFileError, "ends within its header"),
        (lambda data: b"\0" + data[1:], CorruptFileError, "not a part of an OCDBT store"),
        (lambda data: data[:-1], CorruptFileError, "another length"),
        (lambda data: data[:12] + b"\1" + data[13:], FormatError, "version 1 of OCDBT"),
        (lambda data: data[:30] + b"\1" + data[31:], FormatError, "numbered manifests"),
        (lambda data: data[:31] + b"\xff" * 12 + data[43:], CorruptFileError, "over 64 bits"),
    ],
    ids=["short", "magic", "length", "version", "numbered", "varint"],
)
def test_a_damaged_manifest_is_an_error(tmp_path: Path, change: Any, error: type[Exception], what: str) -> None:
    data = change(make(tmp_path))
    (tmp_path / ocdbt.MANIFEST).write_bytes(data)
    with pytest.raises(error, match=what):
        ocdbt.Store(str(tmp_path))


def test_every_byte_of_the_index_may_be_wrong_and_costs_no_more_than_an_error(tmp_path: Path) -> None:
    make(tmp_path)
    for file in (tmp_path / ocdbt.MANIFEST, *(tmp_path / "d").iterdir()):
        data = file.read_bytes()
        for at in range(len(data)):
            for value in (0, 0x7F, 0xFF):
                file.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
                try:
                    store = ocdbt.Store(str(tmp_path))
                    store.open_all()
                    for key in store.values:
                        read(store, key)
                except (FormatError, OSError):
                    pass
        file.write_bytes(data)


def test_a_node_that_takes_too_much_memory_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(open_store(tmp_path, compression={"id": "zstd"}), {f"{index % 10}{index:050}": b"" for index in range(100)})
    monkeypatch.setattr(ocdbt, "_RESERVE", 2500)
    monkeypatch.setattr(ocdbt, "_FACTOR", 0)
    with pytest.raises(LimitError, match=r"unpacks to over|too many or too long keys for its size"):
        ocdbt.Store(str(tmp_path))


def zarr(version: int, shape: tuple[int, ...], chunk: tuple[int, ...], kind: str, inner: Any) -> dict[str, Any]:
    if version == 2:
        packed = {"id": "zstd", "level": 1}
        return {"driver": "zarr", "metadata": {"shape": shape, "chunks": chunk, "dtype": kind, "compressor": packed}}
    codecs: list[Any] = [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1}}]
    if inner:
        codecs = [{"name": "sharding_indexed", "configuration": {"chunk_shape": inner, "codecs": codecs}}]
    grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
    return {"driver": "zarr3", "metadata": {"shape": shape, "chunk_grid": grid, "data_type": kind, "codecs": codecs}}


@pytest.mark.parametrize(
    ("version", "shape", "chunk", "kind", "inner"),
    [
        (2, (7, 5), (3, 2), "<f4", None),
        (2, (), (), "<i8", None),
        (2, (9,), (9,), "|u1", None),
        (3, (7, 5), (3, 2), "float32", None),
        (3, (8, 6), (4, 6), "int16", (2, 3)),
        (3, (3, 4, 5), (2, 4, 4), "bfloat16", (1, 2, 2)),
        (3, (), (), "bool", None),
    ],
    ids=str,
)
def test_arrays_in_chunks_and_shards_are_those_of_tensorstore(
    tmp_path: Path, version: int, shape: tuple[int, ...], chunk: tuple[int, ...], kind: str, inner: Any
) -> None:
    spec = zarr(version, shape, chunk, kind, inner)
    live = tensorstore.open(spec | {"kvstore": f"file://{tmp_path}/a/", "create": True}).result()
    whole = numpy.arange(int(numpy.prod(shape)) or 1).reshape(shape).astype(live.dtype.numpy_dtype)
    live.write(whole).result()
    values = {
        path.relative_to(tmp_path / "a").as_posix(): BytesSource(path.read_bytes(), path.name)
        for path in (tmp_path / "a").rglob("*")
        if path.is_file()
    }
    document = values[".zarray" if version == 2 else "zarr.json"]
    tensor = Array(parse(document.read(0, document.size), "x"), values, "", "x", False).tensor()
    assert tensor.raw() == whole.tobytes()
    for axis in range(len(shape)):
        part = [slice(None)] * len(shape)
        part[axis] = slice(1, None, 2)
        assert tensor[tuple(part)].contiguous().raw() == whole[tuple(part)].tobytes()
    if len(shape) == 2:
        assert tensor[1:3, 1:4].contiguous().raw() == whole[1:3, 1:4].tobytes()


def test_a_crc_of_the_index_of_a_shard_that_differs_is_damage() -> None:
    spec = zarr(3, (4,), (4,), "float32", (2,))["metadata"] | {
        "zarr_format": 3,
        "chunk_key_encoding": {"name": "default"},
    }
    spec["codecs"][0]["configuration"]["index_codecs"] = [{"name": "bytes"}, {"name": "crc32c"}]
    document = {key: [*value] if isinstance(value, tuple) else value for key, value in spec.items()}
    document["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": [4]}}
    document["codecs"][0]["configuration"]["chunk_shape"] = [2]
    tensor = Array(document, {"c/0": BytesSource(bytes(40))}, "", "x", True).tensor()
    with pytest.raises(CorruptFileError, match="x: the CRC-32C of the index of a shard differs"):
        tensor.raw()
    with pytest.raises(CorruptFileError, match="lie outside"):
        Array(document, {"c/0": BytesSource(bytes(10))}, "", "x", True).tensor().raw()
