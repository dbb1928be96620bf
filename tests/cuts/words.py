"""Commands, the files that they are given, and what a survey finds when they are done."""

import hashlib
import json
import os
import random
import subprocess
from dataclasses import dataclass, field
from typing import Callable

MACHINE = {"vcpu_count": 1, "mem_size_mib": 1}
ROOT_DRIVE = {"drive_id": "rootfs", "path_on_host": "rootfs.ext4", "is_root_device": True, "is_read_only": False}
FC_BASE = {
    "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0"},
    "drives": [ROOT_DRIVE],
    "machine-config": MACHINE,
}

@dataclass
class Command:
    """One call of the program, and what it changes."""

    args: list
    changes: dict = field(default_factory=dict)
    # What somebody else does before it, each time.
    before: Callable = lambda: None
    # When it is done, a second call would do something else, or would fail.
    once: bool = False
    # It dies when one of its threads comes to its sync of this number.
    dies_at: int = 0
    # The commands that died before, and whose work this one completes.
    completes: list = field(default_factory=list)
    # Whether it makes sense, as things are.
    applies: Callable = lambda world: True

    def __str__(self):
        return " ".join(str(arg) for arg in self.args)


class Words:
    """What steps are made of. Files come from `sources`, beside the disk; the store and the VMs are in `place`."""

    def __init__(self, sources, place):
        self.sources, self.place = sources, place
        self.random = random.Random(1)
        self.sha256, self.blake3, self.data = {}, {}, {}
        self.specs = {name: (name, 1, 1) for name in ("web", "api", "db")}
        self.kernels = [self.random.randbytes(70_000) for _ in range(2)]
        # What was built from which lock.
        self.made = {}

    # --- files

    def write(self, name, data):
        path = f"{self.sources}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        self.sha256[name], self.data[name] = hashlib.sha256(data).hexdigest(), data
        return path

    def read_digests(self):
        """The BLAKE3 of each file that was written, by its SHA-256; from a program that is not ours."""
        names = list(self.sha256)
        paths = [f"{self.sources}/{name}" for name in names]
        said = subprocess.run(["b3sum", "--no-names", *paths], check=True, stdout=subprocess.PIPE, text=True)
        self.blake3 = dict(zip((self.sha256[name] for name in names), said.stdout.split()))

    def build(self, name, kernel=0, size=90_000):
        """What a builder has built: a kernel that others have too, a disk of its own, and a configuration."""
        self.write(f"{name}/vmlinux", self.kernels[kernel])
        self.write(f"{name}/rootfs.ext4", self.random.randbytes(size))
        self.write(f"{name}/fc-base.json", json.dumps(FC_BASE).encode())
        return f"{self.sources}/{name}"

    def lock(self, name, build):
        """The options that say what a build is made from."""
        text = {"version": 7, "root": "root", "nodes": {"root": {}}, "name": name}
        path = self.write(f"{name}.lock/flake.lock", json.dumps(text).encode())
        self.made[build] = ["--flake-lock", path, "--profile", "minimal", "--role", "worker"]
        return self.made[build]

    def paused(self, name):
        """What a VMM leaves of a paused VM."""
        self.write(f"{name}/vmstate", self.random.randbytes(30_000))
        memory = bytearray(1 << 20)
        for page in range(0, 256, 16):
            memory[page << 12 : (page + 1) << 12] = self.random.randbytes(1 << 12)
        self.write(f"{name}/mem", bytes(memory))
        self.write(f"{name}/rootfs.ext4", self.random.randbytes(90_000))
        return f"{self.sources}/{name}"

    # --- what a survey will find; digests are filled in when all files are there

    def files(self, **names):
        """What a survey says of files: name and source of each, slashes as two underlines."""

        def found():
            digests = {name: self.sha256[source] for name, source in names.items()}
            return tuple((name, digests[name], self.blake3[digests[name]]) for name in sorted(digests))

        return found

    def revision(self, build):
        names = ("vmlinux", "rootfs.ext4", "fc-base.json")
        return self.files(**{name: f"{build}/{name}" for name in names})

    def published(self, template, revision, build, current=True):
        changes = {("template", template): self.specs[template], ("revision", template, revision): self.revision(build)}
        return changes | ({("current", template): revision} if current else {})

    def attached(self, template, revision, paused):
        parts = {"vmstate.bin": "vmstate", "mem.bin": "mem", "drives/rootfs": "rootfs.ext4"}
        return {
            ("snapshot", template, revision): self.files(**{name: f"{paused}/{file}" for name, file in parts.items()}),
            ("told of snapshot", template, revision): lambda: self.sha256[f"{paused}/vmstate"],
        }

    def instance(self, **names):
        def found():
            have = {name: self.sha256.get(source, source) for name, source in names.items()}
            return tuple(sorted(have.items()))

        return found

    # --- commands

    def publish(self, template, revision, build, *options, current=True, **more):
        args = ["publish", template, self.build(build, **more), "--revision", revision, *options]
        return Command(args, self.published(template, revision, build, current))

    def attach(self, template, revision, name):
        at = self.paused(name)
        args = ["snapshot", "attach", f"{template}@{revision}", "--vmstate", f"{at}/vmstate", "--mem", f"{at}/mem"]
        return Command([*args, "--drive", f"rootfs={at}/rootfs.ext4"], self.attached(template, revision, name))

    def make(self, name, target, found, *options):
        vms = f"{self.place}/vms"
        args = ["instance", target, f"{vms}/{name}", *options]
        return Command(args, {("instance", name): found}, before=lambda: os.makedirs(vms, exist_ok=True), once=True)


def settled(value):
    """A value of a change; those of files are known when all files are written."""
    return value() if callable(value) else value
