"""What this device is: read from files of the kernel, never by running a program.

Every reader takes the root of the file system, so recorded trees of other devices can be read by the tests. What a device
does not have is None or empty; nothing here raises for a file that is missing or odd.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# ARM's part numbers (main id register, as /proc/cpuinfo prints them) of the cores in boards that people own.
ARM_PARTS = {
    "0xd03": "Cortex-A53", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72", "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1", "0xd41": "Cortex-A78", "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2", "0x004": "Carmel", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510", "0xd47": "Cortex-A710",
    "0xd4d": "Cortex-A715", "0xd80": "Cortex-A520", "0xd81": "Cortex-A720",
}  # fmt: skip
LITTLE = {"Cortex-A53", "Cortex-A55", "Cortex-A510", "Cortex-A520"}  # beside faster cores they hold these up
# What matters for matrix products -> its name in /proc/cpuinfo.
FEATURES = {
    "neon": "asimd", "dotprod": "asimddp", "i8mm": "i8mm", "bf16": "bf16", "fp16": "asimdhp", "sve": "sve", "avx2": "avx2",
    "avx512": "avx512f", "vnni": "avx512_vnni", "avx_vnni": "avx_vnni", "avx512_bf16": "avx512_bf16",
    "amx": "amx_int8",
}  # fmt: skip
_NO_LIMIT = 1 << 60  # cgroup v1 writes a number of about this size for no limit


@dataclass(frozen=True)
class Cores:
    """Cores of one kind."""

    kind: str
    count: int
    max_mhz: int | None


@dataclass(frozen=True)
class Power:
    """Where the electricity comes from."""

    has_battery: bool
    on_mains: bool
    percent: int | None  # of the battery


@dataclass(frozen=True)
class Device:
    """What a device has; sizes in bytes, temperatures in degrees Celsius."""

    model: str
    cores: tuple[Cores, ...]
    features: tuple[str, ...]
    memory: int
    memory_available: int
    memory_limit: int | None  # of the container, where it is less than the memory
    memory_left: int | None  # of that limit
    disk_kind: str | None  # SD, eMMC, NVMe, SSD or HDD
    gpu: str | None
    has_unified_memory: bool  # the GPU's is the device's own, as on a Jetson
    power_mode: str | None  # of a Jetson
    temperature: float | None  # of the hottest zone
    throttled: tuple[str, ...]
    power: Power

    @property
    def has_bfloat16(self) -> bool:
        """Whether every core multiplies matrices of bfloat16 by instructions for it."""
        return not {"bf16", "avx512_bf16"}.isdisjoint(self.features)

    @property
    def slow_cores(self) -> int:
        """Cores that are slow beside others of this device."""
        slow = sum(each.count for each in self.cores if each.kind in LITTLE)
        return slow if slow < sum(each.count for each in self.cores) else 0

    @property
    def usable_memory(self) -> int:
        """Bytes that a program may still take."""
        return self.memory_available if self.memory_left is None else min(self.memory_available, self.memory_left)


def detect(root: Path = Path("/"), folder: str = "/") -> Device:
    """The device whose files are below `root`; `folder` is the one whose disk is asked for."""
    cpuinfo, meminfo = _text(root / "proc/cpuinfo"), _meminfo(root)
    memory, (limit, left) = meminfo.get("MemTotal", 0), memory_limit(root)
    is_limited = limit is not None and limit < memory
    tegra = "nvidia,tegra" in _text(root / "proc/device-tree/compatible")
    return Device(
        model=model(root),
        cores=cores(root, cpuinfo),
        features=features(cpuinfo),
        memory=memory,
        memory_available=meminfo.get("MemAvailable", 0),
        memory_limit=limit if is_limited else None,
        memory_left=left if is_limited else None,
        disk_kind=disk_kind(root, folder),
        gpu=gpu(root, tegra),
        has_unified_memory=tegra,
        power_mode=power_mode(root) if tegra else None,
        temperature=temperature(root),
        throttled=read_throttling(root),
        power=power(root),
    )


def model(root: Path) -> str:
    """The board's or the machine's name."""
    for path in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        if name := _text(root / path).strip("\0\n "):
            return name
    return "unknown"


def cores(root: Path, cpuinfo: str) -> tuple[Cores, ...]:
    """Kinds of core with their number, the fastest first."""
    kinds: dict[tuple[str, int | None], int] = {}
    for block in re.split(r"\n\s*\n", cpuinfo.strip()):
        fields = dict(re.findall(r"^([^:\n]+?)\s*:\s*(.*)$", block, re.M))
        if "processor" not in fields:
            continue
        part: str = fields.get("CPU part", "unknown")
        name = ARM_PARTS.get(part) or str(fields.get("model name", part))
        hertz = _number(root / f"sys/devices/system/cpu/cpu{fields['processor']}/cpufreq/cpuinfo_max_freq")
        key = (name, None if hertz is None else hertz // 1000)
        kinds[key] = kinds.get(key, 0) + 1
    every = [Cores(name, count, mhz) for (name, mhz), count in kinds.items()]
    return tuple(sorted(every, key=lambda each: -(each.max_mhz or 0)))


def features(cpuinfo: str) -> tuple[str, ...]:
    """Which of FEATURES every core has."""
    lines = [set(line.split()) for line in re.findall(r"^(?:Features|flags)\s*:(.*)$", cpuinfo, re.M)]
    common = set.intersection(*lines) if lines else set()
    return tuple(name for name, flag in FEATURES.items() if flag in common)


def memory_limit(root: Path) -> tuple[int | None, int | None]:
    """Bytes that the control groups of this process allow, the smallest of all levels, and what is left of them.

    Files that are only cached count as left; both are None without a limit.
    """
    paths = re.findall(r"^\d+:([^:]*):(/.*)$", _text(root / "proc/self/cgroup"), re.M) or [("", "/")]
    limits, left = [], []
    for controllers, path in paths:
        if controllers not in ("", "memory"):
            continue
        base = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        limit_name, used_name = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        parts = [part for part in path.split("/") if part]
        for folder in (base / "/".join(parts[:depth]) for depth in range(len(parts) + 1)):
            limit = _number(folder / limit_name)
            if limit is not None and limit < _NO_LIMIT:
                cached = re.search(r"^inactive_file (\d+)$", _text(folder / "memory.stat"), re.M)
                used = (_number(folder / used_name) or 0) - (int(cached[1]) if cached else 0)
                limits.append(limit)
                left.append(limit - max(0, used))
    return min(limits, default=None), min(left, default=None)


def usable_memory(root: Path) -> int | None:
    """Bytes that a program may still take, of the device's and of the container's memory; None where neither is known."""
    limits = (_meminfo(root).get("MemAvailable"), memory_limit(root)[1])
    return min((left for left in limits if left is not None), default=None)


def disk_kind(root: Path, folder: str) -> str | None:
    """The kind of disk that holds `folder`."""
    mounts = [line.split()[:2] for line in _text(root / "proc/mounts").splitlines() if line.startswith("/dev/")]
    holding = [(len(where), device) for device, where in mounts if f"{folder}/".startswith(f"{where.rstrip('/')}/")]
    if not holding:
        return None
    name = Path(max(holding)[1]).name
    if name.startswith("nvme"):
        return "NVMe"
    if card := re.match(r"mmcblk\d+", name):
        return "SD" if _text(root / f"sys/block/{card[0]}/device/type").strip() == "SD" else "eMMC"
    rotational = _number(root / f"sys/block/{re.sub(r'[0-9]+$', '', name)}/queue/rotational")
    return None if rotational is None else "HDD" if rotational else "SSD"


def gpu(root: Path, tegra: bool) -> str | None:
    """The name of an NVIDIA GPU."""
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        if name := re.search(r"^Model:\s*(.+)$", _text(path), re.M):
            return name[1].strip()
    return "integrated (Tegra)" if tegra else None


def power_mode(root: Path) -> str | None:
    """The name of a Jetson's power mode, or its number."""
    mode = re.search(r"pmode:0*(\d+)", _text(root / "var/lib/nvpmodel/status"))
    if mode is None:
        return None
    table = _text(root / "etc/nvpmodel.conf")
    name = re.search(rf"<\s*POWER_MODEL\s+ID={mode[1]}\s+NAME=(\S+)", table)
    return name[1].rstrip(">") if name else mode[1]


def temperature(root: Path) -> float | None:
    """Of the hottest thermal zone; values that no chip survives are left out.

    So is a Jetson's PMIC-Die: below 120 degrees it always says 100, having no thermometer.
    """
    zones = (root / "sys/class/thermal").glob("thermal_zone*")
    values = [_number(zone / "temp") for zone in zones if not _text(zone / "type").startswith("PMIC-Die")]
    degrees = [value / 1000 for value in values if value is not None and -40_000 < value < 150_000]
    return max(degrees, default=None)


def read_throttling(root: Path) -> tuple[str, ...]:
    """What holds a Raspberry Pi back now or has since it was started (its firmware's `get_throttled`)."""
    # soc/soc:firmware up to the Pi 4, soc@107c000000/soc@107c000000:firmware on the Pi 5
    nodes = sorted((root / "sys/devices/platform").glob("soc*/soc*:firmware/get_throttled"))
    text = _text(nodes[0]).strip() if nodes else ""
    try:
        bits = int(text, 16)
    except ValueError:
        return ()
    reasons = ("too little voltage", "frequency capped", "throttled", "too hot")
    now = [f"{reason} now" for bit, reason in enumerate(reasons) if bits >> bit & 1]
    return tuple(now + [f"{reason} earlier" for bit, reason in enumerate(reasons) if bits >> (bit + 16) & 1])


def power(root: Path) -> Power:
    """Battery and mains."""
    supplies = [path for path in (root / "sys/class/power_supply").glob("*") if path.is_dir()]
    batteries = [
        path
        for path in supplies
        if _text(path / "type").strip() == "Battery" and _text(path / "scope").strip() != "Device"  # a mouse has one too
    ]
    online = [_number(path / "online") for path in supplies if _text(path / "type").strip() in ("Mains", "USB")]
    discharging = any(_text(path / "status").strip() == "Discharging" for path in batteries)
    levels = [level for path in batteries if (level := _number(path / "capacity")) is not None]
    on_mains = not batteries or any(online) or (not online and not discharging)
    return Power(bool(batteries), on_mains, min(levels, default=None))


def _meminfo(root: Path) -> dict[str, int]:
    """Bytes by name."""
    return {name: int(value) * 1024 for name, value in re.findall(r"^(\w+):\s+(\d+) kB", _text(root / "proc/meminfo"), re.M)}


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
