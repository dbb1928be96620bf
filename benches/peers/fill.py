"""Stores of many small entries, made quickly. Each function gets the place, the environment, the store, the number."""

import os

from peers import GIT, GIT_INIT, NIX_INIT, OSTREE_INIT


def contents(number):
    """The files of an entry, which no other entry has."""
    return {
        "vmlinux": f"vmlinux {number} " * (number % 200 + 1),
        "rootfs.ext4": f"rootfs {number} " * (number % 300 + 1),
        "fc-base.json": f'{{"entry":{number}}}',
    }


def write(directory, number):
    directory.mkdir()
    for name, text in contents(number).items():
        (directory / name).write_text(text)


def store(place, env, _store, _count):
    """By the library, in one process: the program would take one for each."""
    # Cargo needs its own home.
    user = {"HOME": os.environ.get("HOME", "/root")}
    place.run('mkdir "$STORE"; cargo bench --quiet --bench collect -- --make "$STORE/store" "$COUNT"', env | user)


def directories(_place, _env, store, count):
    store.mkdir()
    for number in range(1, count + 1):
        write(store / f"entry-{number}", number)


def nix_roots(place, env, store, count):
    """Each path has a root of its own, as what `nix build` makes has."""
    nix(place, env, store, count, {})
    for number in range(1, count + 1):
        (store / f"var/gcroots/entry-{number}").symlink_to(nix_path(store, number))


def nix_one_root(place, env, store, count):
    """One path refers to all of them, as a profile does; another one, which has a root too, to half."""
    profiles = {"all": range(1, count + 1), "half": range(1, count + 1, 2)}
    nix(place, env, store, count, profiles)
    for name in profiles:
        (store / f"var/gcroots/{name}").symlink_to(profile_path(store, name))


def profile_path(store, name):
    return store / f"store/{name[0] * 32}-{name}"


def nix_path(store, number):
    return store / f"store/{number:032d}-entry"


def nix(place, env, store, count, profiles):
    place.run(NIX_INIT, env)
    records = []
    for number in range(1, count + 1):
        write(nix_path(store, number), number)
        records.append(registration(nix_path(store, number), []))
    for name, numbers in profiles.items():
        path = profile_path(store, name)
        path.write_text(name)
        records.append(registration(path, [nix_path(store, number) for number in numbers]))
    (store / "registration").write_text("".join(records))
    place.run('nix-store --register-validity --hash-given < "$STORE/registration"; rm "$STORE/registration"', env)


def registration(path, references):
    """Path, hash, size, deriver, and what it refers to."""
    lines = [path, "0" * 64, 4096, "", len(references), *references]
    return "".join(f"{line}\n" for line in lines)


def git(place, env, store, count):
    """Each entry is a commit without parents, with a branch of its own."""
    stream = place.root / "stream"
    with open(stream, "w", encoding="utf-8") as file:
        for number in range(1, count + 1):
            file.write(f"commit refs/heads/entry-{number}\ncommitter peer <peer@localhost> 0 +0000\n{data('entry')}")
            for name, text in contents(number).items():
                file.write(f"M 100644 inline {name}\n{data(text)}")
    place.run(f'{GIT_INIT}; {GIT} --git-dir="$STORE" fast-import --quiet < "{stream}"', env)
    stream.unlink()


def data(text):
    return f"data {len(text)}\n{text}\n"


# A process for each entry.
EACH = """
mkdir "$STORE/entry"
number=1
while [ "$number" -le "$COUNT" ]; do
  printf 'vmlinux %s' "$number" > "$STORE/entry/vmlinux"
  printf 'rootfs %s' "$number" > "$STORE/entry/rootfs.ext4"
  printf '{{"entry":%s}}' "$number" > "$STORE/entry/fc-base.json"
  {}
  number=$((number + 1))
done
rm -r "$STORE/entry"
"""


def ostree(place, env, _store, _count):
    """Nothing is synced while it is made."""
    commit = 'ostree --repo="$STORE" commit --branch="entry-$number" --subject=entry "$STORE/entry"'
    config = 'ostree --repo="$STORE" config set core.fsync'
    place.run(f"{OSTREE_INIT}\n{config} false\n{EACH.format(commit)}\n{config} true", env)


def casync(place, env, _store, _count):
    make = 'casync make --store="$STORE/a.castr" "$STORE/entry-$number.caidx" "$STORE/entry"'
    place.run(f'mkdir "$STORE"\n{EACH.format(make)}', env)
