"""The peers, each with the commands that do the same work as ours."""

from dataclasses import dataclass, field

from rows import LASTS, LOST, NOTHING_TO_LAST, Group

# The shell scripts find in their environment: the directory with the artifacts (IN), another one with the same
# contents (AGAIN), the store's directory, empty at first (STORE), a path that does not exist yet (OUT), and a name
# that nobody used yet (NEW).

PUBLISH, AGAIN, USE, COPY_OUT, VERIFY = "publish", "again", "use", "copy out", "verify"
GROUPS = {
    PUBLISH: Group("Publish", "The artifacts go into an empty store by copy."),
    AGAIN: Group("Publish the same contents again", "From another directory, under another name where there are names."),
    USE: Group("Use it once more", "What is in the store is to be used again. Nothing needs to be copied for that."),
    COPY_OUT: Group("Copy it out", "A copy that may be written to, as a VM needs one of its root file system."),
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

PEERS = [STORE, COPY, RESTIC]
