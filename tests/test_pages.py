import io

import jinja2
import numpy as np
import pytest
from fakes.html_page import Page, png
from PIL import Image

from htnet_jax import pages

NASTY = """<script>alert("x & 'y'")</script>"""


def test_a_page_from_all_parts(monkeypatch):
    template = """{% extends "base.html" %}{% import "parts.html" as parts %}
    {% block style %}main { color: red }{% endblock %}
    {% block body %}{% call parts.section(text) %}
    {{ parts.table(["a", text], rows, text) }}{{ parts.paragraph(text, "soft") }}
    {{ parts.figure(image, text, text) }}{% call parts.legend() %}{{ text }}{% endcall %}
    {% call parts.details(text) %}{{ 2 | count("fold") }}{% endcall %}
    {% endcall %}{% endblock %}"""
    environment = pages._environment().overlay(
        loader=jinja2.ChoiceLoader(
            [jinja2.DictLoader({"page.html": template}), jinja2.PackageLoader("htnet_jax")]
        )
    )
    monkeypatch.setattr(pages, "_environment", lambda: environment)
    pixels = np.full((2, 3, 3), 7, np.uint8)
    rows = [pages.Group(NASTY, "oracle"), pages.Row(NASTY, [NASTY, 3, (NASTY, "small")], "ours")]
    text = pages.render("page.html", title=NASTY, text=NASTY, rows=rows, image=pixels)
    found = Page(text)
    assert text.startswith("<!DOCTYPE html>\n")
    assert "script" not in found.tags
    assert found.headings == [("h1", NASTY), ("h2", NASTY)]
    assert "main { color: red }" in text
    assert "prefers-color-scheme: dark" in text
    assert found.text.count(NASTY) == 13  # every place once, and nowhere as a tag
    assert "2 folds" in found.text
    assert found.images[0]["alt"] == NASTY
    assert png(found.images[0]) == pages.png(pixels)
    with pytest.raises(jinja2.UndefinedError, match="rows"):
        pages.render("page.html", title="", text="")


def test_a_png_keeps_its_pixels():
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    for shown in (pixels, pixels[..., :3], pixels[..., 0], pixels[:, ::-1]):
        data = pages.png(shown)
        assert np.array_equal(Image.open(io.BytesIO(data)), shown)
        assert pages.png(shown) == data
        assert png({"src": pages.data_uri(data)}) == png({"src": pages.data_uri(shown)}) == data


@pytest.mark.parametrize(
    ("direction", "rgb"),
    [
        ((1, 0), (255, 0, 0)),  # right: hue 0
        ((0, 1), (128, 255, 0)),  # down: 90 degrees
        ((-1, 0), (0, 255, 255)),  # left: 180
        ((0, -1), (128, 0, 255)),  # up: 270
        ((0, 0), (0, 0, 0)),
    ],
)
def test_colours_of_known_directions(direction, rgb):
    field = np.zeros((2, 2, 2), np.float32)
    field[0, 1] = direction
    image = pages.flow_colours(field, largest=1.0)
    assert image[0, 1].tolist() == list(rgb)
    assert image[0, 0].tolist() == [0, 0, 0]
    if any(rgb):
        row, column = 50 + 50 * direction[1], 50 + 50 * direction[0]
        assert pages.colour_wheel(101)[row, column].tolist() == [*rgb, 255]


def test_brightness_is_the_magnitude():
    field = np.zeros((1, 3, 2))
    field[0, :, 0] = [1.0, 2.0, 4.0]
    assert pages.flow_colours(field)[0, :, 0].tolist() == [64, 128, 255]
    assert pages.flow_colours(field, largest=2.0)[0, :, 0].tolist() == [128, 255, 255]
    with pytest.raises(ValueError, match="must be"):
        pages.flow_colours(np.zeros((3, 3, 3)))


def test_the_wheel_is_transparent_outside():
    assert pages.colour_wheel(101)[0, 0, 3] == 0


def test_enlarged_by_a_whole_number():
    image = pages.enlarged(np.array([[1, 2, 3]], np.uint8), 5)
    assert image.tolist() == [[1, 1, 2, 2, 3, 3]] * 2
