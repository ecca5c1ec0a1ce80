"""A run's page as a browser takes it, with empty plots unless some are given."""

from fakes.html_page import Page, png

from htnet_jax.evaluation import figures, page

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Blank(dict):
    """Every plot there may be, all of them empty: drawing takes most of the time."""

    def __init__(self, alt=""):
        """`alt`: words for all; by default each plot's name."""
        self.alt = alt

    def get(self, stem):
        return self[stem]

    def __missing__(self, stem):
        return figures.Drawn(PNG_SIGNATURE, self.alt or stem)


def show(runs, pairs=(), drawn=None):
    """The page of runs; nothing outside the file may be named.

    `drawn`: the plots; empty ones by default.
    """
    text = page.render(runs, pairs, Blank() if drawn is None else drawn)
    found = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(found.tags)
    assert "url(" not in text and "@import" not in text
    assert all(reference.startswith("data:image/png;base64,") for reference in found.references)
    for image in found.images:
        assert image["alt"].strip()
        assert png(image).startswith(PNG_SIGNATURE)
    return found
