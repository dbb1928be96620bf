"""What is done to a store of three revisions, and killed: each operation with what may be seen afterwards.

STORE.seed has web@r1 to web@r4, built, of which r4 is current, and `db` without a revision; DIR has an image.
Everything that is seen must be as it was before, or as it is after the operation.
"""

import contextlib
import glob
import io
import json
import os
import shutil

import look
import vm
from killing import Killed, restore


def state(store):
    """What a store holds, by the names of its parts; fails when something visible is not whole."""
    found = {}
    for base in glob.glob(f"{store}/templates/*"):
        template = os.path.basename(base)
        with open(f"{base}/template.json") as file:
            spec = json.load(file)
        found[template] = {field: spec[field] for field in look.TEMPLATE if not field.endswith("_at")}
        if os.path.lexists(f"{base}/current"):
            with contextlib.redirect_stdout(io.StringIO()):
                look.mvm(store, template)
            found[template, "current"] = os.readlink(f"{base}/current")
            if not os.path.isfile(f"{base}/current/revision.json"):
                raise ValueError(f"current of {template} does not resolve")
        for revision in glob.glob(f"{base}/artifacts/*"):
            found[template, os.path.basename(revision)] = files(revision)
    for pin in glob.glob(f"{store}/.store/pins/*.json"):
        with open(pin) as file:
            kept = json.load(file)
        found["pin", os.path.basename(pin)] = (kept["template"], kept["revision"])
        if not os.path.isdir(f"{store}/templates/{kept['template']}/artifacts/{kept['revision']}"):
            raise ValueError(f"{pin} keeps {kept}, which is gone")
    return found


def files(revision):
    """The digests of a revision's files; each that it lists is there, with its size and mode."""
    with open(f"{revision}/revision.json") as file:
        contents = json.load(file)["contents"]
    for content in contents:
        have = os.lstat(f"{revision}/{content['path']}")
        if (have.st_size, have.st_mode & 0o7777, have.st_mtime) != (content["size"], 0o444, 1):
            raise ValueError(f"{revision}/{content['path']} is not what was published: {have}")
    listed = {content["path"] for content in contents}
    if listed != set(vm.files_of(revision)) - {"revision.json"}:
        raise ValueError(f"{revision} has other files than {listed}")
    return {path: vm.data(f"{revision}/{path}")[0] for path in listed}


def digests(*places):
    """The digests of all files below; logs, which are written to, are left out."""
    found = set()
    for place in places:
        names = [name for name in vm.files_of(place) if not name.endswith("activations.jsonl")]
        found |= {vm.data(f"{place}/{name}")[0] for name in names if not os.path.islink(f"{place}/{name}")}
    return found


class Operation(Killed):
    """One whose `look` asks whether each part of the store is the old or the new one."""

    words = ()
    # What a repeated command may answer when the killed one had done it.
    again = (0,)
    new = None

    def args(self, words=None):
        return [word.format(place=self.place, store=self.store) for word in words or self.words]

    def prepare(self):
        restore(f"{self.store}.seed", self.store)
        self.change()
        self.old = self.seen()

    def change(self):
        """Makes of the seed what there is before."""

    def seen(self):
        try:
            return state(self.store)
        except (OSError, ValueError, KeyError) as problem:
            self.fail(problem)

    def look(self, killed):
        now = self.seen()
        self.new = self.new or now
        for part in {*now, *self.old, *self.new}:
            have, old, new = (parts.get(part) for parts in (now, self.old, self.new))
            if have != new and (have != old or not killed):
                self.fail(f"{part} is {have}; before it was {old}, and it is to be {new}")
        self.done += killed and now == self.new

    def next(self):
        """It is done again, and leads to what it would have led to."""
        self.run(*self.args(), codes=self.again)
        if (now := self.seen()) != self.new:
            self.fail(f"done again, it leads to {now}, not {self.new}")


class Publish(Operation):
    words = ["publish", "web", "{place}/image", "--revision", "r5"]


class Move(Operation):
    """What is moved is here or there, whole."""

    words = ["publish", "web", "{place}/moved", "--revision", "r5", "--move"]
    # It becomes the store's own before its files are shared.
    mends = ("unshared", "twin")

    def change(self):
        shutil.rmtree(f"{self.place}/moved", ignore_errors=True)
        shutil.copytree(f"{self.place}/image", f"{self.place}/moved")

    def look(self, killed):
        super().look(killed)
        left, moved = f"{self.place}/moved", ("web", "r5") in self.seen()
        if os.path.isdir(left) == moved:
            self.fail(f"{left} is {'still' if moved else 'not'} there")
        if not moved:
            names = set(vm.files_of(left)) - {"revision.json"}
            if names != set(vm.files_of(f"{self.place}/image")) or digests(f"{self.place}/image") - digests(left):
                self.fail(f"{left} is not what it was")

    def next(self):
        if not os.path.isdir(f"{self.place}/moved"):
            shutil.copytree(f"{self.place}/image", f"{self.place}/moved")
        super().next()


class Reuse(Operation):
    """Into another template; the command would fail if it ran."""

    words = ["build", "db", "--flake-lock", "{place}/flake.lock", "--role", "worker", "--", "false"]


class Activate(Operation):
    words = ["activate", "web", "r1"]


class Rollback(Operation):
    words = ["rollback", "web"]

    def next(self):
        if self.seen() != self.new:
            super().next()


class Remove(Operation):
    words = ["rm", "web@r1"]
    again = (0, 3)


class RemoveCurrent(Operation):
    words = ["rm", "web@r4", "--force"]
    again = (0, 3)


class RemoveTemplate(Operation):
    words = ["rm", "web"]
    again = (0, 3)


class Pin(Operation):
    words = ["pin", "keep", "web@r1", "--reason", "shipped"]


class Unpin(Operation):
    words = ["unpin", "keep"]
    again = (0, 3)

    def change(self):
        self.run("pin", "keep", "web@r1")


class Collect(Operation):
    """A revision, its objects and keys; one that was half removed; a dead draft; objects that nobody has."""

    words = ["gc", "--keep-last", "1"]

    def change(self):
        hidden = f"{self.store}/.store"
        os.makedirs(f"{hidden}/trash/dead")
        os.rename(f"{self.store}/templates/web/artifacts/r1", f"{hidden}/trash/dead/web@r1")
        shutil.copytree(f"{self.place}/image", f"{hidden}/drafts/dead")
        shutil.rmtree(f"{self.store}/templates/web/artifacts/r2")


class Repair(Operation):
    """Of files whose bytes are elsewhere, of a definition, a link and the index; no bytes are lost on the way."""

    words = ["verify", "--repair"]
    damaged = True

    def change(self):
        self.run(*self.args(Reuse.words))
        web, db = f"{self.store}/templates/web", f"{self.store}/templates/db"
        os.remove(f"{web}/artifacts/r1/vmlinux")
        os.remove(f"{web}/artifacts/r2/rootfs.ext4")
        for path, text in ((f"{web}/artifacts/r2/rootfs.ext4", "rotten"), (f"{db}/template.json", "{")):
            with open(path, "w") as file:
                file.write(text)
        os.remove(f"{db}/revisions")
        shutil.rmtree(f"{self.store}/.store/keys")
        self.bytes = digests(f"{self.store}/templates")

    def seen(self):
        """Before it is repaired, it can't be said what there is."""
        if self.what == "repaired":
            return super().seen()
        return {}

    def look(self, killed):
        hidden = f"{self.store}/.store"
        if lost := self.bytes - digests(f"{self.store}/templates", *glob.glob(f"{hidden}/damaged")):
            self.fail(f"bytes were lost: {lost}")
        if not killed:
            self.repaired()

    def repaired(self):
        killed, self.what = self.what, "repaired"
        now = self.seen()
        self.new = self.new or now
        self.what = killed
        if now != self.new:
            self.fail(f"the repair leads to {now}, not {self.new}")

    def next(self):
        self.run(*self.args())
        self.repaired()


class Adopt(Operation):
    """The directory of mvm keeps all its bytes, and mvm reads it at any moment."""

    words = ["adopt", "{store}"]
    damaged = True

    def prepare(self):
        shutil.rmtree(self.store, ignore_errors=True)
        for template in ("web", "db"):
            for number in (1, 2):
                self.as_mvm(f"{self.store}/templates/{template}", template, f"m{number}")
        self.old = self.bytes()

    def as_mvm(self, base, template, revision):
        common = {"schema_version": 1, "flake_ref": ".", "profile": "minimal", "role": "worker"}
        common |= {"vcpus": 1, "mem_mib": 128, "data_disk_mib": 0}
        shutil.copytree(f"{self.place}/image", f"{base}/artifacts/{revision}")
        with open(f"{base}/artifacts/{revision}/own", "w") as file:
            file.write(f"{template} {revision}" * 9000)
        record = common | {"revision_hash": revision, "flake_lock_hash": revision, "built_at": "2026-01-01T00:00:00Z"}
        paths = {"vmlinux": "vmlinux", "rootfs": "rootfs.ext4", "fc_base_config": "fc-base.json"}
        with open(f"{base}/artifacts/{revision}/revision.json", "w") as file:
            json.dump(record | {"artifact_paths": paths, "snapshot": None}, file)
        times = {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
        with open(f"{base}/template.json", "w") as file:
            json.dump(common | times | {"template_id": template}, file)
        if os.path.lexists(f"{base}/current"):
            os.remove(f"{base}/current")
        os.symlink(f"revisions/{revision}", f"{base}/current")

    def bytes(self):
        """The digests of what mvm wrote, by path; records are added to."""
        top = f"{self.store}/templates"
        names = [name for name in vm.files_of(top) if not name.endswith(("revision.json", ".jsonl", ".activating"))]
        return {name: vm.data(f"{top}/{name}")[0] for name in names if not os.path.islink(f"{top}/{name}")}

    def look(self, killed):
        if (now := self.bytes()) != self.old:
            self.fail(f"mvm had {self.old}, and now there is {now}")
        for template in ("web", "db"):
            with contextlib.redirect_stdout(io.StringIO()):
                look.mvm(self.store, template)
        if not killed:
            self.adopted()

    def adopted(self):
        now = self.seen()
        self.new = self.new or now
        if now != self.new:
            self.fail(f"the adoption leads to {now}, not {self.new}")

    def next(self):
        self.run(*self.args())
        self.look(True)
        self.adopted()


KINDS = {
    "publish": Publish,
    "move": Move,
    "reuse": Reuse,
    "activate": Activate,
    "rollback": Rollback,
    "rm": Remove,
    "rm-current": RemoveCurrent,
    "rm-template": RemoveTemplate,
    "pin": Pin,
    "unpin": Unpin,
    "gc": Collect,
    "repair": Repair,
    "adopt": Adopt,
}
