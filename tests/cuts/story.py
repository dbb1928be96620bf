"""What is done to the store.

A step is one command, or several at the same time. Each says how it changes what a survey finds; None takes a thing
away.
"""

import os
import shutil
from dataclasses import replace

from words import Command, Words

SMALL = ["--vcpus", "1", "--mem", "1"]
VARIANT = """template_id = "web"
flake_ref = "."
profile = "minimal"

[[variants]]
name = "web"
role = "worker"
vcpus = 3
mem_mib = 1
data_disk_mib = 0
"""


class Story(Words):
    def __init__(self, sources, place, durability):
        super().__init__(sources, place)
        self.store, self.vms = f"{place}/store", f"{place}/vms"
        chapters = (self.builds, self.machines, self.others, self.removals, self.deaths, self.damages)
        self.steps = [[Command(["init", "--durability", durability], {("store",): 1})]]
        self.steps += [step for chapter in chapters for step in chapter()]
        self.read_digests()

    def builds(self):
        """Revisions from directories, from a builder, and from another template; `current` goes to and fro."""
        yield [Command(["create", "web", "--role", "worker", *SMALL], {("template", "web"): self.specs["web"]})]
        yield [self.publish("web", "r1", "first", *self.lock("one", "first"))]
        yield [self.publish("web", "r2", "second", *SMALL)]
        # That a key leads to a revision is a hint, which a cut may take: then it is built again.
        third = self.build("third", kernel=1)
        again = [*self.lock("three", "third"), *SMALL, "--revision", "r3", "--", "sh", "-c"]
        yield [Command(["build", "web", *again, f'cp {third}/* "$OUT"'], self.published("web", "r3", "third"))]
        builder = f'test -n "$AFTER_A_CUT" && cp {third}/* "$OUT"'
        yield [Command(["build", "api", *again, builder], self.published("api", "r3", "third"))]
        pin = Command(["pin", "keep", "web@r1", "--reason", "a try"], {("pin", "keep"): "web@r1"})
        yield [pin, self.publish("db", "r1", "fourth", *SMALL)]
        yield [Command(["activate", "web", "r1"], {("current", "web"): "r1"})]
        yield [Command(["rollback", "web"], {("current", "web"): "r3"}, once=True)]

    def machines(self):
        """Instances, and a snapshot that is replaced."""
        cold = {"vmlinux": "first/vmlinux", "rootfs.ext4": "first/rootfs.ext4", "fc-base.json": "first/fc-base.json"}
        documents = {"instance.json": "a document", "fc.json": "a document"}
        yield [self.make("cold", "web@r1", self.instance(**cold, **documents))]
        yield [self.attach("web", "r1", "paused")]
        yield [self.attach("web", "r1", "later")]
        warm = {"vmstate.bin": "later/vmstate", "mem.bin": "later/mem", "rootfs.ext4": "later/rootfs.ext4"}
        documents = {"instance.json": "a document", "snapshot-load.json": "a document"}
        yield [self.make("warm", "web@r1", self.instance(**warm, **documents), "--snapshot")]

    def others(self):
        """A directory that is moved in, a revision that nobody activates, and two at the same time."""
        moved, inside = self.build("moved", size=60_000), f"{self.place}/built"
        args = ["publish", "web", inside, "--move", "--revision", "r4"]
        yield [Command(args, self.published("web", "r4", "moved"), before=lambda: copy_tree(moved, inside))]
        yield [self.publish("web", "r5", "fifth", "--no-activate", current=False)]
        same = self.publish("db", "r2", "same")
        yield [same, Command([*same.args[:1], "api", *same.args[2:]], self.published("api", "r2", "same"))]
        # Two ask for one build: one builds, the other gets what it built.
        two = self.build("two", size=30_000)
        ask = ["build", "web", *self.lock("two", "two"), "--revision", "two", "--no-activate", "--", "sh", "-c"]
        asked = self.published("web", "two", "two", current=False)
        yield [Command([*ask, f'sleep 0.02; cp {two}/* "$OUT"'], asked) for _ in range(2)]

    def removals(self):
        self.write("web.toml/web.toml", VARIANT.encode())
        self.specs["web"] = ("web", 3, 1)
        yield [Command(["apply", f"{self.sources}/web.toml/web.toml"], {("template", "web"): self.specs["web"]})]
        yield [Command(["rm", "web@r2"], {("revision", "web", "r2"): None}, once=True)]
        yield [Command(["unpin", "keep"], {("pin", "keep"): None}, once=True)]
        old = (("web", "r1"), ("web", "r3"), ("web", "r5"), ("api", "r3"), ("db", "r1"))
        gone = [("revision", *name) for name in old]
        gone += [("snapshot", "web", "r1"), ("told of snapshot", "web", "r1")]
        yield [Command(["gc", "--keep-last", "1"], dict.fromkeys(gone))]
        yield [Command(["instance", "rm", f"{self.vms}/cold"], {("instance", "cold"): None}, once=True)]
        gone = [("template", "db"), ("current", "db"), ("revision", "db", "r2")]
        yield [Command(["rm", "db"], dict.fromkeys(gone), once=True)]

    def deaths(self):
        """Processes die at each of their syncs; what others are told of their work afterwards must hold."""
        numbers = range(1, 8)
        for number in numbers:
            revision = f"dead{number}"
            dies = self.publish("web", revision, revision, size=20_000)
            dies.dies_at = number
            yield [dies]
            yield from self.told(dies, "web", revision)
        for number in (2, 3, 4):
            dies = self.attach("web", "r4", f"paused{number}")
            dies.dies_at = number
            yield [dies]
            yield [replace(dies, dies_at=0, completes=[dies])]
        for number in numbers:
            pin = ("pin", f"see-dead{number}")
            yield [Command(["unpin", pin[1]], {pin: None}, once=True, applies=lambda world, pin=pin: pin in world)]
        gone = [("revision", "web", revision) for revision in ["r4", "two", *(f"dead{n}" for n in numbers[:-1])]]
        gone = dict.fromkeys(gone + [("snapshot", "web", "r4"), ("told of snapshot", "web", "r4")])
        dying = [Command(["gc", "--keep-last", "1"], gone, dies_at=number) for number in (1, 2, 3)]
        for dies in dying:
            yield [dies]
        yield [replace(dying[0], dies_at=0, completes=dying)]

    def told(self, dead, template, revision):
        """What others do who see a revision that somebody published who died."""
        here, current = ("revision", template, revision), ("current", template)
        known = {here: dead.changes[here]}
        pin = ("pin", f"see-{revision}")
        target = f"{template}@{revision}"
        yield [Command(["pin", pin[1], target], known | {pin: target}, applies=lambda world: here in world)]
        is_current = lambda world: world.get(current) == revision
        yield [Command(["activate", template, revision], known | {current: revision}, applies=is_current)]
        yield [replace(dead, dies_at=0, completes=[dead])]

    def damages(self):
        """The index is lost, so a second copy of the same bytes is made; one of the two rots, and is mended."""
        lose = lambda: shutil.rmtree(f"{self.store}/.store/objects", ignore_errors=True)
        yield [Command(["verify", "--repair"], before=lose)]
        yield [self.publish("web", "r8", "eighth")]
        args = ["publish", "web", f"{self.sources}/eighth", "--revision", "r9"]
        yield [Command(args, self.published("web", "r9", "eighth"), before=lose)]
        rotten = bytearray(self.data["eighth/rootfs.ext4"])
        rotten[5000:5100] = bytes(100)
        self.write("rotten/rootfs.ext4", rotten)
        key = ("revision", "web", "r8")
        value = lambda: tuple(
            (name, self.sha256["rotten/rootfs.ext4"] if name == "rootfs.ext4" else digest, recorded)
            for name, digest, recorded in self.revision("eighth")()
        )
        rots = f"{self.store}/templates/web/artifacts/r8/rootfs.ext4"
        yield [Command([], {key: value}, before=lambda: rot(rots))]
        yield [Command(["verify", "--repair"], {key: self.revision("eighth")})]


def rot(path):
    """Changes bytes of a sealed file, as a bad disk would: nothing else tells of it."""
    times = os.stat(path)
    with open(path, "r+b") as file:
        os.pwrite(file.fileno(), bytes(100), 5000)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        os.fsync(file.fileno())


def copy_tree(source, target):
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
