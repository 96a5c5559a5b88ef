"""A drop-in for `torch.load` and `torch.save` that runs nothing from a file.

    import statedict.torch
    checkpoint = statedict.torch.load("model.pth")
    statedict.torch.save(checkpoint, "copy.pth")

`load` reads every pickle twice. First our own machine, which builds nothing and bounds memory and time, checks each
number against the file; then PyTorch's unpickler for `weights_only=True` makes the objects, over storages that were
read on several threads. So they are what `torch.load` makes, and a class that is not allowed is refused by both.
"""

from statedict.torch.loading import load as load
from statedict.torch.saving import save as save

__all__ = ["load", "save"]

load.__module__ = save.__module__ = __name__  # where users import them from
