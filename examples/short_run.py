"""A run that goes wrong: ten checkpoints in `run/`, of a model whose embedding is frozen and whose layer 2 gets NaN."""

from __future__ import annotations

import numpy

import statedict

random = numpy.random.default_rng(0)
model = {f"layers.{n}.weight": random.standard_normal((64, 64), numpy.float32) for n in range(3)}
model["embed.weight"] = random.standard_normal((100, 64), numpy.float32)

with statedict.CheckpointManager("run", background=False) as manager:
    for step in range(100, 1100, 100):
        for name in model:
            if name != "embed.weight":
                model[name] += 0.01 * random.standard_normal(model[name].shape, numpy.float32)
        if step >= 700:
            model["layers.2.weight"][5, :3] = numpy.nan
        metrics = {"loss": 2 / step**0.5, "val_loss": 2 / step**0.5 + (step - 500) ** 2 / 1e6}
        manager.save(step, {"model": model, "step": step}, metrics)
