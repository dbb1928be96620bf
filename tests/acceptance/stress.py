"""Random work on one store by several processes.

stress.py work PROGRAM STORE WORK SEED TEMPLATES STOP   works until the file STOP exists
stress.py gc PROGRAM STORE STOP                         collects, again and again
stress.py verify PROGRAM STORE STOP                     verifies every two seconds
stress.py watch STORE STOP                              reads what is current, without holding it
stress.py held                                          reads the revision that `run` holds, for a while

Each prints what it did, and ends with an error at the first thing that must not be.
"""

import collections
import json
import os
import random
import shutil
import subprocess
import sys
import time

NO_TEMPLATE = "there is no template"
NO_REVISION = "has no revision"
NO_CURRENT = "has no current revision"
# The only ways in which a command may fail: the exit code, and what it says. Publications
# and builds never do.
EXPECTED = {
    "run": {(3, NO_CURRENT)},
    "run revision": {(3, NO_REVISION)},
    "activate": {(3, NO_REVISION)},
    "rollback": {(3, "has no earlier revision to go back to"), (3, NO_CURRENT)},
    "pin": {(3, NO_REVISION), (5, "there is a pin")},
    "unpin": {(3, "there is no pin")},
    "rm": {(3, NO_REVISION), (5, "is in use by a live process"), (5, "is pinned as"), (5, "is current in template")},
    "show": {(3, NO_REVISION)},
    "lookup": {(3, "nothing was built from these inputs")},
}
# Until the first publication there is no template, and nothing removes one.
for name in set(EXPECTED) - {"unpin", "lookup"}:
    EXPECTED[name].add((3, NO_TEMPLATE))
# Why a collection may leave what its own plan let go.
SKIPS = {"became_current", "became_rollback_target", "leased", "pinned", "gone", "replaced"}


def b3sum_is_right(directory, deep=True):
    """Each file of an open directory is what revision.json says; what is wrong, or nothing."""
    try:
        with open(os.open("revision.json", os.O_RDONLY, dir_fd=directory)) as file:
            contents = json.load(file)["contents"]
        lines = ""
        for one in contents:
            size = os.stat(one["path"], dir_fd=directory, follow_symlinks=False).st_size
            if size != one["size"]:
                return f"{one['path']} has {size} bytes, not {one['size']}"
            lines += f"{one['blake3']}  {one['path']}\n"
    except (OSError, ValueError, KeyError) as error:
        return repr(error)
    if not deep or not shutil.which("b3sum"):
        return None
    command = ["b3sum", "--no-mmap", "--check", "--quiet", "-"]
    here = f"/proc/self/fd/{directory}"
    checked = subprocess.run(command, input=lines, cwd=here, text=True, capture_output=True, pass_fds=[directory])
    return None if checked.returncode == 0 else checked.stdout + checked.stderr


def held():
    directory = os.open(os.environ["TEMPLATE_DIR"], os.O_RDONLY | os.O_DIRECTORY)
    end = time.monotonic() + random.choice([0.05, 0.3, 1.0])
    while True:
        wrong = b3sum_is_right(directory)
        # The name leads to the same directory as long as it is held.
        if wrong or not os.path.samestat(os.stat(os.environ["TEMPLATE_DIR"]), os.fstat(directory)):
            print(f"HELD BUT DAMAGED: {os.environ['TEMPLATE_DIR']}: {wrong}", file=sys.stderr)
            sys.exit(40)
        if time.monotonic() > end:
            return
        time.sleep(0.1)


class Worker:
    def __init__(self, program, store, work, seed, templates):
        self.call = [program, "--store", store]
        self.store = store
        self.random = random.Random(seed)
        self.work = f"{work}/stress-{seed}"
        self.templates = int(templates)
        self.count = collections.Counter()
        os.makedirs(self.work, exist_ok=True)

    def ts(self, name, *words):
        done = subprocess.run([*self.call, *words], text=True, capture_output=True)
        self.count[name, done.returncode] += 1
        if done.returncode == 0:
            return
        if not any(done.returncode == code and text in done.stderr for code, text in EXPECTED.get(name, ())):
            sys.exit(f"UNEXPECTED exit code {done.returncode} of {words}: {done.stderr}{done.stdout[-500:]}")

    def template(self):
        return f"s{self.random.randrange(self.templates):02}"

    def revision(self):
        """A template and one of its revisions, most often an existing one."""
        template = self.template()
        try:
            names = os.listdir(f"{self.store}/templates/{template}/artifacts")
        except FileNotFoundError:
            names = []
        return template, self.random.choice(sorted(names) or ["r0"])

    def publish(self):
        # One in three is of everybody's contents: published by several at once, and collected meanwhile.
        common = self.random.random() < 0.3
        label = f"{self.random.randrange(10)}" if common else f"{self.work} {self.random.random()}"
        files = f"{self.work}/files"
        shutil.rmtree(files, ignore_errors=True)
        os.mkdir(files)
        for name, text, size in [
            ("vmlinux", label, 70000),
            ("rootfs.ext4", f"shared {self.random.randrange(5) if not common else label}", 100000),
            ("fc-base.json", "{}", 2),
        ]:
            with open(f"{files}/{name}", "w") as file:
                file.write((text * (size // len(text) + 1))[:size])
        options = self.random.choice([[], [], ["--no-activate"], ["--move"]])
        self.ts("publish", "publish", self.template(), files, *options)

    def inputs(self):
        lock = os.environ["STRESS_LOCKS"] + f"/stress-{self.random.randrange(8)}"
        return ["--flake-lock", f"{lock}/flake.lock", "--profile", "minimal", "--role", "worker"], lock

    def build(self):
        inputs, label = self.inputs()
        builder = os.path.join(os.path.dirname(self.call[0]), "little-image")
        force = self.random.choice([[], [], [], ["--force"]])
        self.ts("build", "build", self.template(), *inputs, *force, "--", builder, os.path.basename(label))

    def lookup(self):
        self.ts("lookup", "lookup", *self.inputs()[0])

    def run(self):
        self.ts("run", "run", self.template(), "--", sys.executable, __file__, "held")

    def run_revision(self):
        self.ts("run revision", "run", "@".join(self.revision()), "--", sys.executable, __file__, "held")

    def activate(self):
        self.ts("activate", "activate", *self.revision())

    def rollback(self):
        self.ts("rollback", "rollback", self.template())

    def pin(self):
        self.ts("pin", "pin", f"p{self.random.randrange(20)}", "@".join(self.revision()))

    def unpin(self):
        self.ts("unpin", "unpin", f"p{self.random.randrange(20)}")

    def rm(self):
        self.ts("rm", "rm", "@".join(self.revision()))

    def show(self):
        self.ts("show", "show", "@".join(self.revision()))

    def until(self, stop):
        what = [self.publish, self.build, self.lookup, self.run, self.run_revision, self.activate]
        what += [self.rollback, self.pin, self.unpin, self.rm, self.show]
        weights = [6, 6, 1, 3, 2, 3, 1, 2, 3, 2, 1]
        while not os.path.exists(stop):
            self.random.choices(what, weights)[0]()
        print(*(f"{name} ({code}): {n}" for (name, code), n in sorted(self.count.items())), sep=", ")


def work(program, store, work, seed, templates, stop):
    Worker(program, store, work, seed, templates).until(stop)


def gc(program, store, stop):
    runs = removed = 0
    skipped = collections.Counter()
    while not os.path.exists(stop):
        command = [program, "--store", store, "--json", "gc", "--keep-last", "1"]
        done = subprocess.run(command, text=True, capture_output=True)
        if done.returncode != 0:
            sys.exit(f"UNEXPECTED exit code {done.returncode} of gc: {done.stderr}{done.stdout[-3000:]}")
        report = json.loads(done.stdout)["report"]
        skipped.update(one["why"] for one in report["skipped"])
        if set(skipped) - SKIPS or report["failed"]:
            sys.exit(f"UNEXPECTED in a report of gc: {dict(skipped)} {report['failed']}")
        runs, removed = runs + 1, removed + len(report["removed"])
    print(f"{runs} collections removed {removed} revisions; skipped: {dict(skipped)}")
    if not removed:
        sys.exit("nothing was ever removed")


def verify(program, store, stop):
    runs = 0
    while not os.path.exists(stop):
        done = subprocess.run([program, "--store", store, "--json", "verify"], text=True, capture_output=True)
        if done.returncode != 0:
            found = [one for one in json.loads(done.stdout).get("findings", []) if one["severity"] != "note"]
            sys.exit(f"UNEXPECTED exit code {done.returncode} of verify: {done.stderr}{json.dumps(found, indent=1)}")
        runs += 1
        time.sleep(2)
    print(f"{runs} verifications")


def watch(store, stop):
    """What is current is complete as long as it is current, although nobody holds it."""
    looks = moved = 0
    while not os.path.exists(stop):
        for name in sorted(os.listdir(f"{store}/templates")):
            current = f"{store}/templates/{name}/current"
            try:
                directory = os.open(current, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError as error:
                # Its first publication may not have come so far; but what has a name is there.
                if os.path.islink(current) and not os.path.exists(current):
                    sys.exit(f"DANGLING: {current} -> {os.readlink(current)}: {error}")
                continue
            wrong = b3sum_is_right(directory, deep=looks % 5 == 0)
            looks += 1
            if wrong:
                # It may have gone since it was opened; then another one is current.
                if os.path.samestat(os.stat(current), os.fstat(directory)):
                    sys.exit(f"CURRENT BUT DAMAGED: {current} -> {os.readlink(current)}: {wrong}")
                moved += 1
            os.close(directory)
            time.sleep(0.01)
    print(f"{looks} looks at what is current, {moved} of them while it was replaced and collected")


if __name__ == "__main__":
    {each.__name__: each for each in (gc, held, verify, watch, work)}[sys.argv[1]](*sys.argv[2:])
