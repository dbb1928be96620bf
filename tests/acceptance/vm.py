"""What the checks do to instances and snapshots, and what they read of them; nothing of the crate."""

import fcntl
import glob
import hashlib
import json
import mmap
import os
import random
import stat
import sys

from look import walk

BLOCK = 4096
READ_ONLY = {"vmlinux", "initrd", "tools.img", "share/notes"}
WRITABLE = {"rootfs.ext4", "scratch.img"}


def extents(file):
    """Where a file may have other bytes than zeros: start and end of each part."""
    at, end = 0, os.fstat(file.fileno()).st_size
    while at < end:
        try:
            at = os.lseek(file.fileno(), at, os.SEEK_DATA)
        except OSError:  # only a hole is left
            return
        hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
        yield at, hole
        at = hole


def data(path):
    """A digest of a file's bytes for which it does not matter what is a hole and what is zeros; the bytes that are
    neither."""
    digest, zeros, used = hashlib.blake2b(), bytes(BLOCK), 0
    with open(path, "rb", buffering=0) as file:
        digest.update(str(os.fstat(file.fileno()).st_size).encode())
        for start, end in extents(file):
            at = start // BLOCK * BLOCK
            file.seek(at)
            while at < end:
                part = file.read(1 << 20)
                for inner in range(0, len(part), BLOCK):
                    block = part[inner : inner + BLOCK]
                    if block != zeros[: len(block)] and at + inner < end:
                        digest.update(b"%d:" % (at + inner) + block)
                        used += len(block)
                at += len(part)
                if not part:
                    break
    return digest.hexdigest()[:32], used


def contents(*paths):
    """A line for each file: digest, size, path."""
    for path in paths:
        print(data(path)[0], os.stat(path).st_size, path)


def files_of(top):
    for directory, _, names in os.walk(top):
        for name in names:
            yield os.path.relpath(os.path.join(directory, name), top)


def is_instance(dest, revision, *options):
    """DEST is whole: the files of the revision with their modes, both documents; what may be written is its own."""
    dest_dev = os.lstat(dest).st_dev
    for name in sorted(READ_ONLY | WRITABLE):
        path, origin = os.path.join(dest, name), os.path.join(revision, name)
        have, want = os.lstat(path), os.lstat(origin)
        if not stat.S_ISREG(have.st_mode):
            sys.exit(f"{path} is no regular file")
        if data(path)[0] != data(origin)[0]:
            sys.exit(f"{path} has other bytes than {origin}")
        if name in WRITABLE:
            if (have.st_dev, have.st_ino) == (want.st_dev, want.st_ino) or have.st_nlink != 1:
                sys.exit(f"{path} is a name of a file of the store")
            if not have.st_mode & stat.S_IWUSR:
                sys.exit(f"{path} has mode {have.st_mode & 0o7777:o}: the VM can't write")
        elif have.st_mode & 0o222:
            sys.exit(f"{path} has mode {have.st_mode & 0o7777:o}")
        elif "linked" in options and want.st_size >= 65536 and have.st_ino != want.st_ino:
            sys.exit(f"{path} is no link of {origin}")
        elif "own" in options and have.st_ino == want.st_ino and dest_dev == want.st_dev:
            sys.exit(f"{path} is a link of {origin}")
    config(dest, revision)
    with open(os.path.join(dest, "instance.json")) as file:
        record = json.load(file)
    template, _, name = os.path.abspath(revision).rsplit("/", 3)[1:]
    if record["template"] != template or record["revision"] != name:
        sys.exit(f"instance.json says that it came from {record['template']}@{record['revision']}")


def config(dest, revision):
    """fc.json is fc-base.json, with absolute paths of files that are there."""
    with open(os.path.join(revision, "fc-base.json")) as file:
        base = json.load(file)
    with open(os.path.join(dest, "fc.json")) as file:
        made = json.load(file)
    top = os.path.abspath(dest)

    def becomes(path):
        return os.path.join(top, os.path.normpath(path))

    boot = base["boot-source"]
    for field in ("kernel_image_path", "initrd_path"):
        boot[field] = becomes(boot[field])
    for drive in base["drives"]:
        drive["path_on_host"] = becomes(drive["path_on_host"])
    base["vsock"]["uds_path"] = becomes(base["vsock"]["uds_path"])
    data_disk = [drive for drive in made["drives"] if drive["drive_id"] == "data"]
    for drive in data_disk:
        if drive != {
            "drive_id": "data",
            "path_on_host": becomes("data.img"),
            "is_root_device": False,
            "is_read_only": False,
        }:
            sys.exit(f"the data disk is {drive}")
    if made != base | {"drives": base["drives"] + data_disk}:
        sys.exit(f"fc.json is {json.dumps(made)}, not {json.dumps(base)}")
    paths = [boot["kernel_image_path"], boot["initrd_path"]] + [drive["path_on_host"] for drive in made["drives"]]
    for path in paths:
        if not os.path.isabs(path) or not os.path.isfile(path):
            sys.exit(f"fc.json names {path}, which is not there")


def strategies(*want):
    """The result on stdin has FILE=STRATEGY[|STRATEGY] for each that is wanted; what is copied has its bytes."""
    result = json.load(sys.stdin)
    have = {one["path"].removeprefix(result["path"] + "/"): one for one in result["files"]}
    for one in have.values():
        if one["strategy"] not in ("reflink", "copy", "hard_link", "written"):
            sys.exit(f"a strategy that nobody knows: {one}")
        if (one["strategy"] == "copy") != isinstance(one.get("bytes"), int):
            sys.exit(f"bytes are told of a copy, and of nothing else: {one}")
    for pair in want:
        name, wanted = pair.split("=")
        if name not in have or have[name]["strategy"] not in wanted.split("|"):
            sys.exit(f"{name} is not {wanted}, but {have.get(name)}")


def scribble(*paths):
    """Changes files in each way that a VM can: writes, a memory map, a hole, an end that moves."""
    for path in paths:
        with open(path, "r+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            places = [0, size // 2, size - 5000] + [start for start, _ in list(extents(file))[:4]]
            for at in places:
                file.seek(at)
                file.write(random.randbytes(5000))
            with mmap.mmap(file.fileno(), 0) as memory:
                memory[size // 3 : size // 3 + 8192] = random.randbytes(8192)
                memory.flush()
            os.ftruncate(file.fileno(), size + 8192)
            os.ftruncate(file.fileno(), size)
            os.posix_fallocate(file.fileno(), size // 4, 65536)
            os.fsync(file.fileno())


def tamper(dest):
    """Tries to change each read-only file as whoever runs this; none of it may succeed."""
    for name in sorted(files_of(dest)):
        path = os.path.join(dest, name)
        if os.stat(path).st_mode & 0o222:
            continue
        ways = {
            "opened for writing": lambda: os.close(os.open(path, os.O_WRONLY)),
            "opened for reading and writing": lambda: os.close(os.open(path, os.O_RDWR)),
            "opened to be appended to": lambda: os.close(os.open(path, os.O_WRONLY | os.O_APPEND)),
            "opened to be emptied": lambda: os.close(os.open(path, os.O_RDONLY | os.O_TRUNC)),
            "truncated": lambda: os.truncate(path, 1),
            "mapped": lambda: mapped(path),
            "given an attribute": lambda: os.setxattr(path, "user.note", b"1"),
        }
        for how, way in ways.items():
            try:
                way()
            except PermissionError:
                continue
            except OSError as error:
                if how == "given an attribute":  # a file system without them
                    continue
                sys.exit(f"{path} {how}: {error}")
            sys.exit(f"{path} was {how}")
        print(name)


def mapped(path):
    with open(path, "rb") as file:
        mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()


def wreck(dest):
    """Does to each file all that whoever owns the directory may do, modes and names included."""
    for name in sorted(files_of(dest)):
        path = os.path.join(dest, name)
        if os.stat(path).st_uid == os.geteuid():
            os.chmod(path, 0o600)
            with open(path, "r+b") as file:
                file.write(b"WRECKED")
                file.truncate(7)
        with open(path + ".new", "wb") as file:
            file.write(b"another")
        os.replace(path + ".new", path)
        os.unlink(path)


def state(*tops):
    """What must not change of files: names, inodes, owners, modes, times and bytes."""
    for top in tops:
        for name in sorted(files_of(top)):
            path = os.path.join(top, name)
            have = os.lstat(path)
            if stat.S_ISREG(have.st_mode):
                mode = f"{have.st_mode:o}"
                print(path, have.st_ino, have.st_uid, have.st_gid, mode, have.st_mtime_ns, data(path)[0])


def memory(path, mib, pages, label):
    """A memory file as a VMM writes it: every page is written, and all but some are zero."""
    numbers = random.Random(label)
    size = int(mib) << 20
    with open(path, "wb") as file:
        for _ in range(int(mib)):
            file.write(bytes(1 << 20))
        for page in [0, size // BLOCK - 1] + numbers.sample(range(1, size // BLOCK - 1), int(pages) - 2):
            file.seek(page * BLOCK)
            file.write((f"{label} {page} ".encode() + numbers.randbytes(BLOCK))[:BLOCK])
        file.flush()
        os.fsync(file.fileno())


def instances(store):
    """The records of instances in a store: where each leads."""
    for link in sorted(glob.glob(glob.escape(store) + "/.store/instances/*")):
        print(os.readlink(link))


SNAPSHOT_FIELDS = {
    "created_at": str,
    "vmstate_size_bytes": int,
    "mem_size_bytes": int,
    "boot_args": str,
    "vcpus": int,
    "mem_mib": int,
}


def read_json(path, dir_fd=None):
    with open(os.open(path, os.O_RDONLY, dir_fd=dir_fd)) as file:
        return json.load(file)


def is_snapshot(revision):
    """Both documents say the same of the snapshot, and what is there has those sizes."""
    truth = read_json(f"{revision}/snapshot/snapshot.json")
    field = read_json(f"{revision}/revision.json")["snapshot"]
    for name, kind in SNAPSHOT_FIELDS.items():
        if not isinstance(field.get(name), kind):
            sys.exit(f"revision.json: {name} of the snapshot is {field.get(name)!r}")
        if not any(one.get(name) == field[name] for one in walk(truth)):
            sys.exit(f"snapshot.json: {name} is not {field[name]!r}")
    for name, file in (("vmstate_size_bytes", "vmstate.bin"), ("mem_size_bytes", "mem.bin")):
        size = os.stat(f"{revision}/snapshot/{file}").st_size
        if field[name] != size:
            sys.exit(f"{file} has {size} bytes, {name} says {field[name]}")


def snapshot_digests(snapshot):
    """The digests that snapshot.json records, in the format of b3sum."""
    for one in walk(read_json(f"{snapshot}/snapshot.json")):
        if "path" in one and "blake3" in one:
            print(f"{one['blake3']}  {one['path'].removeprefix('snapshot/')}")


# What Firecracker takes in the body of PUT /snapshot/load; it refuses whatever else there is.
LOAD = {"snapshot_path", "mem_backend", "mem_file_path", "enable_diff_snapshots", "track_dirty_pages", "resume_vm"}
LOAD |= {"network_overrides", "vsock_override", "clock_realtime"}


def is_warm(dest, revision):
    """DEST can be resumed: the request names files of its own, the memory is read-only, the drives are private. All is
    that of the revision's snapshot."""
    load = read_json(f"{dest}/snapshot-load.json")
    if set(load) - LOAD:
        sys.exit(f"snapshot-load.json has {set(load) - LOAD}, which Firecracker does not know")
    backend = load["mem_backend"]
    if set(backend) != {"backend_type", "backend_path"} or backend["backend_type"] != "File":
        sys.exit(f"the memory's backend is {backend}")
    vmstate, memory = load["snapshot_path"], backend["backend_path"]
    for path in (vmstate, memory):
        if os.path.dirname(path) != os.path.abspath(dest):
            sys.exit(f"snapshot-load.json names {path}, which is not in {dest}")
        if os.lstat(path).st_mode & 0o222:
            sys.exit(f"{path} can be written to")
    for name in WRITABLE:
        have = os.lstat(f"{dest}/{name}")
        if have.st_nlink != 1 or not have.st_mode & stat.S_IWUSR:
            sys.exit(f"{name} is not private and writable")
    files = {"vmstate": vmstate, "mem": memory} | {name: f"{dest}/{name}" for name in WRITABLE}
    digests = {name: data(path)[0] for name, path in files.items()}
    of_revision = {"vmstate": "vmstate.bin", "mem": "mem.bin", "rootfs.ext4": "drives/rootfs", "scratch.img": "drives/scratch"}
    wants = {name: data(f"{revision}/snapshot/{of_revision[name]}")[0] for name in files}
    if digests != wants:
        sys.exit(f"{dest} is not that of the snapshot: {digests}, not {wants}")
    if not os.path.samestat(os.stat(dest), os.stat(os.path.dirname(memory))):
        sys.exit(f"{memory} is not in {dest}")


def can_clone(source, target):
    """Whether a file in one directory can share its blocks with one in another."""
    paths = [os.path.join(place, f".clone-{os.getpid()}-{number}") for number, place in enumerate([source, target])]
    try:
        with open(paths[0], "w+b") as source, open(paths[1], "w+b") as target:
            source.write(bytes(BLOCK))
            source.flush()
            fcntl.ioctl(target.fileno(), 0x40049409, source.fileno())
    except OSError as error:
        sys.exit(f"no clones: {error}")
    finally:
        for path in paths:
            if os.path.exists(path):
                os.unlink(path)


if __name__ == "__main__":
    commands = [can_clone, contents, instances, is_instance, is_snapshot, is_warm, memory, scribble, snapshot_digests]
    commands += [state, strategies, tamper, wreck]
    {command.__name__: command for command in commands}[sys.argv[1]](*sys.argv[2:])
