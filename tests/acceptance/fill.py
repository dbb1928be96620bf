"""fill.py PROGRAM STORE LOCKS TEMPLATES REVISIONS WORKER WORKERS: one of several that fill a store.

Each template gets the revisions r0001, r0002, …. Most files are small; every fifth
kernel and every tenth root file system has more than 64 KiB, and is the same in all
templates. Every other revision has a cache key, the same in all templates.
"""

import os
import subprocess
import sys
import tempfile

program, store, locks = sys.argv[1:4]
templates, revisions, worker, workers = map(int, sys.argv[4:])

with tempfile.TemporaryDirectory() as files:

    def write(name, text, size):
        with open(os.path.join(files, name), "w") as file:
            file.write((text * (size // len(text) + 1))[: max(size, len(text))])

    write("fc-base.json", '{"boot-source": {}}\n', 0)
    for template in range(worker, templates, workers):
        for number in range(1, revisions + 1):
            shared = f"revision {number}\n"
            own = f"template {template}, {shared}"
            write("vmlinux", *((shared, 70000) if number % 5 == 0 else (own, 0)))
            write("rootfs.ext4", *((shared, 200000) if number % 10 == 0 else (shared, 45000)))
            inputs = []
            if number % 2:
                inputs = ["--flake-lock", f"{locks}/fill-{number}/flake.lock", "--profile", "minimal", "--role", "worker"]
            name = f"t{template:02}"
            command = [program, "--store", store, "--quiet", "publish", name, files, "--revision", f"r{number:04}"]
            subprocess.run(command + inputs, check=True, stdout=subprocess.DEVNULL)
