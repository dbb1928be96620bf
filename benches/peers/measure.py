"""What a command takes, as the kernel counted it."""

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

SYNCS = "fsync,fdatasync,syncfs,sync,sync_file_range,msync"


class Failed(Exception):
    """A command that failed: the message is the last thing that it said."""


@dataclass
class Took:
    wall: float
    # User and system time of the whole process tree.
    cpu: float
    # Bytes in memory of the largest process of the tree.
    memory: int
    # Bytes that the block device got, with a sync before and after; None where there is no such device.
    written: int | None
    # Bytes on disk that the given paths take more than before.
    growth: int


@dataclass
class Place:
    """Where everything happens, and how commands find it."""

    root: Path
    env: dict = field(default_factory=dict)

    def settle(self):
        """Nothing of what came before is still to be written."""
        subprocess.run(["sync", "-f", self.root], check=True)

    def run(self, script, env, cwd=None):
        """Runs a shell script that is not measured."""
        run(["sh", "-ec", script], {**self.env, **env}, cwd)

    def measure(self, script, env, grows):
        """Runs a shell script; `grows` are the paths whose size on disk is watched."""
        self.settle()
        written, size = self._written(), disk_usage(grows)
        report = self.root / "took"
        # The peak memory of a child counts its parent before the exec, and an interpreter is larger than some of
        # these programs. GNU time is small.
        command = ["time", "-q", "-o", report, "-f", "%U %S %M", "sh", "-ec", script]
        start = time.monotonic()
        run(command, {**self.env, **env})
        wall = time.monotonic() - start
        user, system, memory = report.read_text().split()[-3:]
        self.settle()
        after = self._written()
        return Took(
            wall=wall,
            cpu=float(user) + float(system),
            memory=int(memory) * 1024,
            written=None if after is None else after - written,
            growth=disk_usage(grows) - size,
        )

    def count_syncs(self, script, env):
        """Runs a shell script; how often each call that writes to the disk was made."""
        report = self.root / "syncs"
        run(["strace", "-f", "-c", "-o", report, "-e", f"trace={SYNCS}", "sh", "-ec", script], {**self.env, **env})
        counts = {}
        for line in report.read_text().splitlines():
            words = line.split()
            if len(words) >= 5 and words[-1] in SYNCS.split(","):
                counts[words[-1]] = int(words[3])
        return counts

    def _written(self):
        device = os.stat(self.root).st_dev
        try:
            stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
        except FileNotFoundError:
            return None
        return int(stat[6]) * 512

    def remove(self, path):
        """Root needs no modes for that; to change them would change what is linked elsewhere as well."""
        subprocess.run(["rm", "-rf", path], check=True)


def run(command, env, cwd=None):
    """Runs a command in a process group of its own, which is ended with us."""
    with subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as child:
        try:
            said, _ = child.communicate()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode != 0:
        raise Failed(last_words(said.decode(errors="replace")) or f"exit code {child.returncode}")


def last_words(text):
    """The last line that says something, without paths."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"/\S+", "…", lines[-1])[:120] if lines else ""


def disk_usage(paths):
    """Bytes on disk; files with several names count once."""
    there = [path for path in paths if path.exists()]
    if not there:
        return 0
    # One `du` for all of them, and its total: a file that two of them have is still one.
    said = subprocess.run(["du", "-s", "-c", "-B1", *there], check=True, capture_output=True, text=True).stdout
    return int(said.splitlines()[-1].split()[0])
