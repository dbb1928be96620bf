"""The artifacts that all of them are given."""

import os
import random

MIB = 1 << 20
PAGE = 4096
SEED = 20260101

# Text as it is in binaries and configurations: half of each page, so that a compressor halves the image.
TEXT = (b"static int request_module(const char *name, ...); /* usr/lib/modules */ " * 40)[: PAGE // 2]


def make(directory, rootfs_mib, kernel_mib):
    """A kernel, a root file system of which 28 % are holes, and a configuration."""
    directory.mkdir()
    source = random.Random(SEED)
    write(directory / "vmlinux", kernel_mib, 0, source)
    write(directory / "rootfs.ext4", rootfs_mib, 0.28, source)
    (directory / "fc-base.json").write_text('{"boot-source":{"kernel_image_path":"vmlinux"}}\n')


def write(path, size_mib, holes, source):
    """Each MiB is a hole with the given probability."""
    with open(path, "wb") as file:
        for number in range(size_mib):
            # The last one is never a hole: the size is that of what was written.
            if source.random() < holes and number + 1 < size_mib:
                file.seek(MIB, os.SEEK_CUR)
            else:
                file.write(mebibyte(source))


def mebibyte(source):
    half = PAGE // 2
    noise = source.randbytes(MIB // 2)
    return b"".join(noise[at : at + half] + TEXT for at in range(0, len(noise), half))
