"""The pages in a browser: what one sees, clicks, types, and what they must never do."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy
import pytest
from playwright.sync_api import Page, expect

import statedict

from .conftest import ONE, PAIR, RUN, Open, training

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "%{customdata}<b>bold</b><a href='javascript:alert(3)'>x</a>",
    "'\"`${alert(4)}\u2028&lt;b&gt;",
    "__proto__",
    "constructor",
    "{{program}}",
    "a\nb\x00c",
)


def names(page: Page) -> list[str]:
    """The first column of the rows in sight."""
    return [cell.strip() for cell in page.locator("#grid tbody .key").all_inner_texts()]


def column(page: Page, key: str) -> list[str]:
    return page.locator(f"#grid tbody td.c-{key}").all_inner_texts()


def tile(page: Page, path: str) -> None:
    """Click the title of a module in the treemap."""
    page.locator(f'#treemap-chart g.slice[data-path="{path}"]').click(position={"x": 12, "y": 8})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", [ONE, PAIR, RUN])
def test_a_page_opens_without_complaints_and_asks_nobody(
    kind: str, scheme: str, pages: dict[str, Path], opened: Open
) -> None:
    with opened(pages[kind], scheme) as page:
        assert page.locator("#treemap-chart g.slice").count() > 10
        assert page.locator("#depth-chart .trace").count() >= 3
        assert page.locator("#grid svg.spark").count() > 3
        assert page.locator("h2").count() == {ONE: 5, PAIR: 6, RUN: 7}[kind]


@pytest.mark.parametrize("kind", [ONE, PAIR, RUN])
def test_nothing_is_wider_than_the_window(kind: str, pages: dict[str, Path], opened: Open) -> None:
    with opened(pages[kind], width=400) as page:
        for width in (400, 800, 1600, 380):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            cut = "[...document.querySelectorAll('td.number')].filter(one => one.scrollWidth > one.clientWidth).length"
            assert page.evaluate(cut) == 0


def test_the_search_narrows_the_table(pages: dict[str, Path], opened: Open) -> None:
    with opened(pages[ONE]) as page:
        assert page.inner_text("#status") == "43 of 43 tensors"
        for query, found in (("mlp", 12), ("model mlp", 4), ("*.mlp.*", 12), ("model.h.[01].*", 8), ("model.h", 16),
                             ("h.?.attn.bias", 0), ("*.attn.bias", 12), ("int8", 0), ("MODEL.WTE", 1)):  # fmt: skip
            page.fill("#search", query)
            assert page.inner_text("#status") == f"{found} of 43 tensors", query
            rows = page.locator("#grid tbody tr.row:not(.module)").count()
            assert rows == found or found > 8  # then some are out of sight
        page.fill("#search", "")
        page.select_option("#kind", "buffer")
        assert page.inner_text("#status") == "4 of 43 tensors"


def test_a_click_on_a_module_opens_it_in_the_treemap_and_in_the_table(pages: dict[str, Path], opened: Open) -> None:
    with opened(pages[ONE]) as page:
        tile(page, "model.h.2")
        page.wait_for_selector("#module:not([hidden])")
        assert page.inner_text("#module b") == "model.h.2"
        assert page.inner_text("#status") == "4 of 43 tensors"
        assert names(page)[0] == "attn"
        assert page.locator("#bytes .trail button").all_inner_texts() == ["all", "model", "h", "2"]
        slices = page.locator("#treemap-chart g.slice").evaluate_all("all => all.map(one => one.dataset.path)")
        assert all(one.startswith("model.h.2") for one in slices)
        tile(page, "model.h.2")  # its own title leads out of it
        expect(page.locator("#module b")).to_have_text("model.h")
        page.click("#module")
        assert page.inner_text("#status") == "43 of 43 tensors"


def test_the_treemap_goes_by_keys_too(pages: dict[str, Path], opened: Open) -> None:
    with opened(pages[ONE]) as page:
        assert page.locator('#treemap-chart g.slice[tabindex="0"]').count() == 1
        page.locator('#treemap-chart g.slice[tabindex="0"]').focus()

        def go(path: str) -> None:
            for _ in range(60):
                if page.evaluate("document.activeElement.dataset.path") == path:
                    break
                page.keyboard.press("ArrowRight")
            page.keyboard.press("Enter")

        go("model.h.1")
        assert page.inner_text("#module b") == "model.h.1"
        go("model.h.1.mlp.weight")
        assert page.inner_text("#detail-title") == "model.h.1.mlp.weight"


def test_columns_are_sorted_by_keys(pages: dict[str, Path], opened: Open) -> None:
    with opened(pages[ONE]) as page:
        tree = names(page)
        head = page.locator("th[data-key=max]")
        for order in ("descending", "ascending"):
            head.locator("button").press("Enter")
            assert head.get_attribute("aria-sort") == order
            found = [float(text.replace("−", "-")) for text in column(page, "max")]
            assert len(found) > 10
            assert found == sorted(found, reverse=order == "descending")
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == "none"
        assert names(page) == tree


def test_the_table_goes_by_keys(pages: dict[str, Path], opened: Open) -> None:
    with opened(pages[ONE]) as page:
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "search"
        page.keyboard.type("model.h.0")
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.dataset.at") == "0"
        many = page.locator("#grid tbody tr.row").count()
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "false"
        assert page.locator("#grid tbody tr.row").count() == 1 < many
        page.keyboard.press("ArrowRight")
        page.keyboard.press("End")
        page.keyboard.press("Enter")
        assert page.inner_text("#detail-title") == "model.h.0.norm.running_mean"
        assert page.locator("#detail svg.large rect").count() > 10
        page.keyboard.press("Escape")
        assert page.locator("#detail").is_hidden()
        assert page.evaluate("Number(document.activeElement.dataset.at)") == many - 1


def test_the_panel_shows_the_figures_and_the_histogram(pages: dict[str, Path], opened: Open) -> None:
    own = statedict.stats(pages[ONE].parent / "step-10.pth")["model.h.1.attn.weight"]
    with opened(pages[ONE]) as page:
        page.fill("#search", "model.h.1.attn.weight")
        page.click("#grid tbody tr.row:not(.module)")
        text = page.inner_text("#detail table")
        for value in (own.min, own.max, own.std, own.l2):
            assert f"{abs(value or 0):.4g}"[:5] in text
        for powers in (False, True):
            if powers:
                page.click("#powers")
            titles = page.locator("#detail svg.large title").all_text_contents()
            counts = [int(re.sub(r"\D", "", title.rpartition(": ")[2])) for title in titles]
            assert sum(counts) == own.elements
            assert (counts == own.bins()) is not powers
            assert ("2⁰" in page.inner_text("#detail") or "2⁻" in page.inner_text("#detail")) is powers
        page.click("#log")
        assert page.get_attribute("#log", "aria-pressed") == "true"


def test_the_figures_of_modules_are_those_of_stats(pages: dict[str, Path], opened: Open) -> None:
    report = statedict.stats(pages[ONE].parent / "step-10.pth")
    with opened(pages[ONE]) as page:
        for module in report.modules:
            if "state." in module.name:  # which the page has under the names of parameters
                continue
            found = page.evaluate(
                "path => { const {kinds, ...rest} = MODULES.get(path).sum; return rest; }", module.name
            )
            for name in ("elements", "zeros", "nan", "inf", "min", "max", "mean", "std", "l2"):
                value = getattr(module, name)
                assert math.isclose(found[name], value, rel_tol=1e-5, abs_tol=1e-7), (module.name, name)


def test_moments_stand_under_the_names_of_their_parameters(pages: dict[str, Path], opened: Open) -> None:
    with opened(pages[ONE]) as page:
        page.fill("#search", "optimizer exp_avg wte")
        assert names(page)[-3:] == ["wte", "weight", "exp_avg"]
        page.fill("#search", "optimizer.state.0.exp_avg")  # as the file has it
        assert page.inner_text("#status") == "1 of 43 tensors"
        table = page.inner_text("#values table")
        assert "0.001" in table
        assert "(0.9, 0.95)" in table
        assert "off: fused" in page.inner_text("#values")


def test_a_pair_says_what_changed_where(pages: dict[str, Path], opened: Open) -> None:
    with opened(pages[PAIR]) as page:
        texts = page.locator(".chips .chip").all_inner_texts()
        chips = {text.split(" ", 1)[1]: int(text.split()[0]) for text in texts}
        assert chips["renamed"] == 1
        assert chips["added"] == 1
        assert chips["removed"] == 1 + 26
        assert chips["identical"] == 4
        text = page.inner_text("#change")
        assert "model.h.0.attn.projection" in text
        assert "epoch" in text
        assert page.locator("#heat-chart image, #heat-chart .heatmaplayer path").count() >= 1
        page.click(".chips .k-changed")
        values = [float(value) for value in column(page, "relative")]
        assert values == sorted(values, reverse=True)
        assert len(values) == chips["changed"]
        page.click("#change .bars button >> nth=0")
        panel = page.inner_text("#detail")
        assert "before" in panel
        assert "relative change" in panel


def test_equal_checkpoints_say_so(pages: dict[str, Path], tmp_path: Path, opened: Open) -> None:
    source = pages[ONE].parent / "step-10.pth"
    statedict.report(source, source).save(tmp_path / "same.html")
    with opened(tmp_path / "same.html") as page:
        assert "Nothing changed" in page.inner_text("#change")


def test_a_run_is_in_the_order_of_its_steps_and_names_the_first_nan(pages: dict[str, Path], opened: Open) -> None:
    with opened(pages[RUN]) as page:
        rows = page.locator("#steps tbody tr").all_inner_texts()
        assert [row.split()[0] for row in rows] == ["0", "9", "10", "20"]
        assert (
            "The first NaN is at step 20, in model.h.1.mlp.weight, optimizer.state.h.1.mlp.weight.exp_avg."
            in page.inner_text("#run")
        )
        assert page.locator("#run-chart .trace").count() == 2
        assert page.inner_text("#summary .flags .tag >> nth=0") == "nan"
        page.click("#summary .flags button >> nth=0")
        assert page.inner_text("#detail-title") == "model.h.1.mlp.weight"


def test_the_metrics_of_a_run_are_drawn_and_generators_are_in_no_tile(tmp_path: Path, opened: Open) -> None:
    hostile = HOSTILE[1]
    with statedict.CheckpointManager(tmp_path / "run", keep=9) as manager:
        for step in (5, 10, 100):
            tree = training(step) | {"rng": statedict.rng()}
            manager.save(step, tree, metrics={"loss": 1 / step, hostile: step, "lost": math.nan if step == 10 else 1.0})
    statedict.report(tmp_path / "run").save(tmp_path / "run.html")
    for scheme in ("light", "dark"):
        with opened(tmp_path / "run.html", scheme) as page:
            assert page.locator("#metrics figcaption").all_inner_texts() == ["loss", hostile, "lost"]
            assert [page.locator(f"#metric-{at} .point").count() for at in range(3)] == [3, 3, 2]
            drawn = page.evaluate("[...document.getElementById('metric-0').data[0].y]")
            assert drawn == [0.2, 0.1, 0.01]
            assert page.locator('#treemap-chart g.slice[data-path^="rng"]').count() == 0
            assert "rng" in names(page)
            assert page.evaluate("RUN.modules.filter(name => name.startsWith('rng'))") == []
            assert page.evaluate("MODULES.get('rng').sum.l2") == 0


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Page, selector: str) -> float:
    """Of the text of an element with what is behind it, as WCAG 2.2 defines it."""
    one, other = page.evaluate(
        """selector => {
          let node = document.querySelector(selector), back = 'rgba(0, 0, 0, 0)';
          const front = getComputedStyle(node).color;
          for (; node && back === 'rgba(0, 0, 0, 0)'; node = node.parentElement) {
            back = getComputedStyle(node).backgroundColor;
          }
          return [front, back];
        }""",
        selector,
    )
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(scheme: str, pages: dict[str, Path], opened: Open) -> None:
    texts = ["h1", "#nav a", ".brand", ".card dt", ".note", ".tag", ".link", "#status", "#grid th button", ".key",
             "td.number", "#theme", "code", ".series", ".tag.nan", "td.k-changed", "td.bad", "select"]  # fmt: skip
    with opened(pages[RUN], scheme) as page:
        page.select_option("#kind", "flagged")
        low = {text: contrast(page, text) for text in texts if page.locator(text).count()}
        assert len(low) >= 17
        assert {text: value for text, value in low.items() if value < 4.5} == {}
    for tile in statedict_tiles():
        assert (1.05) / (luminance(",".join(str(int(tile[at : at + 2], 16)) for at in (1, 3, 5))) + 0.05) >= 4.5


def statedict_tiles() -> list[str]:
    source = Path(str(statedict.__file__)).parent / "view" / "page"
    text = (source / "base.js").read_text() + (source / "treemap.js").read_text()
    lists = re.findall(r"(?:TILES|RAMP) = \[(.*?)\]", text, re.DOTALL) + re.findall(r"COLD = '(.*?)'", text)
    return re.findall(r"#[0-9a-f]{6}", " ".join(lists))


def test_the_theme_follows_the_system_and_the_button_changes_it(pages: dict[str, Path], opened: Open) -> None:
    def back(page: Page) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    with opened(pages[ONE], "light") as page:
        light, picture = back(page), page.screenshot()
        page.click("#theme")
        dark = back(page)
        assert luminance(light) > 0.8 > 0.1 > luminance(dark)
        assert page.screenshot() != picture
        page.reload()
        page.wait_for_selector("html[data-ready]")
        assert back(page) == dark  # remembered
    with opened(pages[ONE], "dark") as page:
        assert back(page) == dark


def test_a_browser_without_storage_is_no_trouble(pages: dict[str, Path], opened: Open) -> None:
    absent = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    with opened(pages[ONE], script=absent) as page:
        page.click("#theme")
        assert page.inner_text("#theme") == "Light"


def test_hostile_names_and_values_are_text(tmp_path: Path, opened: Open) -> None:
    state = {name: numpy.arange(12, dtype="f4").reshape(3, 4) for name in HOSTILE}
    values = {f"v{name}": name for name in HOSTILE}
    statedict.save({"model": state, "values": values, "<b>note</b>": HOSTILE[0]}, tmp_path / "one.pth")
    changed = {name: array + 1 for name, array in state.items()}
    statedict.save({"model": changed, "values": dict.fromkeys(values, HOSTILE[1])}, tmp_path / "other.pth")
    path = tmp_path / "page.html"
    statedict.report(tmp_path / "one.pth", tmp_path / "other.pth", title=HOSTILE[0]).save(path)
    with opened(path) as page:
        assert page.locator("script").count() == 3
        assert page.locator("img, a[href^=javascript]").count() == 0
        assert page.title() == page.inner_text("h1") == HOSTILE[0]
        everything = page.inner_text("main")
        for name in HOSTILE[:4]:
            assert name.partition(".")[0].replace("\u2028", "") in everything.replace("\u2028", "")
        for row in range(page.locator("#grid tbody tr.row:not(.module)").count()):
            page.locator("#grid tbody tr.row:not(.module)").nth(row).click()
            page.keyboard.press("Escape")
        page.locator("#treemap-chart g.slice").nth(2).hover()
        assert page.locator("script").count() == 3


def test_a_script_that_gets_into_the_page_does_not_run(pages: dict[str, Path], opened: Open) -> None:
    failed: list[str | None] = []
    with opened(pages[ONE], complaints=True) as page:
        page.on("requestfailed", lambda request: failed.append(request.failure))
        page.evaluate(
            """() => {
              const script = document.createElement('script');
              script.textContent = 'window.ran = true';
              document.body.append(script);
              const image = document.createElement('img');
              image.setAttribute('onerror', 'window.ran = true');
              image.src = 'https://example.invalid/x.png';
              document.body.append(image);
            }"""
        )
        page.wait_for_timeout(200)
        assert page.evaluate("window.ran") is None
    assert failed == ["csp"]


def test_ten_thousand_tensors_open_with_a_screenful_of_rows(tmp_path: Path, opened: Open) -> None:
    state = {f"layers.{at // 8}.m{at % 8}.weight": numpy.full((2, 2), at, "f4") for at in range(10_000)}
    statedict.report(state).save(tmp_path / "many.html")
    with opened(tmp_path / "many.html") as page:
        page.locator("th[data-key=max] button").click()
        assert page.inner_text("#status") == "10,000 of 10,000 tensors"
        assert page.locator("#grid tbody tr.row").count() < 100
        page.locator("#grid tbody tr.row").first.focus()
        page.keyboard.press("End")
        assert column(page, "max")[-1] == "0"
        page.fill("#search", "layers.7.")
        assert page.inner_text("#status") == "8 of 10,000 tensors"


def test_states_without_tensors_values_or_numbers_open(tmp_path: Path, opened: Open) -> None:
    odd = {
        "empty": numpy.zeros((0, 3), "f4"),
        "nan": numpy.full(3, numpy.nan, "f4"),
        "complex": numpy.array([1 + 2j, 3j], "c8"),
        "big": numpy.array([2**63 - 1, -(2**63)]),
        "huge": numpy.array([1e308, -1e308]),
        "flag": numpy.array([True, False]),
        "a..b": numpy.ones(2, "f2"),
        "": numpy.ones(1, "u1"),
    }
    for at, state in enumerate(({}, {"epoch": 3}, odd, {"w": training(0)["model"]["wte.weight"]})):
        path = tmp_path / f"{at}.html"
        statedict.report(state).save(path)
        with opened(path) as page:
            assert page.inner_text("#status") == f"{sum(map(is_tensor, state.values()))} of {count(state)}"
            for row in range(page.locator("#grid tbody tr.row:not(.module)").count()):
                page.locator("#grid tbody tr.row:not(.module)").nth(row).click()
                page.keyboard.press("Escape")
    statedict.report({"w": numpy.ones(3)}, odd).save(tmp_path / "pair.html")
    with opened(tmp_path / "pair.html"):
        pass


def is_tensor(value: object) -> bool:
    return isinstance(value, numpy.ndarray)


def count(state: dict[str, object]) -> str:
    tensors = sum(map(is_tensor, state.values()))
    return f"{tensors} tensor{'s' * (tensors != 1)}"
