"""What must hold after a cut, and what is done to a state to see that it does."""

import json
import subprocess

from words import settled
from survey import Broken, litter, rotten, survey

# Seconds after which a call that has not returned never will.
PATIENCE = 300


class Promises:
    """What was promised, by how far the log had come when it was."""

    def __init__(self):
        self.calls = []

    def begun(self, command, position):
        """A command starts; the number to give to `kept`."""
        self.calls.append([command, position, None])
        return len(self.calls) - 1

    def kept(self, number, position):
        """It has returned; what others had begun and it has completed, is promised as well."""
        command = self.calls[number][0]
        for call in self.calls:
            if call[0] is command or any(call[0] is completed for completed in command.completes):
                call[2] = position

    def at(self, position):
        """The numbers of the commands that have returned by then, and of those that are under way."""
        begun = [number for number, call in enumerate(self.calls) if call[1] <= position]
        ended = [self.calls[number][2] for number in begun]
        done = tuple(number for number, end in zip(begun, ended) if end is not None and end <= position)
        return done, tuple(number for number in begun if number not in done)

    def world(self, done):
        """What a survey finds when these commands are done, and nothing else."""
        found = {}
        for number in done:
            found |= {key: settled(value) for key, value in self.calls[number][0].changes.items()}
        return {key: value for key, value in found.items() if value is not None}

    def commands(self, numbers):
        return [self.calls[number][0] for number in numbers]


def compare(found, done, under_way):
    """Everything is as it was promised, or as a command that is under way makes it."""
    for key in sorted(set(found) | set(done) | {key for command in under_way for key in command.changes}):
        allowed = [done.get(key)] + [settled(command.changes[key]) for command in under_way if key in command.changes]
        if len(allowed) > 1 and key[0] == "told of snapshot":
            allowed.append(None)
        if found.get(key) not in allowed:
            be = f"{shown(found.get(key))}, not {' or '.join(shown(value) for value in allowed)}"
            raise Broken(f"{' '.join(key)} is {be}")


def shown(value):
    if value is None:
        return "absent"
    if isinstance(value, tuple):
        return "(" + ", ".join(shown(part) for part in value) + ")"
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


class Program:
    """Calls of the program on the store in a place."""

    def __init__(self, path, place, environment, without=0):
        self.path, self.place, self.environment, self.without = path, place, environment, without

    def command(self, args):
        return [self.path, "--store", f"{self.place}/store", *args]

    def recorded(self, args, dies_at):
        """The command as it is recorded: one that dies at a sync, or one that leaves a sync out in each call."""
        command = self.command(args)
        if self.without:
            return tampered("retval=0", self.without, command)
        return tampered("signal=SIGKILL", dies_at, command) if dies_at else command

    def call(self, args, codes=(0,)):
        command = self.command(args)
        options = {"capture_output": True, "text": True, "errors": "replace", "env": self.environment}
        try:
            ended = subprocess.run(command, timeout=PATIENCE, **options)
        except subprocess.TimeoutExpired:
            raise Broken(f"`{' '.join(args)}` does not end") from None
        if ended.returncode not in codes:
            said = (ended.stderr + ended.stdout).strip()
            raise Broken(f"`{' '.join(args)}` ends with {ended.returncode} after the cut: {said}")
        return ended


def tampered(what, number, command):
    """Something else in place of the sync of that number, of each thread."""
    syncs = "fsync,fdatasync,syncfs"
    trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={syncs}"]
    return [*trace, "-e", f"inject={syncs}:{what}:when={number}", *command]


def check(program, story, promises, position, turn):
    """Looks at the store in a mounted state, repeats what was cut short, collects, and looks again."""
    done, under_way = promises.at(position)
    place, known = program.place, promises.world(done)
    commands = promises.commands(under_way)
    found = survey(place)
    compare(found, known, commands)
    if found:
        verify(program, story, found)
        look_up(program, story, found, turn)
        if turn % 4 == 0:
            found = collect(program, found)
    for command in commands:
        if command.once and is_done(found, command):
            continue
        command.before()
        if command.args:
            program.call(command.args)
    end = promises.world(done + under_way)
    after = survey(place)
    compare(after, end, [])
    if after:
        collect(program, after)
        verify(program, story, after)


def is_done(found, command):
    return all(found.get(key) == settled(value) for key, value in command.changes.items())


def verify(program, story, found):
    """The program finds damage where there is some, and nowhere else. That a hint is lost is no damage."""
    said = json.loads(program.call(["--json", "verify"], codes=(0, 4)).stdout)
    errors = [finding for finding in said["findings"] if finding["severity"] == "error"]
    damage = rotten(found, story.blake3)
    if bool(errors) != bool(damage):
        raise Broken(f"verify finds {errors}; what is damaged is {damage}")


def look_up(program, story, found, turn):
    """What was built from some inputs is found, or nothing: never anything else."""
    build = list(story.made)[turn % len(story.made)]
    ended = program.call(["lookup", *story.made[build]], codes=(0, 3))
    if ended.returncode == 0:
        *_, template, _, revision = ended.stdout.strip().split("/")
        if found.get(("revision", template, revision)) != story.revision(build)():
            raise Broken(f"a look-up for {build} finds {template}@{revision}")


def collect(program, before):
    """A collection that keeps every revision changes nothing that is seen, and leaves nothing else."""
    said = json.loads(program.call(["--json", "gc", "--keep-last", "100"]).stdout)["report"]
    if said["removed"] or said["skipped"] or said["failed"]:
        raise Broken(f"a collection that had nothing to remove or skip says {said}")
    left = litter(program.place)
    if left:
        raise Broken(f"after a collection there is {left}")
    after = survey(program.place)
    compare(after, before, [])
    return after
