"""timm: by its functions and classes, cut down where a family's smallest is not small."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from .architecture import Architecture

_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
_WIDTHS, _DEPTHS, _HEADS = (8, 16, 24, 32), (1, 1, 1, 1), (1, 2, 2, 2)
_SWIN = {"img_size": 64, "embed_dim": 16, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 4)}
_HYBRID = {"img_size": 64, "embed_dim": (32, 32, 32, 32), "depths": _DEPTHS, "stem_width": 8}

# the name in timm.models, the width of its images, what it is made with
_TABLE: list[tuple[str, int, dict[str, Any]]] = [
    ("resnet10t", 64, {"channels": _WIDTHS, "stem_width": 8}),
    ("skresnet18", 64, {"channels": _WIDTHS}),
    ("densenet121", 64, {"block_config": (2, 2, 2, 2), "growth_rate": 8}),
    ("dla46_c", 64, {"channels": (8, 8, 16, 16, 24, 32)}),
    ("hrnet_w18_small", 64, {"features_only": True, "feature_location": ""}),
    ("regnetx_002", 64, {}),
    ("repvgg_a0", 64, {"width_factor": 0.125}),
    ("test_nfnet", 64, {}),
    ("test_efficientnet", 64, {}),
    ("tinynet_e", 64, {}),
    ("mobilenetv3_small_050", 64, {}),
    ("mobilenetv4_conv_small_035", 64, {}),
    ("ghostnet_050", 64, {}),
    ("convnext_atto", 64, {"dims": _WIDTHS, "depths": _DEPTHS}),
    ("convnextv2_atto", 64, {"dims": _WIDTHS, "depths": _DEPTHS}),
    ("inception_next_atto", 64, {"dims": _WIDTHS, "depths": _DEPTHS}),
    ("MetaFormer", 64, {"dims": _WIDTHS, "depths": _DEPTHS}),  # PoolFormer
    ("vit_tiny_patch16_224", 32, {"img_size": 32, **_VIT}),
    ("deit_tiny_distilled_patch16_224", 32, {"img_size": 32, **_VIT}),
    ("beit_base_patch16_224", 32, {"img_size": 32, **_VIT}),
    ("eva02_tiny_patch14_224", 28, {"img_size": 28, **_VIT}),
    ("cait_xxs24_224", 32, {"img_size": 32, **_VIT}),
    ("xcit_nano_12_p16_224", 32, {"img_size": 32, **_VIT}),
    ("convit_tiny", 32, {"img_size": 32, **_VIT}),
    ("pit_ti_224", 64, {"img_size": 64, "base_dims": (8, 8, 8), "depth": (1, 1, 1)}),
    ("levit_128s", 64, {"img_size": 64, "embed_dim": (16, 24, 32), "key_dim": 8, "depth": (1, 1, 1)}),
    ("swin_tiny_patch4_window7_224", 64, _SWIN),
    ("swinv2_cr_tiny_224", 64, _SWIN),
    ("maxvit_pico_rw_256", 64, _HYBRID),
    ("coatnet_pico_rw_224", 64, _HYBRID),
    ("davit_tiny", 64, {"embed_dims": _WIDTHS, "depths": _DEPTHS, "num_heads": _HEADS}),
    ("hiera_tiny_224", 64, {"img_size": 64, "embed_dim": 16, "stages": _DEPTHS}),
    ("MlpMixer", 32, {"img_size": 32, "patch_size": 16, "embed_dim": 32, "num_blocks": 2}),
]


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    import timm.models

    return getattr(timm.models, name)(**options if "features_only" in options else {"num_classes": 3, **options})


def _images(width: int) -> tuple[torch.Tensor]:
    return (torch.randn(2, 3, width, width),)


ARCHITECTURES = {
    name: Architecture(partial(_build, name, options), partial(_images, width)) for name, width, options in _TABLE
}
