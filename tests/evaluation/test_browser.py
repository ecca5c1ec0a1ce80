"""Reports as a real browser sees them."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from htnet_jax.evaluation import page
from htnet_jax.evaluation.summary import Images, Run, compare

pytestmark = pytest.mark.slow

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTHS = (360, 1280)
LOCAL = ("file:", "data:")
BY_ITSELF = "not an origin"

# Shows a page in frames of several widths and writes what it measures into the document.
MEASURE = """<!DOCTYPE html><meta charset="utf-8"><body><script type="application/json" id="page">
%s</script><pre id="result"></pre><script>
const text = JSON.parse(document.getElementById("page").textContent);
const result = {};
for (const width of %s) {
  const frame = document.createElement("iframe");
  frame.style.width = width + "px";
  frame.style.border = "0";
  frame.onload = () => {
    const inside = frame.contentDocument, root = inside.documentElement;
    result[width] = {
      images: [...inside.images].map(image => image.complete ? image.naturalWidth : 0),
      scroll: root.scrollWidth, client: root.clientWidth,
    };
    document.getElementById("result").textContent = JSON.stringify(result);
  };
  frame.srcdoc = text;
  document.body.append(frame);
}
</script></body>"""


def visit(path, tmp_path):
    """(DOM, lines on the console, addresses outside) after the browser has loaded a file."""
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=10000"),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--log-net-log={log}",
            *("--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    # Of what the browser asks for by itself (updates, the time) no page is the initiator.
    asked = {
        event["params"]["url"]
        for event in events
        if event.get("params", {}).get("initiator", BY_ITSELF) != BY_ITSELF
    }
    return done.stdout, console, {url for url in asked if not url.startswith(LOCAL)}


def measure(text, tmp_path):
    """Width -> the images' widths, and the page's width with and without what sticks out."""
    host = tmp_path / "measure.html"
    # A script ends at its end tag, wherever that stands.
    host.write_text(MEASURE % (json.dumps(text).replace("</", "<\\/"), list(WIDTHS)))
    dom, _, _ = visit(host, tmp_path)
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    return {int(width): one for width, one in json.loads(found[1]).items()}


@pytest.fixture(autouse=True)
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on PATH")


@pytest.fixture
def runs(make_wide):
    net = make_wide(number=20, seeds=2, epochs=12)
    rng = np.random.default_rng(0)
    flow = rng.normal(size=(len(net.clips), 28, 28, 3)).astype(np.float32)
    images = Images(net.clips, flow, flow[:, ::-1], centred=False)
    known = {"config": {"a long setting": "x" * 400}, "environment": {"jax": "0"}}
    return [
        Run.of("a run with-a-name-that-does-not-end-" + "x" * 60, net, images=images, **known),
        Run.of("baseline", make_wide(number=20, epochs=1, key=1)),
    ]


@pytest.mark.parametrize("number", [1, 2], ids=["one run", "two runs"])
def test_a_report_in_a_browser(runs, number, tmp_path):
    shown, pairs = runs[:number], []
    if number == 2:
        names = (runs[0].name, runs[1].name)
        pairs = [compare(runs[0].predictions, runs[1].predictions, names)]
    figures = page.figures(shown, pairs)
    text = page.render(shown, pairs, figures)
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")

    dom, console, outside = visit(path, tmp_path)
    assert "How to read this" in dom
    assert console == []
    assert outside == set()
    assert len(text) < 3_000_000

    measured = measure(text, tmp_path)
    assert set(measured) == set(WIDTHS)
    # The plots, and of the gallery twelve clips and the wheel.
    expected = len(figures) + 13
    for width, one in measured.items():
        assert one["client"] == width
        assert one["scroll"] <= one["client"]
        assert len(one["images"]) == expected
        assert min(one["images"]) >= 100


def test_what_is_looked_for_would_be_seen(tmp_path):
    """A page with every fault: the checks above are none that always pass."""
    text = (
        '<!DOCTYPE html><html><body><img src="http://127.0.0.1:9/x.png">'
        '<img src="data:image/png;base64,AAAA"><div style="width:500px">wide</div>'
        "<script>console.error('broken')</script></body></html>"
    )
    path = tmp_path / "bad.html"
    path.write_text(text)
    _, console, outside = visit(path, tmp_path)
    assert any("broken" in line for line in console)
    assert outside == {"http://127.0.0.1:9/x.png"}
    measured = measure(text, tmp_path)
    assert measured[360]["images"] == [0, 0]
    assert measured[360]["scroll"] > 360
    assert measured[1280]["scroll"] == 1280
