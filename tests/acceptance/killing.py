"""Kills a command of the program again and again, and looks at what is seen afterwards."""

import collections
import glob
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

import look

CALLS = """mkdir mkdirat openat ioctl link linkat symlink symlinkat rename renameat renameat2 unlink unlinkat rmdir fsync
fdatasync syncfs write pwrite64 copy_file_range ftruncate fallocate fchmod chmod fchmodat fchown chown fchownat utimensat
fsetxattr flock fcntl""".split()


class Share:
    """The k-th of n shares, k/n, of whatever is numbered."""

    def __init__(self, text):
        self.number, self.shares = map(int, text.split("/"))

    def of(self, those):
        return those[self.number - 1 :: self.shares]


class Killed:
    """A command is run and killed, then all is looked at.

    `prepare` makes what there is before, `args` says the command, `look` what may be seen afterwards, and `next` does
    what somebody would do then.
    """

    # Whether a verification is clean before anybody has done anything about the kill.
    damaged = False
    # What a verification may find after the kill, beside what the dead have left: the next one mends it.
    mends = ()
    # The system calls at which it is killed.
    traces = CALLS
    # The exit codes of a command that nobody kills.
    codes = (0,)

    def __init__(self, program, store, place):
        self.program, self.store, self.place = program, store, place
        self.revision = f"{store}/templates/web/artifacts/r1"
        self.hit = self.done = 0
        self.what = "before"

    def fail(self, problem):
        sys.exit(f"{type(self).__name__}, {self.what}: {problem}")

    def run(self, *args, codes=(0,)):
        ended = subprocess.run([self.program, "--store", self.store, *args], capture_output=True, text=True)
        if ended.returncode not in codes:
            self.fail(f"exit code {ended.returncode} from {args}: {ended.stdout}{ended.stderr}")
        return ended

    def command(self):
        return [self.program, "--store", self.store, "--quiet", *self.args()]

    def after(self, killed):
        if killed:
            self.hit += 1
        self.look(killed)
        if not self.damaged:
            self.clean("after the kill", findings=True)
        self.next()
        self.run("gc")
        self.clean("after the next gc", findings=False)

    def clean(self, when, findings):
        report = json.loads(self.run("--json", "verify", codes=(0, 4)).stdout)
        known = [one for one in report["findings"] if findings and (one["severity"] == "note" or one["kind"] in self.mends)]
        if known != report["findings"]:
            self.fail(f"{when}: {json.dumps(report['findings'])}")
        if findings:
            return
        hidden = f"{self.store}/.store"
        left = [path for name in ("drafts", "trash", "locks", "leases") for path in glob.glob(f"{hidden}/{name}/*")]
        left += [path for path in glob.glob(f"{hidden}/objects/*/*") if os.stat(path).st_nlink == 1]
        left += look.dangling(self.store)
        if left:
            self.fail(f"{when}: left behind: {left}")

    def timed(self, kills, share):
        """Kills it KILLS times at any moment: each time in another part of the time that it takes."""
        self.what = "not killed"
        whole = 0.0
        for _ in range(3):
            self.prepare()
            start = time.monotonic()
            subprocess.run(self.command(), check=True, stdout=subprocess.DEVNULL)
            whole = time.monotonic() - start
            self.after(False)
        numbers, made = share.of(range(kills)), 0
        # On until a third met it at work: how long it takes differs from one time to the next.
        while made < len(numbers) or self.hit * 3 < len(numbers) and made < len(numbers) * 10:
            self.prepare()
            wait = whole * (numbers[made % len(numbers)] + random.random()) / kills
            made += 1
            self.what = f"kill {made} after {wait * 1000:.2f} ms"
            child = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(wait)
            child.kill()
            killed = child.wait() == -9
            # It had ended: it takes less time than was thought.
            whole *= 1.02 if killed else 0.95
            self.after(killed)
        print(f"{self.name()}: {self.hit} kills met it at work, of {made}; {self.done} when all was there")
        if self.hit * 3 < len(numbers):
            sys.exit("less than a third of the kills met it at work")

    def calls(self):
        """The system calls that the command makes and that change something: how often, in the busiest thread."""
        self.prepare()
        self.what = "not killed"
        log = f"{self.place}.calls"
        trace = ["-e", "trace=" + ",".join(f"?{call}" for call in self.traces)]
        ended = subprocess.run(["strace", "-f", "-qq", "-o", log, *trace, *self.command()], capture_output=True, text=True)
        if ended.returncode not in self.codes:
            self.fail(f"exit code {ended.returncode}: {ended.stderr}")
        with open(log) as lines:
            made = collections.Counter(re.findall(r"^(\d+) +(\w+)\(", lines.read(), re.M))
        os.remove(log)
        self.after(False)
        return {call: most for call in self.traces if (most := max((made[one] for one in made if one[1] == call), default=0))}

    def traced(self, points, share):
        """Kills it at so many of its calls, or at all; they are counted for each name and thread."""
        calls = self.calls()
        every = [(call, at) for call in calls for at in range(1, calls[call] + 1) if at <= 40 or at % 10 == 0]
        step = 1 if points == "all" else max(1, len(every) // int(points))
        chosen = share.of(every[random.randrange(step) :: step])
        for call, at in chosen:
            # Threads share their work in another way each time: none may come to so many calls.
            while not self.killed_at(call, at) and at > 1:
                at //= 2
        print(f"{self.name()}: {self.hit} kills at system calls, of {len(every)}; {self.done} when all was there")
        if self.hit * 2 < len(chosen):
            self.fail(f"of {len(chosen)} kills, only {self.hit} met it")

    def killed_at(self, call, at):
        self.prepare()
        self.what = f"killed at {call} {at}"
        inject = ["-e", f"trace=?{call}", "-e", f"inject=?{call}:signal=KILL:when={at}"]
        ended = subprocess.run(["strace", "-f", "-qq", "-o", "/dev/null", *inject, *self.command()], capture_output=True)
        killed = ended.returncode in (-9, 137)
        if not killed and ended.returncode not in self.codes:
            self.fail(f"exit code {ended.returncode}: {ended.stderr}")
        self.after(killed)
        return killed

    def name(self):
        return " ".join(self.args()[:2])


def restore(seed, store):
    """Makes the store what its seed is, hard links and all."""
    if os.path.lexists(store):
        shutil.rmtree(store, onerror=writable)
    subprocess.run(["cp", "-a", seed, store], check=True)


def writable(remove, path, _):
    """A directory of a removed tree was read-only."""
    os.chmod(os.path.dirname(path), 0o755)
    remove(path)
