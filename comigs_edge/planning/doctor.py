"""What hinders training and chat on a device: verdicts, each with what to do about it.

Figures are those of the default base, SmolLM2-135M (docs/raspberry-pi.md): training takes 0.6 GB at the least, and a plan uses
85 % of what is free; a home with its text, two checkpoints and three exported models takes 0.5 GB.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from profiles import available_cores
from profiles.detect import Device

TRAINING_MEMORY, CHAT_MEMORY = 700_000_000, 400_000_000  # bytes
HOME_SIZE, EXPORT_SIZE = 500_000_000, 250_000_000  # bytes
HOT, TOO_HOT = 75.0, 85.0  # degrees Celsius; a Raspberry Pi slows down at 80 and again at 85
LOW_BATTERY = 20  # percent
REBUILD = (
    "CMAKE_ARGS=-DGGML_CUDA=on CUDACXX=/usr/local/cuda/bin/nvcc pip install --force-reinstall --no-deps --no-cache-dir "
    "--no-binary llama-cpp-python llama-cpp-python=={version}"
)
PACKAGES = ("torch", "llama-cpp-python", "numpy")


Offload = Literal["used", "built without CUDA", "not found"]


@dataclass(frozen=True)
class Conditions:
    """What changes from one minute to the next."""

    disk_free: int  # bytes
    load: float  # processes that want to run, mean of the last minute
    cores: int  # that this process may use
    closed: tuple[str, ...] = ()  # what of the home this user cannot write, and why
    service: str | None = None  # what an installed timer runs, where this version installs something else
    offload: Offload | None = None  # what llama.cpp makes of an NVIDIA GPU; None where there is none


@dataclass(frozen=True)
class Finding:
    """One verdict: good, note (nothing to do), poor (it will work, badly) or bad (it will not)."""

    subject: str
    verdict: str
    text: str
    mend: str = ""


def conditions(folder: Path, parts: tuple[Path, ...] = ()) -> Conditions:
    """Of this process, the disk that holds `folder`, and what is written in it: the folder and `parts`."""
    closed = tuple(
        f"{path} ({_reason(path)})" for path in (folder, *parts) if os.path.exists(path) and not os.access(path, os.W_OK)
    )
    return Conditions(shutil.disk_usage(folder).free, os.getloadavg()[0], available_cores(), closed)


def offload(device: Device) -> Offload | None:
    """What the installed llama.cpp makes of the device's NVIDIA GPU; loads it where there is one."""
    if device.gpu is None or importlib.util.find_spec("llama_cpp") is None:
        return None
    from comigs_edge import llamacpp

    if llamacpp.find_gpu() is not None:
        return "used"
    return "not found" if llamacpp.has_cuda() else "built without CUDA"


def _reason(path: Path) -> str:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return "its disk is read-only"
    return f"it is user {path.stat().st_uid}'s, and this is user {os.geteuid()}"


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that do the work, without importing them; None where one is missing."""
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = None
    return installed


def findings(device: Device, here: Conditions, installed: dict[str, str | None]) -> list[Finding]:
    """Everything that is worth saying, in the order of the device's parts."""
    return [
        *_packages(installed), *_home(here), *_service(here), _processor(device, here), *_gpu(device, here, installed),
        _memory(device), _disk(device, here), _heat(device), *_power(device),
    ]  # fmt: skip


def _packages(installed: dict[str, str | None]) -> list[Finding]:
    missing = [name for name, version in installed.items() if version is None]
    if missing:
        return [Finding("packages", "bad", f"{', '.join(missing)} missing", f"pip install {' '.join(missing)}")]
    return [Finding("packages", "good", ", ".join(f"{name} {version}" for name, version in installed.items()))]


def _home(here: Conditions) -> list[Finding]:
    if not here.closed:
        return []
    mend = "mount the disk writable, take the folder over with: sudo chown -R $USER FOLDER, or name another: COMIGS_EDGE_HOME"
    return [Finding("home", "bad", f"cannot be written: {', '.join(here.closed)}; what is there can be read", mend)]


def _service(here: Conditions) -> list[Finding]:
    if here.service is None:
        return []
    text = f"the timer was installed by another version, and runs: {here.service}"
    return [Finding("nights", "poor", text, "comigs-edge service install (--system where it is the whole machine's)")]


def _processor(device: Device, here: Conditions) -> Finding:
    if here.load > 0.75 * here.cores:
        mend = "end the other program, or train at another time; it is found with: top"
        return Finding(
            "processor", "poor", f"{here.load:.1f} processes share {here.cores} cores; training takes much longer", mend
        )
    if "neon" in device.features and "dotprod" not in device.features:
        return Finding("processor", "note", "no dot product instructions (as on a Raspberry Pi 4): chat is slower, all works")
    return Finding("processor", "good", f"{here.cores} cores to use, load {here.load:.1f}")


def _gpu(device: Device, here: Conditions, installed: dict[str, str | None]) -> list[Finding]:
    if here.offload is None:
        return []
    if here.offload == "used":
        return [Finding("GPU", "good", f"{device.gpu}: llama.cpp computes on it")]
    if here.offload == "not found":
        text = f"{device.gpu}: llama.cpp was built with CUDA and finds no device, so chat runs on the processor"
        return [Finding("GPU", "poor", text, "install NVIDIA's driver for this CUDA; in a container: docker run --gpus all")]
    text = f"{device.gpu}: this llama.cpp was built without CUDA, so chat runs on the processor"
    return [Finding("GPU", "poor", text, f"rebuild with: {REBUILD.format(version=installed['llama-cpp-python'])}")]


def _memory(device: Device) -> Finding:
    usable = device.usable_memory
    limit = ", limited by the container" if device.memory_limit is not None else ""
    text = f"{usable / 1e9:.1f} GB of {device.memory / 1e9:.1f} GB can be used{limit}"
    if usable < CHAT_MEMORY:
        return Finding("memory", "bad", text, "end other programs; a chat with the default base takes 0.4 GB")
    if usable < TRAINING_MEMORY:
        mend = "end other programs; training the default base takes 0.6 GB at the least, a chat 0.4 GB"
        return Finding("memory", "poor", text, mend)
    return Finding("memory", "good", text)


def _disk(device: Device, here: Conditions) -> Finding:
    kind = f" on {device.disk_kind}" if device.disk_kind else ""
    text = f"{here.disk_free / 1e9:.1f} GB free{kind}"
    if here.disk_free < EXPORT_SIZE:
        return Finding("disk", "bad", text, "make room: an exported model alone takes 0.25 GB")
    if here.disk_free < HOME_SIZE:
        return Finding("disk", "poor", text, "make room, or name another disk with COMIGS_EDGE_HOME: a home takes 0.5 GB")
    if device.disk_kind in ("SD", "eMMC"):
        return Finding("disk", "note", f"{text}, which wears: a checkpoint writes 50 MB, see checkpoint_minutes in config.toml")
    return Finding("disk", "good", text)


def _heat(device: Device) -> Finding:
    degrees = "no thermometer" if device.temperature is None else f"{device.temperature:.0f} °C"
    now = [reason for reason in device.throttled if reason.endswith(" now")]
    if "too little voltage now" in now:
        mend = "use the power supply and the cable that belong to the board"
        return Finding("heat", "poor", f"{degrees}, held back: {', '.join(now)}", mend)
    if now or (device.temperature or 0) >= TOO_HOT:
        return Finding(
            "heat", "poor", f"{degrees}{', held back: ' + ', '.join(now) if now else ''}", "cool it: heat sink, fan, air"
        )
    if device.throttled:
        return Finding("heat", "note", f"{degrees}; held back since it was started: {', '.join(device.throttled)}")
    if (device.temperature or 0) >= HOT:
        return Finding("heat", "note", f"{degrees}: it will slow down under load")
    return Finding("heat", "good", degrees)


def _power(device: Device) -> list[Finding]:
    power = device.power
    if not power.has_battery or power.on_mains:
        return []
    level = "" if power.percent is None else f", {power.percent} %"
    low = power.percent is not None and power.percent < LOW_BATTERY
    return [Finding("power", "poor" if low else "note", f"on battery{level}", "plug it in" if low else "")]
