"""Devices that are not here, as the files of their kernels: written after what these boards' kernels print."""

import dataclasses

import pytest

from profiles import detect
from profiles.detect import Cores, Power

PI_FLAGS = {
    "0xd08": "fp asimd evtstrm crc32 cpuid",
    "0xd0b": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    "0xd42": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat",
}


def arm(part, count, mhz):
    """cpuinfo and frequencies of `count` equal cores."""
    block = "processor\t: {n}\nBogoMIPS\t: 108.00\nFeatures\t: {flags}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
    files = {"proc/cpuinfo": "\n".join(block.format(n=n, flags=PI_FLAGS[part], part=part) for n in range(count))}
    for number in range(count):
        files[f"sys/devices/system/cpu/cpu{number}/cpufreq/cpuinfo_max_freq"] = f"{mhz * 1000}\n"
    return files


def meminfo(total_kb, available_kb):
    return {"proc/meminfo": f"MemTotal:       {total_kb} kB\nMemFree:  1000 kB\nMemAvailable:   {available_kb} kB\n"}


SD_CARD = {
    "proc/mounts": "/dev/mmcblk0p2 / ext4 rw 0 0\n/dev/mmcblk0p1 /boot vfat rw 0 0\n",
    "sys/block/mmcblk0/device/type": "SD\n",
}
TREES = {
    "Pi 4": arm("0xd08", 4, 1800) | meminfo(3884376, 3312000) | SD_CARD | {
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
        "sys/class/thermal/thermal_zone0/temp": "83276\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    },
    "Pi 5": arm("0xd0b", 4, 2400) | meminfo(8245792, 7400000) | {
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/mounts": "/dev/nvme0n1p2 / ext4 rw 0 0\n",
        "sys/class/thermal/thermal_zone0/temp": "48850\n",
        "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "20002\n",
    },
    "Orin Nano": arm("0xd42", 6, 1510) | meminfo(7802408, 5200000) | {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
        "proc/mounts": "/dev/mmcblk1p1 / ext4 rw 0 0\n",
        "sys/block/mmcblk1/device/type": "SD\n",
        "var/lib/nvpmodel/status": "pmode:0001 fmode:fanNull",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n",
        "sys/class/thermal/thermal_zone0/temp": "51000\n",
        "sys/class/thermal/thermal_zone1/temp": "-256000\n",
    },
    "Xavier": {
        "sys/class/thermal/thermal_zone0/type": "CPU-therm\n",
        "sys/class/thermal/thermal_zone0/temp": "39500\n",
        "sys/class/thermal/thermal_zone4/type": "PMIC-Die\n",
        "sys/class/thermal/thermal_zone4/temp": "100000\n",
    },
    "Orin AGX": arm("0xd42", 12, 2201) | meminfo(64349012, 60000000) | {
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
        "proc/mounts": "/dev/mmcblk0p1 / ext4 rw 0 0\n",
        "sys/block/mmcblk0/device/type": "MMC\n",
        "var/lib/nvpmodel/status": "pmode:0000",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n",
    },
    "laptop": meminfo(16069436, 9000000) | {
        "proc/cpuinfo": "\n".join(
            f"processor\t: {n}\nmodel name\t: 12th Gen Intel(R) Core(TM) i5-1240P\nflags\t\t: fpu sse avx2 avx_vnni f16c\n"
            for n in range(3)
        ),
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "4400000\n",
        "sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq": "3300000\n",
        "sys/devices/system/cpu/cpu2/cpufreq/cpuinfo_max_freq": "3300000\n",
        "sys/class/dmi/id/product_name": "ThinkPad T14\n",
        "proc/mounts": "/dev/nvme0n1p2 / btrfs rw 0 0\n/dev/sda1 /home ext4 rw 0 0\n",
        "sys/block/sda/queue/rotational": "1\n",
        "sys/class/power_supply/BAT0/type": "Battery\n",
        "sys/class/power_supply/BAT0/status": "Discharging\n",
        "sys/class/power_supply/BAT0/capacity": "41\n",
        "sys/class/power_supply/AC/type": "Mains\n",
        "sys/class/power_supply/AC/online": "0\n",
        "sys/class/power_supply/hidpp_0/type": "Battery\n",
        "sys/class/power_supply/hidpp_0/scope": "Device\n",
        "sys/class/power_supply/hidpp_0/capacity": "5\n",
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA GeForce MX550\nIRQ:   \t\t 190\n",
    },
    "container": meminfo(65536000, 60000000) | {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t: avx2 avx512f avx512_vnni\n",
        "proc/self/cgroup": "0::/docker/abc\n",
        "sys/fs/cgroup/memory.max": "max\n",
        "sys/fs/cgroup/docker/memory.max": "4294967296\n",
        "sys/fs/cgroup/docker/abc/memory.max": "1073741824\n",
        "sys/fs/cgroup/docker/abc/memory.current": "773741824\n",
        "sys/fs/cgroup/docker/abc/memory.stat": "anon 500000000\ninactive_file 200000000\n",
    },
    "old container": meminfo(4000000, 3000000) | {
        "proc/self/cgroup": "11:memory:/docker/x\n3:cpu:/docker/x\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "536870912\n",
    },
    "board that was hot": {"sys/devices/platform/soc/soc:firmware/get_throttled": "80000\n"},
    "hot board": {
        "sys/devices/platform/soc/soc:firmware/get_throttled": "8\n",
        "sys/class/thermal/thermal_zone0/temp": "81000\n", "sys/class/thermal/thermal_zone1/temp": "40000\n",
        "proc/cpuinfo": "processor\t: 0\nflags\t: avx2 avx512f\n\nprocessor\t: 1\nflags\t: avx2\n",
    },
    "battery alone": {
        "sys/class/power_supply/BAT0/type": "Battery\n", "sys/class/power_supply/BAT0/status": "Full\n",
        "sys/class/power_supply/BAT0/capacity": "97\n",
    },
    "nothing": {},
}  # fmt: skip
EXPECTED = {
    "Pi 4": {
        "model": "Raspberry Pi 4 Model B Rev 1.4", "cores": (Cores("Cortex-A72", 4, 1800),), "features": ("neon",),
        "memory": 3884376 * 1024, "disk_kind": "SD", "gpu": None, "temperature": 83.276,
        "throttled": ("too little voltage now", "throttled now", "too little voltage earlier", "throttled earlier"),
        "power": Power(False, True, None),
    },
    "Pi 5": {
        "model": "Raspberry Pi 5 Model B Rev 1.0", "cores": (Cores("Cortex-A76", 4, 2400),),
        "features": ("neon", "dotprod", "fp16"), "disk_kind": "NVMe",
        "throttled": ("frequency capped now", "frequency capped earlier"), "temperature": 48.85,
    },
    "Orin Nano": {
        "cores": (Cores("Cortex-A78AE", 6, 1510),), "gpu": "integrated (Tegra)", "has_unified_memory": True,
        "power_mode": "7W", "temperature": 51.0, "disk_kind": "SD",
    },
    "Xavier": {"temperature": 39.5},
    "Orin AGX": {"cores": (Cores("Cortex-A78AE", 12, 2201),), "power_mode": "MAXN", "disk_kind": "eMMC", "temperature": None},
    "laptop": {
        "model": "ThinkPad T14", "features": ("avx2", "avx_vnni"), "gpu": "NVIDIA GeForce MX550", "has_unified_memory": False,
        "cores": (Cores("12th Gen Intel(R) Core(TM) i5-1240P", 1, 4400), Cores("12th Gen Intel(R) Core(TM) i5-1240P", 2, 3300)),
        "power": Power(True, False, 41), "disk_kind": "HDD",
    },
    "container": {"memory_limit": 1 << 30, "usable_memory": 500_000_000, "features": ("avx2", "avx512", "vnni")},
    "old container": {"memory_limit": 512 << 20, "usable_memory": 512 << 20},
    "board that was hot": {"throttled": ("too hot earlier",)},
    "hot board": {"throttled": ("too hot now",), "temperature": 81.0, "features": ("avx2",)},  # what every core has
    "battery alone": {"power": Power(True, True, 97)},  # no file says that a charger is there: it does not discharge
    "nothing": {"model": "unknown", "cores": (), "memory": 0, "power": Power(False, True, None)},
}  # fmt: skip


@pytest.fixture
def tree(tmp_path, request):
    for name, content in TREES[request.param].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


@pytest.mark.parametrize(("tree", "expected"), EXPECTED.items(), indirect=["tree"], ids=EXPECTED.keys())
def test_a_device_is_read_from_its_kernels_files(tree, expected):
    found = detect.detect(tree, "/home/someone")
    for name, value in expected.items():
        assert getattr(found, name) == value, name
    assert (detect.usable_memory(tree) or 0) == found.usable_memory


def test_this_device_has_cores_and_memory():
    found = detect.detect()
    assert sum(each.count for each in found.cores) >= 1
    assert 0 < found.memory_available <= found.memory
    assert dataclasses.asdict(found)["power"]


@pytest.mark.parametrize(
    ("kinds", "slow"),
    [
        ((("Cortex-A76", 4), ("Cortex-A55", 4)), 4),
        ((("Cortex-A73", 4), ("Cortex-A53", 2)), 2),
        ((("Cortex-X1", 1), ("Cortex-A78", 3), ("Cortex-A55", 4)), 4),
        ((("Cortex-A53", 4),), 0),
        ((("Cortex-A55", 4), ("Cortex-A53", 4)), 0),
        ((("12th Gen Intel(R) Core(TM) i5-1240P", 16),), 0),
    ],
)
def test_slow_cores_are_those_made_to_stand_beside_faster_ones(tmp_path, kinds, slow):
    device = dataclasses.replace(detect.detect(tmp_path), cores=tuple(Cores(kind, count, None) for kind, count in kinds))
    assert device.slow_cores == slow
