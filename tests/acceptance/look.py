"""What the checks read: fields of JSON, digests, and a revision as mvm 0.11 reads it."""

import hashlib
import json
import os
import sys


def walk(value):
    """Every object in a JSON value, outermost first."""
    if isinstance(value, dict):
        yield value
        value = value.values()
    elif not isinstance(value, list):
        return
    for inner in value:
        yield from walk(inner)


def field(name):
    """The first field of that name on stdin."""
    for found in walk(json.load(sys.stdin)):
        if name in found:
            value = found[name]
            print(value if isinstance(value, str) else json.dumps(value))
            return
    sys.exit(f"no field {name}")


def digests(revision):
    """The digests that revision.json records, in the format of b3sum."""
    with open(os.path.join(revision, "revision.json")) as file:
        record = json.load(file)
    for entry in walk(record):
        if "path" in entry and "blake3" in entry:
            size = os.stat(os.path.join(revision, entry["path"])).st_size
            if size != entry["size"]:
                sys.exit(f"{entry['path']} has {size} bytes, revision.json says {entry['size']}")
            print(f"{entry['blake3']}  {entry['path']}")


# What mvm 0.11 requires of revision.json and template.json, and nothing else.
ARTIFACTS = {"vmlinux": str, "rootfs": str, "fc_base_config": str}
COMMON = {
    "schema_version": int,
    "flake_ref": str,
    "profile": str,
    "role": str,
    "vcpus": int,
    "mem_mib": int,
    "data_disk_mib": int,
}
REVISION = COMMON | {
    "revision_hash": str,
    "flake_lock_hash": str,
    "artifact_paths": dict,
    "built_at": str,
}
TEMPLATE = COMMON | {"template_id": str, "created_at": str, "updated_at": str}


def require(path, fields, value):
    for name, kind in fields.items():
        if not isinstance(value.get(name), kind):
            sys.exit(f"{path}: {name} is {value.get(name)!r}")


def load(path, fields):
    with open(path) as file:
        value = json.load(file)
    require(path, fields, value)
    return value


def mvm(store, template):
    """Reads the current revision as mvm 0.11 does; prints its id and cache key."""
    base = f"{store}/templates/{template}"
    target = os.readlink(f"{base}/current")
    if not target.startswith("revisions/"):
        sys.exit(f"current is {target}")
    name = target.removeprefix("revisions/")
    directory = f"{base}/artifacts/{name}"
    load(f"{base}/template.json", TEMPLATE)
    record = load(f"{directory}/revision.json", REVISION)
    require("artifact_paths", ARTIFACTS, record["artifact_paths"])
    if record["revision_hash"] != name:
        sys.exit(f"revision {name} calls itself {record['revision_hash']}")
    for key in ARTIFACTS:
        path = f"{directory}/{record['artifact_paths'][key]}"
        with open(path, "rb") as file:
            if not file.read(1):
                sys.exit(f"{path} is empty")
    with open(f"{directory}/fc-base.json") as file:
        if "boot-source" not in json.load(file):
            sys.exit("fc-base.json has no boot-source")
    key = ":".join(record[part] for part in ("flake_lock_hash", "profile", "role"))
    print(name, hashlib.sha256(key.encode()).hexdigest())


if __name__ == "__main__":
    {"field": field, "digests": digests, "mvm": mvm}[sys.argv[1]](*sys.argv[2:])
