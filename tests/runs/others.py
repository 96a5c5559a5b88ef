"""Writes, into the current directory, what the library writes that is named: `python others.py lightning`."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn


def prepare() -> None:
    """What keeps them quiet, and lets torchvision be imported: see tests/operators.py."""
    warnings.simplefilter("ignore")
    logging.disable()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    importlib.import_module("operators")


def transformers() -> None:
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    rows: Any = [{"input_ids": torch.randint(0, 20, (5,)), "labels": torch.tensor(i % 2)} for i in range(8)]
    arguments = TrainingArguments(
        "transformers",
        max_steps=6,
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        logging_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    Trainer(BertForSequenceClassification(config), arguments, train_dataset=rows, eval_dataset=rows).train()


def lightning() -> None:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def training_step(self, batch: Any, number: int) -> Any:
            return self.layer(batch).pow(2).mean()

        def validation_step(self, batch: Any, number: int) -> None:
            self.log("val_loss", self.layer(batch).pow(2).mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 0.1)

    data = torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=4)
    for callback in (
        ModelCheckpoint("lightning", "{epoch}-{step}-{val_loss:.3f}", monitor="val_loss", save_top_k=-1),
        ModelCheckpoint("plain", monitor="val_loss", save_top_k=2, save_last=True),
    ):
        torch.manual_seed(0)
        lightning.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            callbacks=[callback],
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Net(), data, data)


def accelerate() -> None:
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    project = ProjectConfiguration("accelerate", automatic_checkpoint_naming=True)
    accelerator = Accelerator(cpu=True, project_config=project)
    model = nn.Linear(2, 2)
    accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    for _ in range(2):
        accelerator.save_state()


def torchtitan() -> None:
    import torch.distributed.checkpoint as dcp

    for step in (5, 10):
        state = {"model": nn.Linear(3, 3).state_dict(), "step": torch.tensor(step)}
        dcp.save(state, checkpoint_id=f"torchtitan/step-{step}")


if __name__ == "__main__":
    prepare()
    torch.manual_seed(0)
    {write.__name__: write for write in (transformers, lightning, accelerate, torchtitan)}[sys.argv[1]]()
