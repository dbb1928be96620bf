"""Kills a command again and again: what is seen afterwards is all or nothing.

  interrupt.py COMMAND PROGRAM STORE DIR SHARE KILLS POINTS [CALL...]

KILLS times at any moment; and with strace at so many POINTS, or `all`, of its system calls that change
something, or of these CALLs. Only the SHARE k/n of that is done. COMMAND is instance or attach: the store has
web@r1; for `attach`, DIR has what two paused VMs left, in paused/first and paused/second, and STORE.seed is the
store without a snapshot. Or it is one of those in operations.py.
"""

import json
import os
import sys

import operations
import vm
from killing import Killed, Share, restore


class Instance(Killed):
    def prepare(self):
        self.vms = f"{self.place}/vms"
        os.makedirs(self.vms, exist_ok=True)
        self.dest = f"{self.vms}/killed"
        self.listing = vm_state(self.store)

    def args(self):
        return ["instance", "web@r1", self.dest, "--extra-disk", "10"]

    def look(self, killed):
        if os.path.lexists(self.dest):
            vm.is_instance(self.dest, self.revision)
            if os.stat(f"{self.dest}/data.img").st_size != 10 << 20:
                self.fail(f"the data disk is not whole")
            self.done += killed
        elif not killed:
            self.fail(f"it has ended, but there is no instance")
        for name in os.listdir(self.vms):
            if name != "killed" and not name.startswith(".template-store-killed."):
                self.fail(f"{name} was left")
        if vm_state(self.store) != self.listing:
            self.fail(f"a file of the store has changed")
        listed = json.loads(self.run("--json", "instance", "list").stdout)["instances"]
        if [one["path"] for one in listed] != [self.dest] * os.path.lexists(self.dest):
            self.fail(f"listed are {listed}")

    def next(self):
        """The next instance sweeps what the dead one left."""
        self.run("instance", "web@r1", f"{self.vms}/next")
        vm.is_instance(f"{self.vms}/next", self.revision)
        if left := [name for name in os.listdir(self.vms) if name.startswith(".")]:
            self.fail(f"the next instance has not swept {left}")
        for name in os.listdir(self.vms):
            self.run("instance", "rm", f"{self.vms}/{name}")
        if left := os.listdir(self.vms):
            self.fail(f"not removed: {left}")


def vm_state(store):
    """Names, inodes, modes and times of the store's files; their bytes are verified."""
    lines = []
    for top in (f"{store}/templates", f"{store}/.store/objects"):
        for name in sorted(vm.files_of(top)):
            have = os.lstat(f"{top}/{name}")
            lines.append((name, have.st_ino, have.st_uid, have.st_gid, have.st_mode, have.st_mtime_ns, have.st_size))
    return lines


class Attach(Killed):
    """In turns to a revision without a snapshot, and to one that has the other one."""

    turn = 0
    files = {"vmstate": "vmstate.bin", "mem": "mem.bin", "rootfs.ext4": "drives/rootfs", "scratch.img": "drives/scratch"}

    def prepare(self):
        self.turn += 1
        if self.turn % 2:
            restore(self.store + ".seed", self.store)
            self.before = None
        else:
            self.before = self.seen()
        self.label = "first" if self.before == "second" else "second"

    def args(self, label=None):
        place = f"{self.place}/paused/{label or self.label}"
        drives = ["--drive", f"rootfs={place}/rootfs.ext4", "--drive", f"scratch={place}/scratch.img"]
        return ["snapshot", "attach", "web@r1", "--vmstate", f"{place}/vmstate", "--mem", f"{place}/mem", *drives]

    def seen(self):
        """Which snapshot is there, as a whole."""
        snapshot = f"{self.revision}/snapshot"
        if not os.path.lexists(snapshot):
            return None
        if sorted(vm.files_of(snapshot)) != sorted([*self.files.values(), "snapshot.json"]):
            self.fail(f"the snapshot has {sorted(vm.files_of(snapshot))}")
        have = {name: vm.data(f"{snapshot}/{file}")[0] for name, file in self.files.items()}
        for label in ("first", "second"):
            if have == self.digests(label):
                return label
        self.fail(f"the snapshot is neither of the two")

    known = {}

    def digests(self, label):
        if label not in self.known:
            self.known[label] = {name: vm.data(f"{self.place}/paused/{label}/{name}")[0] for name in self.files}
        return self.known[label]

    def look(self, killed):
        have = self.seen()
        if have not in (self.before, self.label):
            self.fail(f"there is {have}; before there was {self.before}, and {self.label} was attached")
        if not killed and have != self.label:
            self.fail(f"it has ended, but is not attached")
        self.done += killed and have == self.label
        self.run("snapshot", "show", "web@r1", codes=[0 if have else 3])
        if set(os.listdir(self.revision)) - {"snapshot"} != set(os.listdir(f"{self.store}.seed/templates/web/artifacts/r1")):
            self.fail(f"the revision has {os.listdir(self.revision)}")

    def next(self):
        """The next one is attached whatever was left; in every other turn the collection comes first."""
        if self.turn % 4 < 2:
            self.run("gc")
        self.run(*self.args())
        if self.seen() != self.label:
            self.fail(f"the next attach has not attached it")
        vm.is_snapshot(self.revision)


if __name__ == "__main__":
    kind, program, store, place, share, kills, points, *calls = sys.argv[1:]
    kinds = {"instance": Instance, "attach": Attach, **operations.KINDS}
    killed = kinds[kind](program, store, place)
    killed.traces = calls or killed.traces
    if kills != "0":
        killed.timed(int(kills), Share(share))
    if points != "0":
        killed.traced(points, Share(share))
