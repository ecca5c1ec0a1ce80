"""What a browser would take from a page."""

import base64
import io
from html.parser import HTMLParser

from matplotlib.image import imread


class Page(HTMLParser):
    """Pictures, references, tags, headings and words; every tag must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.images, self.references, self.tags, self.open, self.words = [], [], [], [], []
        self.headings = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))
        if tag == "img":
            self.images.append(attrs)
        self.references += [attrs[name] for name in ("src", "href", "srcset") if name in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            tag, words = self.headings[-1]
            self.headings[-1] = (tag, words + data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def picture(self, alt):
        """The one picture whose alternative text holds `alt`: (H, W, 4) floats, 0 to 1."""
        (image,) = (image for image in self.images if alt in image["alt"])
        return imread(io.BytesIO(png(image)), format="png")


def png(image):
    """The bytes that an `img` element carries."""
    return base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
