"""Cuts the power of a real file system; run.sh says how to call it, and cleans up.

One worker: makes a file system on a disk that logs its writes, runs the story on it, and rebuilds and checks states
of that disk. Each worker has a disk and a recording of its own, so that no two file systems have one identity.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import time

from disk import Log, LoggedDisk, Loop, Mounted, Rebuilt, run
from promises import Program, Promises, check, compare
from states import Choice
from story import Story
from survey import Broken, survey

# How each file system is made and mounted: small, with the block size of the disk.
KINDS = {
    "ext4": (64, ["mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4"], "noatime"),
    "xfs": (300, ["mkfs.xfs", "-q", "-f", "-s", "size=4096", "-m", "reflink=1"], "noatime"),
    "btrfs": (256, ["mkfs.btrfs", "-q", "-f"], "noatime,nodiscard"),
}


class Worker:
    def __init__(self, options, scratch):
        self.options, self.scratch = options, scratch
        mib, self.mkfs, self.mount_options = KINDS[options.kind]
        self.place, self.start = f"{self.scratch}/mnt", f"{self.scratch}/start.img"
        self.promises, self.died = Promises(), 0
        for path in (self.place, f"{self.scratch}/sources"):
            os.makedirs(path)
        with open(f"{self.scratch}/new.img", "wb") as file:
            file.truncate(mib << 20)
        run(*self.mkfs, f"{self.scratch}/new.img")
        # Zeros that were written are holes in the copy: copies of it are made quickly.
        run("cp", "--sparse=always", f"{self.scratch}/new.img", self.start)
        self.story = Story(f"{self.scratch}/sources", self.place, options.durability)
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        self.program = Program(options.program, self.place, environment, options.without)

    # --- the recording

    def record(self):
        """Runs the story on the disk that logs; between which entries of the log its states are."""
        disk = LoggedDisk(f"{self.scratch}/new.img", f"{self.scratch}/log", self.scratch)
        try:
            with Mounted(disk.loop.device, self.place, self.mount_options):
                run("sync", "--file-system", self.place)
                self.first = disk.position()
                for step in self.story.steps:
                    self.take(step, disk)
                self.last = disk.position()
        finally:
            disk.close()
        self.log = Log(f"{self.scratch}/log")

    def is_complete(self):
        """Whether the log makes of the disk at the start exactly the disk at the end."""
        rebuilt = Rebuilt(self.start, self.log, f"{self.scratch}/rebuilt.img")
        rebuilt.forward(len(self.log.entries))
        return subprocess.run(["cmp", "--quiet", rebuilt.path, f"{self.scratch}/new.img"]).returncode == 0

    def take(self, step, disk):
        world = survey(self.place)
        step = [command for command in step if command.applies(world)]
        numbers = [self.promises.begun(command, disk.position()) for command in step]
        for command in step:
            command.before()
        running = [self.start_call(command) for command in step]
        for number, command, process in zip(numbers, step, running):
            said = process.communicate()[0] if process else ""
            if not process or process.returncode == 0:
                self.promises.kept(number, disk.position())
            elif command.dies_at:
                self.died += 1
            else:
                raise RuntimeError(f"`{command}` ends with {process.returncode}: {said}")
        # What is seen now is what is promised; else the story is wrong.
        done, under_way = self.promises.at(disk.position())
        compare(survey(self.place), self.promises.world(done), self.promises.commands(under_way))
        if self.options.durability == "none":
            self.disturb(len(self.promises.calls))

    def start_call(self, command):
        if not command.args:
            return None
        args = self.program.recorded(command.args, command.dies_at)
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(args, env=self.program.environment, **options)

    def disturb(self, calls):
        """Where the program syncs nothing, others do, so that the disk has something of what it did: now and then the
        system writes everything, as it does in time; and another program syncs a file of its own, which puts on the
        disk whatever the file system writes with it, and not the rest."""
        if calls % 5 == 1:
            run("sync", "--file-system", self.place)
        with open(f"{self.place}/neighbour", "a") as file:
            file.write("a line\n")
            file.flush()
            os.fsync(file.fileno())

    # --- the states

    def choose(self):
        entries = self.log.entries
        first = next(number for number, entry in enumerate(entries) if entry.end > self.first)
        last = max(number for number, entry in enumerate(entries) if entry.end <= self.last)
        choice = Choice(self.log, first, last, lambda cut: self.promises.at(entries[cut].end))
        share, shares = (int(number) for number in self.options.share.split("/"))
        return choice.choose(self.options.states, f"{self.options.seed}.{self.options.worker}")[share - 1 :: shares]

    def check_all(self, states):
        """Checks each state; gives (state, what is broken) of those that are."""
        self.program.environment["AFTER_A_CUT"] = "yes"
        rebuilt = Rebuilt(self.start, self.log, f"{self.scratch}/rebuilt.img")
        image, broken = f"{self.scratch}/state.img", []
        rebuilt.write(states[0], image)
        loop = Loop(image)
        try:
            for number, state in enumerate(states):
                rebuilt.write(state, image)
                said = self.check_state(state, number, loop.device)
                if said:
                    broken.append((state, number, said))
                    if len(broken) >= self.options.enough:
                        break
        finally:
            loop.close()
        return number + 1, [self.again(rebuilt, *one) for one in broken]

    def check_state(self, state, number, device):
        try:
            mounted = Mounted(device, self.place, self.mount_options)
        except RuntimeError as error:
            return f"the file system can't be mounted: {error}"
        with mounted:
            try:
                check(self.program, self.story, self.promises, self.log.entries[state.cut].end, number)
            except Broken as broken:
                return str(broken)
            except OSError as error:
                return f"the store can't be read: {error}"
        return None

    def again(self, rebuilt, state, number, said):
        """Checks a broken state once more, on a new disk; the disk as the cut left it is kept."""
        image = f"{self.scratch}/again.img"
        rebuilt.write(state, image)
        loop = Loop(image)
        try:
            second = self.check_state(state, number, loop.device)
        finally:
            loop.close()
        kept = None
        if self.options.keep and second:
            kept = f"{self.options.keep}/{self.options.kind}-{self.options.worker}-{number}.img"
            os.makedirs(self.options.keep, exist_ok=True)
            rebuilt.write(state, kept)
        done, under_way = self.promises.at(self.log.entries[state.cut].end)
        short = lambda text: str(text).replace(f"{self.scratch}/", "")
        return {
            "state": state.name(),
            "broken": short(said),
            "again": second and short(second),
            "after": [short(command) for command in self.promises.commands(done[-1:])],
            "during": [short(command) for command in self.promises.commands(under_way)],
            "image": kept,
        }


def recorded(options):
    """A worker with a recording whose log is complete."""
    for attempt in range(3):
        scratch = f"{options.scratch}/{attempt}"
        os.mkdir(scratch)
        worker = Worker(options, scratch)
        worker.record()
        if worker.is_complete():
            return worker
        print("the log does not make of the disk what it became; once more", file=sys.stderr)
    sys.exit("no recording has a complete log")


def main():
    options = arguments()
    started = time.monotonic()
    worker = recorded(options)
    states = worker.choose()
    checked, broken = worker.check_all(states)
    report = {
        "entries": len(worker.log.entries),
        "calls": len(worker.promises.calls),
        "died": worker.died,
        "states": checked,
        "kinds": collections.Counter(state.kind for state in states[:checked]),
        "broken": broken,
        "seconds": time.monotonic() - started,
    }
    json.dump(report, sys.stdout)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--program", required=True)
    parser.add_argument("--scratch", required=True, help="an empty directory, in memory if possible")
    parser.add_argument("--states", type=int, required=True)
    parser.add_argument("--share", default="1/1", help="K/N: check the K-th of N shares of the states")
    parser.add_argument("--durability", choices=("full", "none"), default="full")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--enough", type=int, default=sys.maxsize, help="stop at so many broken states")
    parser.add_argument("--without", type=int, default=0, help="leave out the sync of this number, in each call")
    parser.add_argument("--keep", help="where the disks of broken states are kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
