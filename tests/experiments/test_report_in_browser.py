"""The report as a browser shows it: on a phone and on a desk, in light and in dark."""

import html
import itertools
import json
import os
import shutil
import subprocess

import pytest

from experiments.reporting.captions import CHARTS

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = {"phone": 390, "desk": 1200}
SCHEMES = ("light", "dark")

# A frame with a color-scheme of its own is what the page's media queries see.
FRAME = (
    '<iframe width="{width}" height="800" style="color-scheme: {scheme}" srcdoc="{page}"></iframe>'
)
MEASURE = """
<script>
addEventListener("load", () => {
  const measured = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, style = element => getComputedStyle(element);
    const all = "h1, h2, th, td, strong, figcaption, summary, code, .card *";
    const texts = [...page.querySelectorAll(all)];
    return {
      images: [...page.images].map(image => image.complete ? image.naturalWidth : 0),
      widths: [...page.images].map(image => image.getBoundingClientRect().width),
      charts: [...page.querySelectorAll("svg")].map(chart => chart.getBoundingClientRect().width),
      inks: [...new Set([...page.querySelectorAll("svg text")].map(text => style(text).fill))],
      first: page.images[0].getBoundingClientRect().bottom,
      overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
      page: style(page.body).backgroundColor,
      card: style(page.querySelector("section")).backgroundColor,
      colors: [...new Set(texts.map(text => style(text).color))],
      smallest: Math.min(...texts.map(text => parseFloat(style(text).fontSize))),
    };
  });
  document.body.textContent = "measured:" + JSON.stringify(measured) + ":end";
});
</script>
"""


@pytest.fixture(scope="module")
def measured(uninterrupted, tmp_path_factory):
    """What the browser measured in each (width, scheme), and the pictures that there are."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser found; install one of: {', '.join(BROWSERS)}")
    directory = tmp_path_factory.mktemp("browser")
    report = html.escape((uninterrupted / "report.html").read_text())
    variants = list(itertools.product(WIDTHS, SCHEMES))
    frames = [
        FRAME.format(width=WIDTHS[width], scheme=scheme, page=report) for width, scheme in variants
    ]
    page = directory / "frames.html"
    page.write_text(f"<!DOCTYPE html><body>{''.join(frames)}{MEASURE}</body>")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={directory / 'profile'}", "--dump-dom", page.as_uri()]
    shown = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"HOME": str(directory)},
    ).stdout
    values = shown.split("measured:", 1)[1].split(":end", 1)[0]
    return dict(zip(variants, json.loads(html.unescape(values)), strict=True))


def contrast(one, other):
    """The contrast ratio of two colours as WCAG defines it, 1 to 21."""

    def luminance(color):
        channels = [int(value) / 255 for value in color.strip("rgba()").split(",")[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_every_picture_loads_and_fits(measured, uninterrupted):
    names = {path.name for path in uninterrupted.glob("*.png")} - set(CHARTS)
    assert {"samples.png", "real_images.png", "traversals.png", "completions.png"} <= names
    for (width, _), values in measured.items():
        assert len(values["images"]) == len(names)
        assert min(values["images"]) > 100
        widths = sorted(values["widths"] + values["charts"])
        assert len(values["charts"]) == 2 and widths[-1] <= WIDTHS[width]
        assert widths[0] > 150 and widths[2] > 300, "samples and real images share the width"


def test_the_first_screen_of_a_phone_has_samples(measured):
    assert all(values["first"] < 844 for (width, _), values in measured.items() if width == "phone")


def test_nothing_has_to_be_scrolled_sideways(measured):
    assert [values["overflow"] for values in measured.values()] == [0] * len(measured)


def test_text_is_legible_in_light_and_in_dark(measured):
    white = "rgb(255, 255, 255)"
    for (_, scheme), values in measured.items():
        assert (contrast(values["page"], white) > 7) == (scheme == "dark")
        assert min(contrast(color, values["card"]) for color in values["colors"]) > 4.5
        assert min(contrast(color, values["card"]) for color in values["inks"]) > 4.5
        assert values["smallest"] >= 14
