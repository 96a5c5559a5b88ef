#!/usr/bin/env bash
# Versions: torch 2.13.0 (CPU), numpy 2.4.6, Python 3.11, Linux x86-64.
#
# Behaviour: the state of an optimizer may hold plain values beside tensors, and state_dict gives them as they are.
# Optimizer.load_state_dict rebuilds whatever iterates and is no dict as type(value)(generator), which is right for lists
# and tuples. Of a text that makes the text of the generator: "phase two" comes back as "<generator object ...>", without
# a warning. A text in param_groups comes back as it was.
#
# A confident guess: load_state_dict gives back the text that state_dict gave.
#
# Output seen:
#   saved 'phase two', loaded '<generator object'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import copy

import torch

weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
weight.sum().backward()
optimizer.step()
optimizer.state[weight]["note"] = "phase two"
optimizer.param_groups[0]["note"] = "group"
state = copy.deepcopy(optimizer.state_dict())
assert state["state"][0]["note"] == "phase two"

other = torch.nn.Parameter(torch.ones(2))
fresh = torch.optim.SGD([other], lr=0.1, momentum=0.9)
fresh.load_state_dict(state)
found = fresh.state[other]["note"]
print(f"saved 'phase two', loaded {found[:17]!r}")
assert fresh.param_groups[0]["note"] == "group"
assert found.startswith("<generator object"), "the behaviour has changed"
PYTHON
