"""HTML pages without script or links to the outside: templates, images inside them, flow colours.

The templates are in `templates/`: `base.html` (extended by every page) brings the style for light
and dark, narrow screens and print; `parts.html` has macros for sections, tables and images.
"""

from __future__ import annotations

import base64
import functools
import io
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from htnet_jax.errors import count, shown


class Row(NamedTuple):
    """A row of a table, for the macro `table` of `parts.html`.

    Attributes:
        name: Text of its first cell.
        cells: The others; a sequence instead of a text is a cell with small lines below its first.
        kind: A class of the style ("ours", "oracle").
    """

    name: str
    cells: list[Any]
    kind: str = ""


class Group(NamedTuple):
    """A row that heads the rows below it; the fields are as in `Row`."""

    name: str
    kind: str = ""


def render(template: str, **values: Any) -> str:
    """A page as HTML text; values are escaped, a missing one is an error.

    Control characters and what is not UTF-8 in them is shown escaped as well.

    Args:
        template: Name of a file in `templates/`, which extends `base.html`.
        values: What the template shows; `base.html` itself needs `title`.

    Raises:
        jinja2.UndefinedError: The template needs a value that was not given.
    """
    return _environment().get_template(template).render(**values)


def png(pixels: np.ndarray) -> bytes:
    """`(H, W)`, `(H, W, 3)` or `(H, W, 4)` uint8 (grey, RGB, RGBA) as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def data_uri(image: bytes | np.ndarray) -> str:
    """A PNG file, or pixels as `png` takes them, as the `src` of an `img` element."""
    data = image if isinstance(image, bytes) else png(image)
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def flow_colours(vectors: np.ndarray, largest: float | None = None) -> np.ndarray:
    """A flow field in colour: hue is the direction, brightness the magnitude.

    Right is red; from there the hue goes clockwise: down yellow-green, left cyan, up violet.

    Args:
        vectors: `(H, W, 2)` float: u (right), v (down).
        largest: Magnitude with full brightness; default: the largest there is.

    Returns:
        `(H, W, 3)` uint8: R, G, B. No motion is black.

    Raises:
        ValueError: Another shape.
    """
    if vectors.ndim != 3 or vectors.shape[-1] != 2:
        raise ValueError(f"vectors must be (H, W, 2), got shape {vectors.shape}")
    from matplotlib.colors import hsv_to_rgb

    u, v = vectors.astype(np.float64).transpose(2, 0, 1)
    magnitude = np.hypot(u, v)
    largest = magnitude.max(initial=0.0) if largest is None else largest
    value = np.clip(magnitude / largest, 0, 1) if largest > 0 else np.zeros_like(magnitude)
    hue = np.arctan2(v, u) / (2 * np.pi) % 1.0
    rgb = hsv_to_rgb(np.stack([hue, np.ones_like(hue), value], axis=-1))
    return np.round(rgb * 255).astype(np.uint8)


def colour_wheel(side: int = 128) -> np.ndarray:
    """The colours of all directions: `(side, side, 4)` uint8 R, G, B, A; transparent outside."""
    axis = np.linspace(-1, 1, side)
    vectors = np.stack(np.meshgrid(axis, axis), axis=-1)
    inside = np.linalg.norm(vectors, axis=-1) <= 1
    return np.dstack([flow_colours(vectors, largest=1.0), np.uint8(255) * inside])


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """`(H, W, ...)` with every pixel repeated, so that the longer side is at least `side`."""
    times = -(-side // max(image.shape[:2]))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def _printable(value: Any) -> Any:
    """What an expression of a template shows; markup has come through here already."""
    plain = isinstance(value, str) and not hasattr(value, "__html__")
    return shown(value, keep="\n") if plain else value


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("htnet_jax"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "count": count}
    environment.globals["colour_wheel"] = colour_wheel
    return environment
