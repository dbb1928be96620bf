"""What the checks read: fields of JSON, digests, and a revision as mvm 0.11 reads it."""

import glob
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


def at(path):
    """The value at a path such as report.freed of the document on stdin."""
    value = json.load(sys.stdin)
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    print(value if isinstance(value, str) else json.dumps(value))


def finds(kinds, path):
    """The report of a verification on stdin has a path that ends so, as an error or a warning of these kinds."""
    report = json.load(sys.stdin)
    found = [one for one in report["findings"] if one["severity"] != "note"]
    if not any(one["path"].endswith("/" + path) and one["kind"] in kinds.split("|") for one in found):
        sys.exit(f"{path} is not found to be {kinds}, but: {json.dumps(found, indent=1)}")


def going():
    """The revisions that the plan on stdin lets go."""
    revisions = json.load(sys.stdin)["plan"]["revisions"]
    print_names(one for one in revisions if one["verdict"] == "goes")


def removed():
    """The revisions that the collection on stdin has removed."""
    print_names(json.load(sys.stdin)["report"]["removed"])


def print_names(revisions):
    for name in sorted(f"{one['template']}@{one['revision']}" for one in revisions):
        print(name)


def digests(revision):
    """The digests that revision.json records, in the format of b3sum."""
    print_digests(revision, "")


def all_digests(store):
    """The digests that all records of a store have; paths are below the store."""
    for record in sorted(glob.glob(glob.escape(store) + "/templates/*/artifacts/*/revision.json")):
        revision = os.path.dirname(record)
        print_digests(revision, os.path.relpath(revision, store) + "/")


def print_digests(revision, before):
    with open(os.path.join(revision, "revision.json")) as file:
        record = json.load(file)
    for entry in walk(record):
        if "path" in entry and "blake3" in entry:
            size = os.stat(os.path.join(revision, entry["path"])).st_size
            if size != entry["size"]:
                sys.exit(f"{revision}/{entry['path']} has {size} bytes, revision.json says {entry['size']}")
            print(f"{entry['blake3']}  {before}{entry['path']}")


def dangling_keys(store):
    """The entries of the index of keys that name a revision which is not there."""
    for found in dangling(store):
        print(found)


def dangling(store):
    for path in sorted(glob.glob(glob.escape(store) + "/.store/keys/*/*.json")):
        with open(path) as file:
            entry = json.load(file)
        for hint in entry["revisions"]:
            if not os.path.isdir(f"{store}/templates/{hint['template']}/artifacts/{hint['revision']}"):
                yield f"{path} {hint['template']} {hint['revision']}"


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
    commands = [all_digests, at, dangling_keys, digests, field, finds, going, mvm, removed]
    {command.__name__: command for command in commands}[sys.argv[1]](*sys.argv[2:])
