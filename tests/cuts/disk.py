"""A disk that logs what is written to it, and the disks that a power cut could have left of it.

qemu-storage-daemon passes each request on to a file and appends it to a log (its driver blklogwrites), and exports
the disk as one file over FUSE; a loop device makes a block device of that. The log has the format of the kernel's
dm-log-writes: see Documentation/admin-guide/device-mapper/log-writes.rst and drivers/md/dm-log-writes.c in Linux,
block/blklogwrites.c in QEMU. The daemon logs a request when it is done, so writes stand before the flush that made them
last. Two things differ from dm-log-writes: writes are logged at once, not at the next flush, and the number of entries
in the first sector is brought up to date only now and then, so it is the log's size that says how many there are.
"""

import mmap
import os
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass

# What a drive writes as a whole. The loop device says so to the file system.
SECTOR = 4096
LOG_SECTOR = 512
HEAD = struct.Struct("<QQQQ")
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


def run(*command, **options):
    """Runs a tool that must succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stdout.strip()}")
    return done.stdout.strip()


class Loop:
    """A block device on a file."""

    def __init__(self, path, *options):
        self.device = run("losetup", "--find", "--show", f"--sector-size={SECTOR}", *options, path)

    def close(self):
        # Older kernels remember a btrfs that they have seen here, and refuse an older state of it elsewhere.
        if shutil.which("btrfs"):
            subprocess.run(["btrfs", "device", "scan", "--forget", self.device], capture_output=True)
        run("losetup", "--detach", self.device)


class Mounted:
    """A mounted file system; unmounting waits for whoever is just leaving it."""

    def __init__(self, device, place, options):
        self.place = place
        run("mount", "-o", options, device, place)

    def __enter__(self):
        return self.place

    def __exit__(self, *_):
        for wait in (0.01, 0.05, 0.2, 1, 5):
            try:
                return run("umount", self.place) and None
            except RuntimeError as error:
                failed = error
                time.sleep(wait)
        raise failed


class LoggedDisk:
    """The file `disk` as a block device; all that changes it is in the file `log`."""

    def __init__(self, disk, log, scratch):
        self.log = log
        export, pid = f"{scratch}/export", f"{scratch}/daemon.pid"
        for path in (log, export):
            open(path, "w").close()
        self.daemon = subprocess.Popen(
            ["qemu-storage-daemon", "--pidfile", pid]
            + ["--blockdev", f"driver=file,node-name=disk,filename={disk}"]
            + ["--blockdev", f"driver=file,node-name=log,filename={log}"]
            + ["--blockdev", "driver=blklogwrites,node-name=logged,file=disk,log=log"]
            + ["--export", f"type=fuse,id=export,node-name=logged,mountpoint={export},writable=on"],
            # Whoever interrupts a run in a terminal must not take the disk from under the file system.
            start_new_session=True,
        )
        while not os.path.exists(pid):
            if self.daemon.poll() is not None:
                raise RuntimeError("qemu-storage-daemon did not start")
            time.sleep(0.02)
        # Not with --direct-io: then the loop device has several requests under way at once, and older daemons (10.0
        # does) read the next one into the buffer of a write that they have not done yet.
        self.loop = Loop(export)

    def position(self):
        """How far the log has come."""
        return os.stat(self.log).st_size

    def close(self):
        self.loop.close()
        self.daemon.terminate()
        self.daemon.wait()


@dataclass(frozen=True)
class Entry:
    """One request: what it does, where, and how long the log is with it."""

    flags: int
    at: int
    size: int
    data: int
    end: int


class Log:
    """A log that nobody writes to any more."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.entries = []
        place = LOG_SECTOR
        while place < len(self.bytes):
            sector, sectors, flags, _ = HEAD.unpack_from(self.bytes, place)
            if flags & ~(FLUSH | FUA | DISCARD | MARK):
                raise RuntimeError(f"entry {len(self.entries)} of the log has the flags {flags:#x}")
            data, size = place + LOG_SECTOR, sectors * LOG_SECTOR
            place = data if flags & DISCARD else data + size
            self.entries.append(Entry(flags, sector * LOG_SECTOR, size, data, place))

    def units(self, number):
        """What an entry writes, cut up as a drive may tear it: (where, the bytes, name) of each part."""
        entry = self.entries[number]
        at = entry.at
        while at < entry.at + entry.size:
            size = min(SECTOR - at % SECTOR, entry.at + entry.size - at)
            data = entry.data + at - entry.at
            # What a discarded block holds is up to the drive; this one gives zeros.
            yield at, bytes(size) if entry.flags & DISCARD else self.bytes[data : data + size], (number, at)
            at += size


def copy_sparse(source, target):
    """Makes `target` the same as `source`; its holes cost nothing."""
    with open(source, "rb", buffering=0) as origin, open(target, "wb", buffering=0) as copy:
        size, at = os.fstat(origin.fileno()).st_size, 0
        copy.truncate(size)
        while at < size:
            try:
                at = os.lseek(origin.fileno(), at, os.SEEK_DATA)
            except OSError:
                break  # only a hole is left
            hole = os.lseek(origin.fileno(), at, os.SEEK_HOLE)
            os.lseek(copy.fileno(), at, os.SEEK_SET)
            while at < hole:
                at += os.sendfile(copy.fileno(), origin.fileno(), at, hole - at)


class Rebuilt:
    """The disk as it was at the start, brought forward along the log; and copies of it with more."""

    def __init__(self, start, log, path):
        self.start, self.log, self.path = start, log, path
        self.upto = None

    def forward(self, upto):
        """Applies all entries before number `upto`."""
        if self.upto is None or upto < self.upto:
            copy_sparse(self.start, self.path)
            self.upto = 0
        with open(self.path, "r+b", buffering=0) as file:
            for number in range(self.upto, upto):
                for at, data, _ in self.log.units(number):
                    os.pwrite(file.fileno(), data, at)
        self.upto = upto

    def write(self, state, target):
        """Makes `target` the disk of a state."""
        self.forward(state.flushed)
        copy_sparse(self.path, target)
        with open(target, "r+b", buffering=0) as file:
            for at, data, _ in state.chosen(self.log):
                os.pwrite(file.fileno(), data, at)
