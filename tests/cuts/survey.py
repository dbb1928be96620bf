"""What a store holds, read from outside: nothing of the crate, and nothing believed that the store says of itself.

A survey is a dictionary from a thing, such as ("current", "web"), to what it is. What is not there is not in it.
"""

import hashlib
import json
import os
import stat


class Broken(Exception):
    """A promise that does not hold."""


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files(top, *skipped):
    """The digest of each regular file below; there must be nothing else but directories."""
    found = {}
    for directory, names, plain in os.walk(top):
        names[:] = [name for name in names if os.path.relpath(os.path.join(directory, name), top) not in skipped]
        for name in plain:
            path = os.path.join(directory, name)
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise Broken(f"{path} is no regular file")
            relative = os.path.relpath(path, top)
            if relative not in skipped:
                found[relative] = sha256(path)
    return found


def document(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise Broken(f"{path} ({os.path.getsize(path)} bytes) can't be read: {error}") from None


def recorded(record):
    """The digests that a document lists of the files beside it."""
    return {content["path"]: content["blake3"] for content in record["contents"]}


def contents(found, record):
    """What a survey says of files: each with its SHA-256, and with the BLAKE3 that is on record."""
    digests = recorded(record)
    return tuple((name, found.get(name), digests.get(name)) for name in sorted(set(found) | set(digests)))


def survey(place):
    """All that is in the store and beside it."""
    store, world = f"{place}/store", {}
    if not os.path.exists(f"{store}/.store/format.json"):
        return world
    world["store",] = document(f"{store}/.store/format.json")["format_version"]
    for name in os.listdir(f"{store}/templates"):
        template(world, name, f"{store}/templates/{name}")
    for name in os.listdir(f"{store}/.store/pins"):
        pin = document(f"{store}/.store/pins/{name}")
        world["pin", name.removesuffix(".json")] = f"{pin['template']}@{pin['revision']}"
    vms = f"{place}/vms"
    for name in os.listdir(vms) if os.path.exists(vms) else []:
        # What has such a name is somebody's unfinished work.
        if not name.startswith(".template-store-"):
            world["instance", name] = instance(f"{vms}/{name}")
    return world


def template(world, name, path):
    spec = document(f"{path}/template.json")
    world["template", name] = (spec["template_id"], spec["vcpus"], spec["mem_mib"])
    if os.readlink(f"{path}/revisions") != "artifacts":
        raise Broken(f"{path}/revisions leads to {os.readlink(f'{path}/revisions')}")
    for revision in os.listdir(f"{path}/artifacts"):
        artifacts(world, name, revision, f"{path}/artifacts/{revision}")
    if os.path.lexists(f"{path}/current"):
        current = os.readlink(f"{path}/current").removeprefix("revisions/")
        if not os.path.isdir(f"{path}/current") or ("revision", name, current) not in world:
            raise Broken(f"{path}/current leads to {current}, which is not there")
        world["current", name] = current
        if current not in activations(f"{path}/activations.jsonl"):
            raise Broken(f"{current} is current in {name}, and its history does not know it")


def activations(path):
    """Which revisions were current. A line without an end is one that a cut tore."""
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")[:-1]
    try:
        return [json.loads(line)["revision"] for line in lines]
    except ValueError:
        raise Broken(f"{path} has a line that is no activation") from None


def artifacts(world, template, revision, path):
    record = document(f"{path}/revision.json")
    if record["revision_hash"] != revision:
        raise Broken(f"{path}/revision.json is of {record['revision_hash']}")
    found = files(path, "revision.json", "snapshot")
    for name in found:
        mode = stat.S_IMODE(os.stat(f"{path}/{name}").st_mode)
        if mode != 0o444:
            raise Broken(f"{path}/{name} has mode {mode:o}")
    world["revision", template, revision] = contents(found, record)
    if os.path.lexists(f"{path}/snapshot"):
        snapshot = document(f"{path}/snapshot/snapshot.json")
        found = files(f"{path}/snapshot", "snapshot.json")
        world["snapshot", template, revision] = contents(found, snapshot)
        # mvm finds a snapshot in revision.json, which is written after it.
        told = record["snapshot"] or {}
        if told.get("created_at") == snapshot["created_at"]:
            world["told of snapshot", template, revision] = found["vmstate.bin"]


def instance(path):
    found = files(path)
    for name in list(found):
        if name in ("instance.json", "fc.json", "snapshot-load.json"):
            document(f"{path}/{name}")
            found[name] = "a document"
    return tuple(sorted(found.items()))


def rotten(world, blake3):
    """The files in a survey that do not have the digest that is on record."""
    return [
        (key, name)
        for key, value in world.items()
        if key[0] in ("revision", "snapshot")
        for name, found, digest in value
        if blake3.get(found) != digest
    ]


def litter(place):
    """What a collection should have taken."""
    top = f"{place}/store/.store"
    left = [f"{kind}/{name}" for kind in ("drafts", "trash") for name in os.listdir(f"{top}/{kind}")]
    for directory, _, names in os.walk(f"{top}/objects"):
        paths = [os.path.join(directory, name) for name in names]
        left += [path for path in paths if os.stat(path).st_nlink == 1]
    return left
