#!/usr/bin/env bash
# Versions: gguf 0.19.0 (from PyPI), numpy 2.4.6, Python 3.11, Linux x86-64.
#
# Behaviour: GGUF's metadata may hold arrays of arrays, and `GGUFWriter.add_array` writes them. `gguf-new-metadata`,
# which copies a file to set a name or a chat template, writes every other array of arrays as one flat array. It exits with 0
# and prints nothing of it, so keys that nobody asked it to touch have another type and no longer tell which elements
# belong together. It takes `ReaderField.contents()`, which joins the inner arrays although `ReaderField.types` still
# says ARRAY, ARRAY. Beside it, `add_string("")` and `add_array([])` write no key at all, so that an empty value cannot
# be told from a key that was never set.
#
# A confident guess: a tool that sets one key copies the others as they are, and a writer writes each key that it is
# given.
#
# Output seen:
#   written: {'a.pairs': [[1, 2], [3, 4]], 'a.words': [['x'], ['y', 'z']], 'a.text': '', 'a.none': []}
#   read:    {'a.pairs': [1, 2, 3, 4], 'a.words': ['x', 'y', 'z']}
#   types:   {'a.pairs': 'ARRAY ARRAY INT32', 'a.words': 'ARRAY ARRAY STRING'}
#   after gguf-new-metadata --general-name n, which exits with 0:
#   types:   {'a.pairs': 'ARRAY INT32', 'a.words': 'ARRAY STRING'}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
cat > "$work/nested.py" <<'PY'
import os
import subprocess
import sys

import gguf

os.chdir(sys.argv[1])
pairs = {"a.pairs": [[1, 2], [3, 4]], "a.words": [["x"], ["y", "z"]], "a.text": "", "a.none": []}
writer = gguf.GGUFWriter("in.gguf", "llama")
for key, value in pairs.items():
    (writer.add_string if isinstance(value, str) else writer.add_array)(key, value)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def fields(path):
    return {key: field for key, field in gguf.GGUFReader(path).fields.items() if key.startswith("a.")}


def types(path):
    return {key: " ".join(kind.name for kind in field.types) for key, field in fields(path).items()}


print("written:", pairs)
print("read:   ", {key: field.contents() for key, field in fields("in.gguf").items()})
print("types:  ", types("in.gguf"))
command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "in.gguf", "out.gguf", "--general-name", "n"]
done = subprocess.run(command, capture_output=True, check=False)
print(f"after gguf-new-metadata --general-name n, which exits with {done.returncode}:")
print("types:  ", types("out.gguf"))
PY
"$work/venv/bin/python" "$work/nested.py" "$work" 2> /dev/null | tee "$work/output"
diff "$work/output" - <<'SEEN'
written: {'a.pairs': [[1, 2], [3, 4]], 'a.words': [['x'], ['y', 'z']], 'a.text': '', 'a.none': []}
read:    {'a.pairs': [1, 2, 3, 4], 'a.words': ['x', 'y', 'z']}
types:   {'a.pairs': 'ARRAY ARRAY INT32', 'a.words': 'ARRAY ARRAY STRING'}
after gguf-new-metadata --general-name n, which exits with 0:
types:   {'a.pairs': 'ARRAY INT32', 'a.words': 'ARRAY STRING'}
SEEN
