"""A browser, and pages opened in it that must neither complain nor ask for anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

import statedict

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ONE, PAIR, RUN = "one", "pair", "run"

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    path = os.environ.get("STATEDICT_TEST_BROWSER") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.fail("there is no Chromium for the tests of pages; `make browser` or apt-get install chromium")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Browser) -> Open:
    """Open a page; what it says on the console, or asks for, is an error at the end."""

    @contextmanager
    def open_(
        path: Path, scheme: str = "light", width: int = 1280, script: str = "", complaints: bool = False
    ) -> Iterator[Page]:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})  # type: ignore[arg-type]
        said: list[str] = []
        asked: list[str] = []
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        if script:
            page.add_init_script(script)
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        yield page
        page.wait_for_timeout(50)
        context.close()
        assert complaints or not said
        assert complaints or {url for url in asked if not url.startswith(("data:", "blob:"))} == {path.as_uri()}

    return open_


def training(step: int, layers: int = 4, broken: bool = False) -> dict[str, Any]:
    """A model with an optimizer that names its parameters, as after some steps."""
    make = numpy.random.default_rng(7)
    model: dict[str, Any] = {"wte.weight": make.normal(size=(64, 16)).astype("f4")}
    for layer in range(layers):
        model[f"h.{layer}.attn.weight"] = make.normal(size=(16, 48)).astype("f4")
        model[f"h.{layer}.attn.bias"] = make.normal(size=48).astype("f4")
        model[f"h.{layer}.mlp.weight"] = make.normal(size=(16, 16)).astype("f4") * (layer + 1)
        model[f"h.{layer}.norm.running_mean"] = make.normal(size=16).astype("f4")
    moved = numpy.random.default_rng(step)
    names = [name for name in model if "running" not in name]
    for at, name in enumerate(names):
        if step:
            model[name] = model[name] + (moved.normal(size=model[name].shape) * 1e-3 * step * (at + 1)).astype("f4")
    if broken:
        model["h.1.mlp.weight"] = model["h.1.mlp.weight"].copy()
        model["h.1.mlp.weight"][0, :3] = numpy.nan
    state = {at: {"exp_avg": model[name] * 0.1, "step": numpy.array(step, "f4")} for at, name in enumerate(names)}
    group = {"lr": 0.001, "betas": (0.9, 0.95), "fused": None, "params": [*state], "param_names": names}
    return {"model": model, "optimizer": {"state": state, "param_groups": [group]}, "epoch": step}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one checkpoint, of a pair, and of a run."""
    folder = tmp_path_factory.mktemp("pages")
    for step in (0, 9, 10, 20):
        statedict.save(training(step, broken=step == 20), folder / f"step-{step}.pth")
    other = training(30)
    model = other["model"]
    model["head.weight"] = model.pop("wte.weight")  # with other bytes, so that it is another tensor
    model["h.0.attn.projection"] = training(10)["model"]["h.3.attn.bias"]
    del model["h.3.attn.bias"]
    statedict.save({"model": model, "epoch": 30}, folder / "other.pth")
    sources = {ONE: ["step-10"], PAIR: ["step-10", "other"], RUN: ["step-20", "step-9", "step-10", "step-0"]}
    found = {}
    for kind, names in sources.items():
        found[kind] = folder / f"{kind}.html"
        statedict.report(*(folder / f"{name}.pth" for name in names)).save(found[kind])
    return found
