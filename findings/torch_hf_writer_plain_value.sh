#!/usr/bin/env bash
# Versions: torch 2.13.0, safetensors 0.8.0, numpy 2.4.6, Python 3.11, Linux x86-64, CPU, one process.
#
# Behaviour: DCP's `HuggingFaceStorageWriter` takes a state dict with a plain value beside the tensors, such as
# `"epoch": 3`. It writes the value with `torch.save` and the safetensors bytes behind it, both into
# `model-00001-of-00001.safetensors`, and an index that names the file for both. The save raises nothing, and then
# neither safetensors nor `torch.load` nor DCP's own `HuggingFaceStorageReader` opens the file. Both halves are whole:
# cut apart they load. (With a weight of two numbers, not 100,000, `torch.load` of the bytes finds the zip and returns
# 3, the plain value alone. With `enable_consolidation=True` the save raises, since it reads the file.)
#
# A confident guess: the writer refuses what safetensors cannot hold, or leaves it out, or writes it to another file.
#
# Output seen:
#   saved without an error: model-00001-of-00001.safetensors, model.safetensors.index.json
#   the file starts with b'PK\x03\x04'
#   safetensors raised SafetensorError: Error while deserializing header: header too large
#   torch.load raised SafetensorError: Error while deserializing header: header too large
#   torch.load of the bytes raised RuntimeError: PytorchStreamReader failed reading zip archive
#   HuggingFaceStorageReader raised SafetensorError: Error while deserializing header: header too large
#   cut apart: epoch 3, weight (100000,)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
cat > "$work/plain.py" <<'PY'
import io
import sys
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

folder = Path(sys.argv[1])
state = {"weight": torch.ones(100_000), "epoch": 3}
dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(folder)), no_dist=True)
print("saved without an error:", ", ".join(sorted(path.name for path in folder.iterdir())))
file = folder / "model-00001-of-00001.safetensors"
data = file.read_bytes()
print("the file starts with", data[:4])


def attempt(title, call):
    try:
        call()
        print(title, "opened it")
    except Exception as error:
        print(f"{title} raised {type(error).__name__}: {str(error).partition(': failed finding')[0]}")


attempt("safetensors", lambda: safetensors.torch.load_file(file))
attempt("torch.load", lambda: torch.load(file))
attempt("torch.load of the bytes", lambda: torch.load(io.BytesIO(data)))
attempt("HuggingFaceStorageReader", lambda: HuggingFaceStorageReader(str(folder)).read_metadata())
end = data.index(b"PK\x05\x06") + 22  # the last record of a zip has 22 bytes
weight = safetensors.torch.load(data[end:])["weight"]
print(f"cut apart: epoch {torch.load(io.BytesIO(data[:end]))}, weight {tuple(weight.shape)}")
PY
"$work/venv/bin/python" -W ignore "$work/plain.py" "$work/checkpoint" | tee "$work/output"
diff "$work/output" - <<'SEEN'
saved without an error: model-00001-of-00001.safetensors, model.safetensors.index.json
the file starts with b'PK\x03\x04'
safetensors raised SafetensorError: Error while deserializing header: header too large
torch.load raised SafetensorError: Error while deserializing header: header too large
torch.load of the bytes raised RuntimeError: PytorchStreamReader failed reading zip archive
HuggingFaceStorageReader raised SafetensorError: Error while deserializing header: header too large
cut apart: epoch 3, weight (100000,)
SEEN
