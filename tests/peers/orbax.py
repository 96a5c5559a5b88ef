"""Make the directories of Orbax that the tests read, or restore those recorded; see `make peers`.

python -P orbax.py [--write]

Each has names and times of its own, so what Orbax restores is compared, not bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "formats" / "data" / "orbax.tar.xz"
ARRAYS = (
    "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int32", "int16", "int8", "uint8", "uint32",
    "bool", "complex64", "int4",
)  # fmt: skip
PIECES = (5, 6)
SHARED = (4, 6)


def make_tree() -> dict[str, Any]:
    import jax.numpy as jnp
    import numpy

    return {
        "arrays": {kind: jnp.asarray((numpy.arange(6) % 2).reshape(2, 3), kind) for kind in ARRAYS},
        "list": [jnp.arange(3.0), {"a": jnp.int32(7)}, (jnp.ones(1), None)],
        "none": None, "empty": {}, "no entries": [], "int": 5, "float": 2.5, "bool": True, "numpy": numpy.arange(4),
    }  # fmt: skip


def make_state() -> dict[str, Any]:
    import jax.numpy as jnp
    import optax

    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    return {"params": params, "opt_state": optax.adamw(1e-3).init(params), "step": jnp.int32(3)}


def make_pieces() -> dict[str, Any]:
    import jax.numpy as jnp

    return {"w": jnp.arange(30.0).reshape(PIECES)}


def write(folder: Path) -> None:
    import jax
    import jax.numpy as jnp
    import orbax.checkpoint as ocp
    import orbax.checkpoint.experimental.v1 as v1

    def save(name: str, tree: Any, chunk: int | None = None, **options: Any) -> None:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
            args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=chunk), tree)
            checkpointer.save(folder / name, args=ocp.args.PyTreeSave(tree, save_args=args))

    save("store", make_tree())
    save("folders", make_tree(), use_ocdbt=False)
    save("folders3", make_tree(), use_ocdbt=False, use_zarr3=True)
    save("pieces", make_pieces(), 32)
    save("pieces3", make_pieces(), 32, use_zarr3=True)
    save("texts", {"text": "words", "w": jnp.ones(2)})
    save("array", jnp.arange(3.0))
    save("shared", {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}, "c": jnp.ones(1)})
    save("many", {f"layer {index:03}": {"w": jnp.full(2, index)} for index in range(60)})
    with ocp.CheckpointManager(folder / "run") as manager:
        manager.save(3, args=ocp.args.StandardSave(make_state()))
        both = ocp.args.Composite(state=ocp.args.StandardSave(make_state()), settings=ocp.args.JsonSave({"lr": 0.1}))
        manager.wait_until_finished()
    with ocp.CheckpointManager(folder / "items") as manager:
        manager.save(7, args=both)
        manager.wait_until_finished()
    v1.save_pytree(folder / "v1", make_state())
    v1.save_checkpointables(folder / "v1 items", {"model": {"w": jnp.ones(2)}, "settings": {"lr": 0.1}})
    ranks = [subprocess.Popen([sys.executable, "-P", __file__, "--rank", str(rank), folder]) for rank in (0, 1)]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise RuntimeError("the processes failed")


def write_shared(rank: int, folder: Path) -> None:
    """Write an array of which each of two processes has a half."""
    import jax
    import numpy
    import orbax.checkpoint as ocp

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize("localhost:47821", 2, rank)
    mesh = jax.sharding.Mesh(numpy.array(jax.devices()), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    whole = numpy.arange(24.0, dtype="float32").reshape(SHARED)
    array = jax.make_array_from_callback(SHARED, sharding, lambda index: whole[index])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "processes", {"w": array})


def restore(folder: Path) -> list[str]:
    """The names of the directories that Orbax does not restore to what was saved."""
    import jax
    import numpy
    import orbax.checkpoint as ocp

    wanted = {
        "store": make_tree(), "folders": make_tree(), "folders3": make_tree(), "pieces": make_pieces(),
        "pieces3": make_pieces(), "run/3/default": make_state(), "v1/state": make_state(),
    }  # fmt: skip
    wrong = []
    with ocp.PyTreeCheckpointer() as checkpointer:
        for name, tree in wanted.items():
            here = jax.tree.leaves(checkpointer.restore(folder / name))
            there = jax.tree.leaves(tree)
            same = len(here) == len(there) and all(map(numpy.array_equal, here, there))
            wrong += [] if same else [name]
    return wrong


def main() -> int:
    if "--rank" in sys.argv:
        write_shared(int(sys.argv[-2]), Path(sys.argv[-1]))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "--write" in sys.argv:
            write(folder)
            with tarfile.open(RECORD, "w:xz") as archive:
                for path in sorted(folder.iterdir()):
                    archive.add(path, path.name)
            return 0
        with tarfile.open(RECORD) as archive:
            archive.extractall(folder, filter="data")
        wrong = restore(folder)
    print("\n".join(wrong) or "orbax: restores the directories that are recorded")
    return int(bool(wrong))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
