import re
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from secateur.evidence.report import write_report
from secateur.evidence.sample import convolutional, encoder
from secateur.evidence.words import sentence

SAMPLES = {"encoder": encoder, "convolutional": convolutional}
VOID = {"meta", "br", "hr", "img", "link", "input", "col", "wbr"}
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--disable-dev-shm-usage",
]


@pytest.fixture(params=SAMPLES)
def written(request, tmp_path):
    sample = SAMPLES[request.param]()
    return write_report(tmp_path / "report", sample), sample


def _run(browser, folder, page, *flags):
    command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


class _Checker(HTMLParser):
    """Collects the page and asserts that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        self.tags.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "poster") and v]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()} closes another element"

    def handle_data(self, data):
        self.text.append(data)


def _self_contained(html):
    """No script, and nothing that a browser would fetch."""
    checker = _Checker()
    checker.feed(html)
    checker.close()
    assert all(link.startswith("#") for link in checker.links), checker.links
    assert not {tag for tag, _ in checker.tags} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "img",
        "base",
    }
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    assert "@import" not in html
    assert not re.search(r"https?://", html)
    return checker


def test_page_is_well_formed_self_contained_and_accessible(written):
    page, sample = written
    html = page.read_text()
    assert html.lstrip().lower().startswith("<!doctype html>")
    checker = _self_contained(html)
    assert checker.open == []
    tags = [tag for tag, _ in checker.tags]
    assert tags.count("h1") == 1
    assert sentence(sample) in "".join(checker.text)
    assert {"lang": "en"} in [attrs for tag, attrs in checker.tags if tag == "html"]
    charts = [attrs for tag, attrs in checker.tags if tag == "svg"]
    assert charts
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in charts)
    assert tags.count("desc") == len(charts)
    assert all(attrs.get("scope") for tag, attrs in checker.tags if tag == "th")
    used, known = set(re.findall(r"var\((--[\w-]+)\)", html)), set(re.findall(r"(--[\w-]+):", html))
    assert used <= known, used - known


def test_a_browser_renders_the_page(browser, written, tmp_path):
    page, sample = written
    dom = _run(browser, tmp_path, page, "--dump-dom")
    assert sentence(sample) in dom
    assert dom.count("<svg") == page.read_text().count("<svg") >= 4
    _self_contained(dom)


def _frames(folder, width, height):
    """One page that holds every sample in a frame of its own, side by side."""
    frames = ""
    for name, sample in SAMPLES.items():
        write_report(folder / name, sample())
        for w in width:
            style = f"border:0;vertical-align:top;width:{w}px;height:{height}px"
            frames += f'<iframe src="{name}/report.html" style="{style}"></iframe>'
    page = folder / "frames.html"
    page.write_text(f'<!DOCTYPE html><body style="margin:0;white-space:nowrap;font-size:0">{frames}')
    return page


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_screenshot_shows_the_verdict_in_its_colour(browser, tmp_path, scheme):
    page, shot = _frames(tmp_path, (1000,), 700), tmp_path / "shot.png"
    flags = ("--window-size=2000,700", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}")
    _run(browser, tmp_path, page, f"--screenshot={shot}", *flags)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (700, 2000, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, "the page is blank"
    corner = pixels[0, 0].mean()
    assert corner < 60 if scheme == "dark" else corner > 200
    left, right = pixels[:, :1000], pixels[:, 1000:]
    assert (left[..., 1] - left[..., 0] > 60).sum() > 1000, "a passed report is green"
    assert (right[..., 0] - right[..., 1] > 60).sum() > 1000, "a failed report is red"


def test_nothing_sticks_out_at_any_width(browser, tmp_path):
    widths = (400, 720, 721, 1280)  # tables may scroll sideways on their own where it is narrow, not at 1280
    page = _frames(tmp_path, widths, 900)
    probe = (
        "<script>addEventListener('load',()=>{document.title=[...document.querySelectorAll('iframe')]"
        ".map(f=>{const d=f.contentDocument,w=d.documentElement.scrollWidth;"
        "const fits=[...d.querySelectorAll('.wide')].every(t=>t.scrollWidth<=t.clientWidth);"
        "return w+(w<1280||fits?'':'scrolls')})"
        ".join(' ')})</script>"
    )
    page.write_text(page.read_text() + probe)
    dom = _run(browser, tmp_path, page, "--allow-file-access-from-files", "--dump-dom")
    assert re.search(r"<title>(.*?)</title>", dom)[1].split() == [str(w) for _ in SAMPLES for w in widths]
