"""The interactive page, opened, pointed at and turned in a real headless browser."""

import base64
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import Browser
from PIL import Image

from lookaround.landscape import Grid, save_page
from lookaround.landscape.page_template import TEMPLATE

XS, YS = (-2.0, -1.0, 0.0, 1.0, 2.5), (-1.0, 0.0, 1.5, 3.0)


def bowl() -> Grid:
    x, y = torch.meshgrid(torch.tensor(XS).double(), torch.tensor(YS).double(), indexing="xy")
    loss = 0.125 + x.square() + 2 * y.square()
    loss[3, 4] = float("nan")
    return Grid(XS, YS, loss, 100 - loss, ("x", "y"), "norm statistics fixed <here>")


def test_the_page_in_docs_is_what_the_template_makes_today() -> None:
    page = (Path(__file__).parents[2] / "docs" / "plane.html").read_text(encoding="utf-8")
    parts = re.split("__NOTE__|__TITLE__|__DATA__", TEMPLATE)
    assert re.fullmatch("(.*?)".join(map(re.escape, parts)), page, re.DOTALL)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("page")
    points = {"</script><b>SWA": (0.0, 0.0), "SGD": (1.0, 1.5, 0.2)}
    save_page(bowl(), folder / "page.html", points=points, trajectory=[(-1, -1), (0, 0), (1, 1.5)], title="A <bowl>")
    browser = Browser(folder / "profile", folder / "page.html")
    yield browser
    browser.close()


def place(browser: Browser, i: int, j: int) -> tuple[float, float]:
    """Where grid point (i, j) is in the window."""
    box = "canvas.getBoundingClientRect()"
    at = browser.evaluate(f"[{box}.left + screen[{j}][{i}].x, {box}.top + screen[{j}][{i}].y]")
    return at[0], at[1]


def read(browser: Browser) -> str:
    return str(browser.evaluate("document.getElementById('readout').textContent"))


@pytest.mark.parametrize(("i", "j"), [(2, 1), (0, 0), (4, 2), (1, 3)])
def test_pointing_at_the_surface_tells_the_values_there(browser: Browser, i: int, j: int) -> None:
    browser.mouse("mouseMoved", *place(browser, i, j))
    found = [float(number) for number in re.findall(r"-?\d+\.?\d*", read(browser))]
    loss = 0.125 + XS[i] ** 2 + 2 * YS[j] ** 2
    assert found == pytest.approx([XS[i], YS[j], loss, 100 - loss], rel=1e-5)


def test_pointing_beside_it_tells_nothing(browser: Browser) -> None:
    browser.mouse("mouseMoved", 990, 690)
    assert read(browser) == "point at the surface"


def test_dragging_turns_the_surface_and_a_double_click_brings_it_back(browser: Browser) -> None:
    before = place(browser, 0, 0)
    browser.mouse("mousePressed", 500, 400, button="left", clickCount=1)
    browser.mouse("mouseMoved", 590, 370, button="left", buttons=1)
    browser.mouse("mouseReleased", 590, 370, button="left", clickCount=1)
    assert browser.evaluate("[view.azimuth, view.elevation]") == pytest.approx([-0.9 + 0.5, 0.65 - 30 / 180])
    turned = place(browser, 0, 0)
    assert math.dist(turned, before) > 20
    browser.mouse("mouseMoved", *turned)
    assert read(browser).startswith("x -2, y -1: loss 6.125")
    browser.mouse("mouseWheel", 500, 400, deltaX=0, deltaY=-400)
    assert browser.evaluate("view.zoom") > 1.2
    for count in (1, 2):
        browser.mouse("mousePressed", 500, 400, button="left", clickCount=count)
        browser.mouse("mouseReleased", 500, 400, button="left", clickCount=count)
    assert place(browser, 0, 0) == pytest.approx(before)


def test_the_surface_stays_in_the_window_at_first(browser: Browser) -> None:
    for i in (0, 4):
        for j in (0, 2):
            x, y = place(browser, i, j)
            assert 0 < x < 1000
            assert 0 < y < 700


def test_the_height_can_be_the_accuracy_or_the_logarithm(browser: Browser) -> None:
    heights = {}
    for choice in ("loss", "accuracy"):
        for log in ("true", "false"):
            browser.evaluate(f"choice.value = '{choice}'; log.checked = {log}; rescale()")
            heights[choice, log] = browser.evaluate("[low, high]")
    assert heights["loss", "false"] == pytest.approx([0.125, 22.125])
    assert heights["loss", "true"] == pytest.approx([-0.90309, 1.34488], rel=1e-4)
    assert heights["accuracy", "true"] == heights["accuracy", "false"] == pytest.approx([77.875, 99.875])
    browser.evaluate("choice.value = 'loss'; log.checked = true; rescale()")


def test_names_and_notes_are_text_and_not_markup(browser: Browser) -> None:
    assert browser.evaluate("document.title") == "A <bowl>"
    assert browser.evaluate("document.querySelector('footer span').textContent") == "norm statistics fixed <here>"
    assert browser.evaluate("data.points[0].name") == "</script><b>SWA"
    assert browser.evaluate("document.querySelectorAll('b').length") == 0


def test_the_page_asks_nothing_of_the_network_and_raises_nothing(browser: Browser) -> None:
    browser.evaluate("1")
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert len(asked) == 1
    assert asked[0].startswith("file:")
    assert not [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]


def test_a_screenshot_shows_the_surface(browser: Browser, tmp_path: Path) -> None:
    picture = browser.call("Page.captureScreenshot", format="png")["data"]
    (tmp_path / "page.png").write_bytes(base64.b64decode(picture))
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    colours = image.getcolors(2**24)
    assert colours is not None
    saturated = sum(count for count, (r, g, b) in colours if max(r, g, b) - min(r, g, b) > 60)
    assert saturated > 0.1 * image.width * image.height
    # A low cell is green and the highest one violet.
    r, g, b = pixel(browser, image, (1, 2), (1, 2))
    assert g > r + 60
    assert g > b
    r, g, b = pixel(browser, image, (0, 1), (2, 3))
    assert b > r + 20
    assert r > g


def pixel(
    browser: Browser, image: Image.Image, columns: tuple[int, int], rows: tuple[int, int]
) -> tuple[int, int, int]:
    """The colour in the middle of a cell of the surface."""
    corners = [place(browser, i, j) for i in columns for j in rows]
    colour = image.getpixel((round(sum(x for x, _ in corners) / 4), round(sum(y for _, y in corners) / 4)))
    assert isinstance(colour, tuple)
    return colour


@pytest.fixture(scope="module")
def ridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A flat plane with a wall across it, and marks before and behind the wall."""
    folder = tmp_path_factory.mktemp("ridge")
    xs = ys = tuple(float(i) for i in range(-4, 5))
    loss = torch.zeros(9, 9, dtype=torch.float64)
    loss[:, 4] = 10.0
    points = {"left": (-3.0, 0.0), "right": (3.0, 0.0), "a long name beside it": (3.0, 0.9), "further": (3.4, 0.5)}
    grid = Grid(xs, ys, loss, 100 - loss, ("x", "y"), "")
    save_page(grid, folder / "page.html", points=points, trajectory=[(-3.0, 0.0), (-1.5, 0.0), (3.0, 0.0)])
    browser = Browser(folder / "profile", folder / "page.html")
    yield browser
    browser.close()


def look(browser: Browser, azimuth: float, elevation: float) -> set[str]:
    """Turn the surface; the names that are drawn then."""
    browser.evaluate(f"view.azimuth = {azimuth}; view.elevation = {elevation}; draw()")
    return set(browser.evaluate("labels.map(label => label.name)"))


# Seen along x, from either side: a mark in front is the one whose depth is less.
@pytest.mark.parametrize(("azimuth", "seen"), [(math.pi / 2, "left"), (-math.pi / 2, "right")])
def test_a_mark_behind_the_surface_is_not_drawn(ridge: Browser, azimuth: float, seen: str) -> None:
    behind = {"left": "right", "right": "left"}[seen]
    names = look(ridge, azimuth, 0.3)
    assert seen in names
    assert behind not in names
    for name, drawn in ((seen, True), (behind, False)):
        box = "canvas.getBoundingClientRect()"
        point = f"data.points.find(p => p.name === '{name}')"
        x, y = ridge.evaluate(f"(at => [{box}.left + at.x, {box}.top + at.y])(lift({point}.x, {point}.y))")
        picture = base64.b64decode(ridge.call("Page.captureScreenshot", format="png")["data"])
        colour = Image.open(io.BytesIO(picture)).convert("RGB").getpixel((round(x), round(y)))
        assert (colour == (255, 255, 255)) == drawn
    assert look(ridge, azimuth, math.pi / 2) == {"left", "right", "a long name beside it", "further"}


def test_the_first_view_is_from_the_side_that_shows_most_marks(ridge: Browser) -> None:
    ridge.evaluate("view.elevation = 0.3; chooseSide()")
    seen = look(ridge, ridge.evaluate("home.azimuth"), 0.3)
    assert seen == {"right", "a long name beside it", "further"} or len(seen) == 4


@pytest.mark.parametrize("width", [1000, 390, 200])
@pytest.mark.parametrize("azimuth", [-0.9, 0.8, 2.3, 4.0])
def test_names_are_inside_the_window_and_apart(ridge: Browser, width: int, azimuth: float) -> None:
    ridge.call("Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=False)
    assert look(ridge, azimuth, 1.2)
    labels = ridge.evaluate("labels")
    for label in labels:
        assert label["x"] >= 0
        assert label["x"] + label["width"] <= width
        assert 0 <= label["y"] <= ridge.evaluate("canvas.clientHeight") - label["height"]
    for i, one in enumerate(labels):
        for other in labels[:i]:
            beside = one["x"] + one["width"] < other["x"] or other["x"] + other["width"] < one["x"]
            above = abs(one["y"] - other["y"]) >= 15
            assert beside or above, (one, other)


def test_a_name_wider_than_the_window_is_cut(ridge: Browser) -> None:
    ridge.call("Emulation.setDeviceMetricsOverride", width=100, height=700, deviceScaleFactor=1, mobile=False)
    look(ridge, 0.8, 1.2)
    texts = ridge.evaluate("labels.filter(l => l.name.startsWith('a long')).map(l => l.text)")
    assert texts
    assert texts[0].startswith("a long")
    assert texts[0].endswith("…")


def test_a_line_has_no_surface(tmp_path: Path) -> None:
    grid = Grid((0.0, 1.0), (), torch.zeros(2), torch.zeros(2), ("t",), "")
    with pytest.raises(ValueError, match="at least 2 x 2 points, got 2 x 0"):
        save_page(grid, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
