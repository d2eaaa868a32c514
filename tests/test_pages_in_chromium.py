"""The pages of `explain` and `report` in a real browser: they fit a phone and a desk, and are dark where asked."""

import os
from pathlib import Path

import pytest

from tests.coordinator.web.test_page_in_chromium import CHROMIUM, DARK, LIGHT, NARROWEST, WIDTHS, framed, shoot
from tests.tiny import some_text

pytestmark = [pytest.mark.torture, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")]


@pytest.fixture
def pages(run, ready, tmp_path):
    """Both pages, of a model that was trained."""
    run("train", "--steps", "12")
    (tmp_path / "page.txt").write_text(f"{some_text(1)[:700]}\n\n{'longword' * 40}\n")
    run("explain", tmp_path / "page.txt", "--html", tmp_path / "explain.html")
    run("report", "--elsewhere", "--html", tmp_path / "report.html")
    return tmp_path


@pytest.mark.parametrize("page", ["explain", "report"])
def test_pages_are_drawn_in_both_colours_and_every_width(pages, page):
    folder, file = Path(os.environ.get("SHOTS", pages)), (pages / f"{page}.html").as_uri()  # SHOTS=FOLDER keeps them
    for name, width in WIDTHS.items():
        for is_dark in (False, True):
            target = folder / f"{page}-{name}-{'dark' if is_dark else 'light'}.png"
            address = file if width >= NARROWEST else framed(file, width, pages)
            image = shoot(address, target, max(width, NARROWEST), is_dark)[:, :width]
            corner = image[2, 2]
            assert abs(int(corner.max()) - (DARK if is_dark else LIGHT)) <= 3
            assert (image[:, -3:] == corner).all()  # nothing runs out of the window
            assert ((image.max(-1).astype(int) - image.min(-1)) > 20).sum() > 2000  # experts, bars and curves have their colours
