"""The status page of a real coordinator in a real browser: it loads, fits a phone and a desk, and is dark where asked."""

import os
import shutil
import ssl
import struct
import subprocess
import urllib.request
import zlib
from html import escape
from pathlib import Path

import numpy as np
import pytest

from tests.coordinator.rig import Coordinator, Member, random_arrays
from tests.coordinator.web.test_private_windows import drawn

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.torture, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")]
WIDTHS = {"desk": 1280, "tablet": 800, "phone": 360}
NARROWEST = 500  # no window of Chromium is narrower
LIGHT, DARK = 246, 22  # of the page's paper


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Four devices, a dozen rounds, one generalist that was turned back, one device that was revoked."""
    running = Coordinator(tmp_path_factory.mktemp("fleet") / "data", goal=3)
    members = [Member(running.invite(name)) for name in ("kitchen-pi", "attic-jetson", "garage", "guest-room-orange-pi-5-plus")]
    running.command("revoke", "guest-room-orange-pi-5-plus")
    members[0].push(random_arrays(0), loss=3.1)
    running.until(lambda status: status["newest_round"] == 0)
    for number in range(1, 13):
        for index, member in enumerate(members[:3]):
            member.push(random_arrays(10 * number + index), loss=2.2 + 1.1 / number + 0.03 * index if index else None)
        running.until(lambda status, number=number: status["newest_round"] >= number)
        if number == 7:
            turn_back(running, members)
    members[0].pull(tmp_path_factory.mktemp("pulled"))
    members[1].push(random_arrays(999), loss=2.25)
    yield running
    running.stop()


def turn_back(running, members):
    from coordinator.protocol.messages import Refusal

    for member in members[:2]:
        member.remote.refuse(Refusal(round=7, loss_before=2.3, loss_after=2.9))


def shoot(address, target, width, is_dark, height=1700):
    subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors", "--hide-scrollbars",
         f"--user-data-dir={target}.profile", f"--window-size={width},{height}", f"--screenshot={target}",
         f"--blink-settings=preferredColorScheme={0 if is_dark else 1}", address],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return pixels(target)


def framed(address, width, folder):
    """A file that shows the page in a frame as wide as a phone."""
    with urllib.request.urlopen(address, context=ssl._create_unverified_context()) as answer:
        html = answer.read().decode()
    file = folder / "frame.html"
    style = f"border: 0; width: {width}px; height: 1700px"
    file.write_text(f'<body style="margin: 0"><iframe style="{style}" srcdoc="{escape(html)}"></iframe>')
    return file.as_uri()


def pixels(path):
    """The (height, width, 3) numbers of an 8-bit RGB(A) PNG, by the format's own definition."""
    data, at, packed = Path(path).read_bytes(), 8, b""
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack_from(">IIBB", data, at + 8)
        packed += data[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    assert depth == 8
    count = {2: 3, 6: 4}[colour]
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * count)
    image = np.zeros((height, width * count), np.uint8)
    for index, (kind, row) in enumerate(zip(rows[:, 0], rows[:, 1:], strict=True)):
        above = image[index - 1] if index else np.zeros_like(row)
        image[index] = unfiltered(int(kind), row, above, count)
    return image.reshape(height, width, count)[..., :3]


def unfiltered(kind, row, above, count):
    if kind == 0:
        return row
    if kind == 2:
        return row + above
    out, up = [0] * count + row.tolist(), [0] * count + above.tolist()
    for at in range(count, len(out)):
        left, upper, corner = out[at - count], up[at], up[at - count]
        guess = left if kind == 1 else (left + upper) // 2 if kind == 3 else paeth(left, upper, corner)
        out[at] = (out[at] + guess) & 255
    return np.array(out[count:], np.uint8)


def paeth(left, upper, corner):
    guess = left + upper - corner
    return min((left, upper, corner), key=lambda value: abs(guess - value))


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_the_page_is_drawn_in_both_colours_and_every_width(fleet, tmp_path, name, is_dark):
    folder = Path(os.environ.get("SHOTS", tmp_path))  # SHOTS=FOLDER keeps them, to be looked at
    target, width = folder / f"{name}-{'dark' if is_dark else 'light'}.png", WIDTHS[name]
    address = fleet.address if width >= NARROWEST else framed(fleet.address, width, tmp_path)
    image = shoot(address, target, max(width, NARROWEST), is_dark)[:, :width]
    assert image.shape[1] == width
    corner, edge = image[2, 2], image[:, -3:]
    assert abs(int(corner.max()) - (DARK if is_dark else LIGHT)) <= 3
    assert (edge == corner).all()  # nothing runs out of the window
    greens = (image[..., 1].astype(int) - image[..., 0]) > 60
    assert greens.sum() > 2000  # bars and lines are there


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_a_private_fleets_page_fits_every_width(tmp_path, name, is_dark):
    folder, width = Path(os.environ.get("SHOTS", tmp_path)), WIDTHS[name]
    file = tmp_path / "page.html"
    file.write_text(drawn(tmp_path))
    address = file.as_uri() if width >= NARROWEST else framed(file.as_uri(), width, tmp_path)
    target = folder / f"private-{name}-{'dark' if is_dark else 'light'}.png"
    image = shoot(address, target, max(width, NARROWEST), is_dark)[:, :width]
    assert (image[:, -3:] == image[2, 2]).all()  # nothing runs out of the window
