"""tend.py DIR COMMAND...: runs a command that works in DIR, and clears away after it however it ends.

What the command starts stays below this process in the tree of processes, orphans too. When the command has ended, or a
signal says that it is to end, all of it is killed; what it mounted in DIR is unmounted; and what DIR/tidy lists is removed,
a path a line. What could not be cleared away is named, and the exit code is not 0 then.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    pass


def stop(number, _):
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    raise Stopped(number)


def prctl(option, value):
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")


def run(command):
    """The exit code of the command, or 128 and the number of the signal that stopped it."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    for one in SIGNALS:
        signal.signal(one, stop)
    try:
        # A session of its own: what a terminal sends on Ctrl-C comes here only.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        )
        while True:
            pid, status = os.waitpid(-1, 0)  # orphans as well
            if pid == child.pid:
                code = os.waitstatus_to_exitcode(status)
                code = code if code >= 0 else 128 - code
                break
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        return code
    except Stopped as stopped:
        child.kill()
        number = stopped.args[0]
        print(f"FAIL  stopped by {signal.Signals(number).name}", flush=True)
        return 128 + number


def below():
    """All processes that descend from this one."""
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                parents[int(pid)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            pass
    found, last = set(), {os.getpid()}
    while last:
        last = {pid for pid, parent in parents.items() if parent in last}
        found |= last
    return found


def patiently(left):
    """Until nothing is left; what is left after half a minute."""
    end = time.monotonic() + 30
    while (those := left()) and time.monotonic() < end:
        time.sleep(0.02)
    return those


def kill_all():
    def left():
        for pid in below():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        return below()

    return [f"process {pid}" for pid in patiently(left)]


def mounted(top):
    with open("/proc/self/mounts") as file:
        places = [line.split()[1].encode().decode("unicode_escape") for line in file]
    return [place for place in places if place.startswith(top + "/")]


def unmount_all(top, before):
    def left():
        places = [place for place in mounted(top) if place not in before]
        for place in reversed(places):
            subprocess.run(["umount", place], stderr=subprocess.DEVNULL)
        return places

    return [f"the mount {place}" for place in patiently(left)]


def remove_all(top):
    listed = f"{top}/tidy"
    if not os.path.exists(listed):
        return []
    with open(listed) as file:
        places = file.read().splitlines()
    for place in places:
        quiet = {"stderr": subprocess.DEVNULL}
        subprocess.run(["chmod", "-R", "u+w", place], **quiet)
        subprocess.run(["rm", "-rf", "--one-file-system", place], **quiet)
    os.remove(listed)
    return [place for place in places if os.path.lexists(place)]


def main(top, *command):
    top = os.path.realpath(top)
    before = mounted(top)
    code = run(command)
    left = kill_all()
    # Nothing is removed through what is still mounted.
    left += unmount_all(top, before) or remove_all(top)
    for one in left:
        print(f"FAIL  left behind: {one}")
    sys.exit(code or bool(left))


if __name__ == "__main__":
    main(*sys.argv[1:])
