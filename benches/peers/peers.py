"""The peers, each with the commands that do the same work as ours."""

from dataclasses import dataclass, field

from rows import LASTS, LOST, NAME_LOST, NOTHING_TO_LAST, Group

# The shell scripts find in their environment: the directory with the artifacts (IN), another one with the same
# contents (AGAIN), the store's directory, empty at first (STORE), a path that does not exist yet (OUT), and a name
# that nobody used yet (NEW).

PUBLISH, AGAIN, USE, COPY_OUT, VERIFY = "publish", "again", "use", "copy out", "verify"
GROUPS = {
    PUBLISH: Group("Publish", "The artifacts go into an empty store by copy."),
    AGAIN: Group("Publish the same contents again", "From another directory, and under another name."),
    USE: Group("Use it once more", "What is in the store is to be used again. Nothing needs to be copied for that."),
    COPY_OUT: Group(
        "Copy it out",
        "A copy that may be written to, as a VM needs one of its root file system. Ours is read from the disk: what the store\n"
        "wrote is not in the page cache, where what others wrote has taken the place of something else.",
    ),
    VERIFY: Group("Verify", "All of the contents are read and checked."),
}


@dataclass
class Step:
    work: str
    # What the reader sees.
    shown: str
    script: str
    lasts: str
    # Where the artifacts are then, to compare them with what went in.
    result: str = ""


@dataclass
class Peer:
    name: str
    # The program without which it is left out, and the command that says its version.
    program: str
    version: str
    init: str
    steps: list
    env: dict = field(default_factory=dict)


STORE = Peer(
    name="template-store",
    program="template-store",
    version="template-store --version",
    init='template-store init --store "$STORE"',
    steps=[
        Step(
            PUBLISH,
            "publish",
            'template-store publish web "$IN" --store "$STORE" --role worker --flake-lock "$LOCK"',
            LASTS,
        ),
        Step(
            AGAIN,
            "publish, to another template",
            'template-store publish "$NEW" "$AGAIN" --store "$STORE" --role worker',
            LASTS,
        ),
        Step(
            USE,
            "build, which finds it by its inputs",
            'template-store build "$NEW" --store "$STORE" --role worker --flake-lock "$LOCK" -- false',
            LASTS,
            '"$(template-store path "$NEW" --store "$STORE")"',
        ),
        Step(
            USE,
            "path",
            'template-store path web rootfs --store "$STORE"',
            NOTHING_TO_LAST,
        ),
        Step(
            COPY_OUT,
            "instance, with a private root disk",
            'template-store instance web "$OUT" --store "$STORE"',
            LASTS,
            '"$OUT"',
        ),
        Step(VERIFY, "verify", 'template-store verify --store "$STORE"', NOTHING_TO_LAST),
    ],
)

COPY = Peer(
    name="cp",
    program="cp",
    version="cp --version",
    init='mkdir "$STORE"',
    steps=[
        Step(PUBLISH, "cp -a", 'cp -a "$IN" "$STORE/web"', LOST),
        Step(AGAIN, "cp -a", 'cp -a "$AGAIN" "$STORE/$NEW"', LOST),
        Step(COPY_OUT, "cp -a", 'cp -a "$STORE/web" "$OUT"', LOST, '"$OUT"'),
    ],
)

RESTIC = Peer(
    name="restic",
    program="restic",
    version="restic version",
    init='restic init -r "$STORE" -q',
    env={"RESTIC_PASSWORD": "x"},
    steps=[
        Step(PUBLISH, "backup", 'cd "$IN"; restic backup -r "$STORE" -q .', LASTS),
        Step(AGAIN, "backup", 'cd "$AGAIN"; restic backup -r "$STORE" -q .', LASTS),
        Step(COPY_OUT, "restore", 'restic restore -r "$STORE" -q latest --target "$OUT"', LOST, '"$OUT"'),
        Step(VERIFY, "check --read-data", 'restic check -r "$STORE" -q --read-data', NOTHING_TO_LAST),
    ],
)

CACACHE = Peer(
    name="cacache",
    program="cacache-peer",
    version="grep '^cacache = ' benches/peers/cacache/Cargo.toml",
    init='mkdir "$STORE"',
    steps=[
        Step(PUBLISH, "put", 'cacache-peer put "$STORE" web "$IN"', LOST),
        Step(AGAIN, "put, with other keys", 'cacache-peer put "$STORE" "$NEW" "$AGAIN"', LOST),
        Step(COPY_OUT, "copy", 'cacache-peer get "$STORE" web "$OUT"', LOST, '"$OUT"'),
        Step(VERIFY, "read all", 'cacache-peer verify "$STORE"', NOTHING_TO_LAST),
    ],
)

# Nix works where its database says that the store is.
NIX_ENV = {
    "NIX_STORE_DIR": "{store}/store",
    "NIX_STATE_DIR": "{store}/var",
    "NIX_LOG_DIR": "{store}/log",
    "NIX_CONF_DIR": "{store}/conf",
    "NIX_REMOTE": "",
}
NIX_INIT = r"""
mkdir -p "$STORE/store" "$STORE/conf" "$STORE/var/gcroots"
printf 'build-users-group =\nsandbox = false\n' > "$STORE/conf/nix.conf"
nix-store --init
"""
NIX = Peer(
    name="Nix",
    program="nix-store",
    version="nix-store --version",
    init=NIX_INIT,
    env=NIX_ENV,
    steps=[
        Step(PUBLISH, "nix-store --add", 'nix-store --add "$IN" > "$STORE/added"', LOST),
        Step(AGAIN, "nix-store --add, by the same name", 'nix-store --add "$AGAIN"', LOST),
        Step(
            USE,
            "nix-store --realise --add-root",
            'nix-store --realise "$(cat "$STORE/added")" --add-root "$OUT"',
            LOST,
            '"$OUT"',
        ),
        Step(VERIFY, "--verify --check-contents", "nix-store --verify --check-contents", NOTHING_TO_LAST),
    ],
)

OSTREE_INIT = 'ostree --repo="$STORE" init --mode=bare-user-only'
# It syncs the objects and their directories, and renames the branch to its place afterwards: that may be lost.
OSTREE = Peer(
    name="OSTree",
    program="ostree",
    version="ostree --version",
    init=OSTREE_INIT,
    steps=[
        Step(PUBLISH, "commit", 'ostree --repo="$STORE" commit --branch=web --subject=web "$IN"', NAME_LOST),
        Step(
            AGAIN,
            "commit, to another branch",
            'ostree --repo="$STORE" commit --branch="$NEW" --subject=web "$AGAIN"',
            NAME_LOST,
        ),
        Step(USE, "checkout -H, hard links", 'ostree --repo="$STORE" checkout -U -H web "$OUT"', LOST, '"$OUT"'),
        Step(COPY_OUT, "checkout -C", 'ostree --repo="$STORE" checkout -U -C web "$OUT"', LOST, '"$OUT"'),
        Step(VERIFY, "fsck", 'ostree --repo="$STORE" fsck --quiet', NOTHING_TO_LAST),
    ],
)

CASYNC = Peer(
    name="casync",
    program="casync",
    version="casync --version",
    init='mkdir "$STORE"',
    steps=[
        Step(PUBLISH, "make", 'casync make --store="$STORE/a.castr" "$STORE/web.caidx" "$IN"', LOST),
        Step(AGAIN, "make", 'casync make --store="$STORE/a.castr" "$STORE/$NEW.caidx" "$AGAIN"', LOST),
        Step(
            COPY_OUT,
            "extract",
            'casync extract --store="$STORE/a.castr" "$STORE/web.caidx" "$OUT"',
            LOST,
            '"$OUT"',
        ),
    ],
)

BORG = Peer(
    name="borg",
    program="borg",
    version="borg --version",
    init='borg init -e none "$STORE"',
    env={"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"},
    steps=[
        Step(PUBLISH, "create", 'cd "$IN"; borg create "$STORE::web" .', LASTS),
        Step(AGAIN, "create", 'cd "$AGAIN"; borg create "$STORE::$NEW" .', LASTS),
        Step(
            COPY_OUT,
            "extract --sparse",
            'mkdir "$OUT"; cd "$OUT"; borg extract --sparse "$STORE::web"',
            LOST,
            '"$OUT"',
        ),
        Step(VERIFY, "check --verify-data", 'borg check --verify-data "$STORE"', NOTHING_TO_LAST),
    ],
)

# Nothing of the work goes on in the background, and nobody's name is needed.
GIT = "git -c gc.auto=0 -c user.name=peer -c user.email=peer@localhost"


def git_add(what, message, before=""):
    return f"""{before}
{GIT} --git-dir="$STORE" --work-tree="{what}" add -A
{GIT} --git-dir="$STORE" --work-tree="{what}" commit -q --allow-empty -m "{message}"
"""


GIT_INIT = 'git init -q --bare "$STORE"; git --git-dir="$STORE" config core.bare false'
GIT_PEER = Peer(
    name="git",
    program="git",
    version="git --version",
    init=GIT_INIT,
    steps=[
        # With core.fsync=all it syncs files, and still no directory: the names may be lost.
        Step(PUBLISH, "add, commit", git_add("$IN", "web"), LOST),
        # Another index: else it knows the files by their times, and reads nothing.
        Step(
            AGAIN,
            "add, commit",
            git_add("$AGAIN", "$NEW", 'export GIT_INDEX_FILE="$STORE/index-$NEW"'),
            LOST,
        ),
        Step(
            COPY_OUT,
            "checkout",
            f'mkdir "$OUT"; {GIT} --git-dir="$STORE" --work-tree="$OUT" checkout -f HEAD -- .',
            LOST,
            '"$OUT"',
        ),
        Step(VERIFY, "fsck --full", 'git --git-dir="$STORE" fsck --full', NOTHING_TO_LAST),
    ],
)

PEERS = [STORE, COPY, CACACHE, NIX, OSTREE, CASYNC, RESTIC, BORG, GIT_PEER]
