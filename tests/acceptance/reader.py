"""reader.py CURRENT STOP REVISION=LABEL...: reads through CURRENT until the file STOP exists.

Each round reads by path, then twice through one handle of the directory; a handle must
show one revision throughout. Prints the number of rounds; ends with an error at the first
read that fails or mixes revisions.
"""

import json
import os
import sys
import time

current, stop, *pairs = sys.argv[1:]
label_of = dict(pair.split("=") for pair in pairs)


def read(path, directory=None):
    fd = os.open(path, os.O_RDONLY, dir_fd=directory)
    try:
        return b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    finally:
        os.close(fd)


def whole(image, label):
    line = label.encode() + b"\n"
    return len(image) == 131072 and image == (line * (len(image) // len(line) + 1))[: len(image)]


rounds = 0
seen = set()
while not os.path.exists(stop):
    assert os.readlink(current).removeprefix("revisions/") in label_of, os.readlink(current)
    image = read(current + "/vmlinux")
    assert any(whole(image, label) for label in label_of.values()), image[:80]
    assert json.loads(read(current + "/revision.json"))["revision_hash"] in label_of

    handle = os.open(current, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(2):
        revision = json.loads(read("revision.json", handle))["revision_hash"]
        image = read("vmlinux", handle)
        assert whole(image, label_of[revision]), (revision, image[:80])
    os.close(handle)
    seen.add(revision)
    rounds += 1
    time.sleep(0.0002)  # the writer needs the processor too

assert seen == set(label_of), f"only saw {seen}"
print(rounds)
