"""What timm and transformers are imported under."""

from __future__ import annotations

import os

import torch
from tests import operators as operators

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it
torch.set_num_threads(1)  # two test processes with two threads each on two cores wait for one another
