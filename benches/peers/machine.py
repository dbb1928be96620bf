"""The machine and the versions, in words that name neither the host nor its paths."""

import os
import re
import subprocess
import threading
import time
from pathlib import Path


def describe(root):
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) / (1 << 20)
    kernel = re.match(r"[\d.]+", os.uname().release)[0]
    model = cpu[1] if cpu else os.uname().machine
    return f"{os.cpu_count()} × {model}, {memory:.0f} GiB of memory, Linux {kernel}, {mount(root)}"


def mount(root):
    """The file system that a directory is on, and whether that is a file on another one."""
    mounts = [line.split()[:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = [(at, kind, device) for device, at, kind in mounts if root.is_relative_to(at)]
    _, kind, device = max(above, key=lambda one: len(one[0]))
    return f"{kind} on a loop device" if device.startswith("/dev/loop") else kind


class Load:
    """How many processes wanted to run, ours among them: averages of a minute, asked for in the background."""

    def __init__(self):
        self.seen = [os.getloadavg()[0]]
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while True:
            time.sleep(10)
            self.seen.append(os.getloadavg()[0])

    def range(self):
        return f"{min(self.seen):.1f} to {max(self.seen):.1f}"


def version(peer, env):
    """The first number in what the program says of itself."""
    said = subprocess.run(["sh", "-c", peer.version], env=env, capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+(\.\d+)*", said)
    return f"{peer.name} {found[0]}" if found else peer.name
