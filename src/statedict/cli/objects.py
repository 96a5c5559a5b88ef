"""Models and optimizers that a command names as MODULE:NAME."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click


def make(name: str, *models: Any) -> Any:
    """What the class or function of a name makes: a model, or of models their optimizer.

    Raises:
        click.ClickException: it cannot be imported or called, or makes something else.
    """
    module, sign, attribute = name.partition(":")
    if not sign:
        raise click.UsageError(f"{name!r}: expected MODULE:NAME, such as package.module:make_model")
    sys.path.insert(0, os.getcwd())
    try:
        factory: Any = importlib.import_module(module)
        for part in attribute.split("."):
            factory = getattr(factory, part)
        return _call(factory, models)
    except (Exception, SystemExit) as error:
        raise click.ClickException(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)


def _call(factory: Any, models: tuple[Any, ...]) -> Any:
    import torch

    kind = torch.optim.Optimizer if models else torch.nn.Module
    value = factory
    if isinstance(factory, type) and issubclass(factory, torch.optim.Optimizer):
        value = factory(*(model.parameters() for model in models))
    elif not isinstance(factory, torch.nn.Module | torch.optim.Optimizer):
        value = factory(*models)
    if not isinstance(value, kind):
        raise TypeError(f"makes a {type(value).__name__}, not a {kind.__module__}.{kind.__name__}")
    return value
