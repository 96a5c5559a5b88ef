"""Fuzzing: valid files of every format, damaged and forged, and what must hold for each. See docs/security.md.

seeds.py      the valid files, made by PyTorch, safetensors, numpy and statedict
mutate.py     what is done to them
documents.py  what is done to JSON and to the directories of runs
probe.py      what must hold
runs.py       what people do with a run
real.py       the same, of PyTorch's own tensors
hunt.py       the loop in a process of its own; crashes kept and made small

`python -m fuzz differential` runs pickles against Python's own unpicklers, `python -m fuzz archives` archives:

programs.py      the pickles, generated and damaged
readers.py       Python's unpicklers, made inert
differential.py  what must be the same
archives.py      the same of archives, beside zipfile and PyTorch
zips.py          the archives, generated and damaged
"""
