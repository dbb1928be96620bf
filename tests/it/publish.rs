//! Publishing: what it makes of a draft, what it refuses, and what becomes of `current`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;

use camino::Utf8Path;
use template_store::{
    Activate, ArtifactNames, ArtifactPath, Build, BuildOptions, Draft, ErrorKind, Expect, ImportOptions, Known, Layout,
    Note, Outcome, PublishOptions, Published, Result, RevisionId, SealOptions, Store,
};

use crate::support::{
    ARTIFACTS, Heard, Place, assert_clean, assert_error, assert_right, build, bytes, draft, draft_with, flip, fresh,
    fresh_quick, id, image, inode, inputs, listing, names,
};

/// Publishes a directory, which stays.
pub fn import(store: &Store, template: &str, dir: &Utf8Path, options: &ImportOptions) -> Result<Published> {
    store.publish_dir_with(&id(template), dir, options, &mut ())
}

/// To publish under this id.
pub fn called(revision: &str) -> ImportOptions {
    ImportOptions::default().seal(SealOptions::default().revision(id::<RevisionId>(revision)))
}

fn expecting(expect: Expect) -> ImportOptions {
    ImportOptions::default().publish(PublishOptions::default().expect(expect))
}

/// Cuts a file short, whatever its mode.
fn truncate(path: &Utf8Path, len: u64) {
    let bytes = fs::read(path).unwrap();
    fs::remove_file(path).unwrap();
    fs::write(path, &bytes[..len as usize]).unwrap();
}

#[test]
fn a_published_revision_is_right_and_current_and_lies_where_the_design_says() {
    let (place, store) = fresh();
    let revision = build(&store, "web", &inputs("lock"), "one");
    assert_right(&revision);
    let files: Vec<_> = revision.contents().iter().map(|content| content.path.as_str()).collect();
    assert_eq!(files, ARTIFACTS, "the record lists each file, in order");
    assert_eq!(revision.initrd(), None);
    assert_eq!(fs::read(revision.kernel()).unwrap(), bytes("one: kernel", 128 << 10));
    assert!(revision.record().published_at.is_some() && revision.record().build_seconds.is_some());
    assert_eq!(store.current(&id("web")).unwrap().id(), revision.id());
    assert_clean(store.layout());

    let layout = Layout::new(place.root());
    let (web, link) = (id("web"), |path| fs::read_link(path).unwrap().into_os_string().into_string().unwrap());
    assert_eq!(names(place.root()), [".store", "templates"]);
    let inside = ["activations.jsonl", "artifacts", "current", "revisions", "template.json"];
    assert_eq!(names(layout.template(&web)), inside);
    assert_eq!(names(revision.path()), ["fc-base.json", "revision.json", "rootfs.ext4", "vmlinux"]);
    assert_eq!(link(layout.current(&web)), format!("revisions/{}", revision.id()));
    assert_eq!(link(layout.alias(&web)), "artifacts");
    assert_eq!(fs::canonicalize(layout.current(&web)).unwrap(), revision.path());
    for content in revision.contents().iter().filter(|content| content.size >= 64 << 10) {
        let object = fs::metadata(layout.object(&content.blake3)).unwrap();
        assert_eq!((object.ino(), object.nlink()), (inode(revision.artifact(&content.path)), 2));
    }
    assert!(layout.key(&inputs("lock").key()).is_file() && layout.format_json().is_file());
}

#[test]
fn the_same_contents_again_change_nothing() {
    let (place, store) = fresh();
    let revision = build(&store, "web", &inputs("lock"), "one");
    let before = listing(store.layout().root());

    let published = import(&store, "web", &place.image("files", "one"), &ImportOptions::default()).unwrap();
    assert_eq!((published.outcome, published.revision.id()), (Outcome::Unchanged, revision.id()));
    assert_eq!(published.shared_bytes, 384 << 10, "all large files were in the store already");
    assert_eq!(listing(store.layout().root()), before, "after files that were built elsewhere");

    let again = BuildOptions::default().known(Known::BuildAgain);
    let draft = draft_with(&store, "web", &inputs("lock"), &again);
    image(draft.path(), "one");
    let published = draft.seal().unwrap().publish_with(&PublishOptions::default(), &mut ()).unwrap();
    assert_eq!((published.outcome, published.revision.id()), (Outcome::Unchanged, revision.id()));
    assert_eq!(published.differs, None, "a build that came out the same differs in nothing");
    assert_eq!(listing(store.layout().root()), before, "after a new build");
    assert_eq!(store.history(&id("web")).unwrap().len(), 1, "the log has no new line");
}

#[test]
fn other_contents_under_the_same_id_are_refused_and_the_first_file_that_differs_is_named() {
    let (place, store) = fresh();
    let files = place.image("files", "one");
    import(&store, "web", &files, &called("r1")).unwrap();
    let before = listing(store.layout().root());

    let refused = |name: &str| {
        let result = import(&store, "web", &files, &called("r1"));
        assert_error(result, ErrorKind::Refused, &["r1", "web", &format!("{name} differs")]);
        assert_eq!(listing(store.layout().root()), before, "nothing is left behind");
    };
    fs::write(files.join("zzz"), "one file more").unwrap();
    refused("zzz");
    fs::write(files.join("vmlinux"), "another kernel").unwrap();
    refused("vmlinux");
    fs::write(files.join("rootfs.ext4"), bytes("other", 256 << 10)).unwrap();
    refused("rootfs.ext4");
    fs::write(files.join("a"), "before all others").unwrap();
    refused("a");
    assert_right(&store.current(&id("web")).unwrap());
}

#[test]
fn a_revision_that_is_not_activated_leaves_current_alone() {
    let (place, store) = fresh();
    let quietly = ImportOptions::default().publish(PublishOptions::default().activate(Activate::No));
    let first = import(&store, "web", &place.image("a", "one"), &quietly).unwrap().revision;
    assert_eq!(store.current_id(&id("web")).unwrap(), None, "nothing is current yet");
    assert_right(&store.revision(&id("web"), first.id()).unwrap());

    let second = build(&store, "web", &inputs("lock"), "two");
    let third = import(&store, "web", &place.image("c", "three"), &quietly).unwrap().revision;
    assert_eq!(store.current_id(&id("web")).unwrap().as_ref(), Some(second.id()));
    assert_eq!(store.history(&id("web")).unwrap().len(), 1, "only one was ever current");
    assert_eq!(store.revisions(&id("web")).unwrap().len(), 3);
    assert_right(&third);
}

#[test]
fn an_expectation_that_is_not_met_changes_nothing() {
    let (place, store) = fresh();
    let r0 = || Expect::Current(id("r0"));
    let result = import(&store, "web", &place.image("one", "one"), &expecting(r0()));
    assert_error(result, ErrorKind::Refused, &["expected to be r0", "but is not set", "nothing was changed"]);
    assert!(store.templates().unwrap().is_empty(), "no template was made");

    let absent = called("r1").publish(PublishOptions::default().expect(Expect::Absent));
    let current = import(&store, "web", &place.join("one"), &absent).expect("nothing is current yet").revision;
    let before = listing(store.layout().root());
    let files = place.image("two", "two");
    for (expect, words) in
        [(Expect::Absent, ["expected to be not set", "but is r1"]), (r0(), ["expected to be r0", "but is r1"])]
    {
        assert_error(import(&store, "web", &files, &expecting(expect.clone())), ErrorKind::Refused, &words);
        assert_eq!(listing(store.layout().root()), before, "a publication that expected {expect:?}");
        assert_error(store.activate(&id("web"), current.id(), expect.clone()), ErrorKind::Refused, &words);
        assert_eq!(listing(store.layout().root()), before, "an activation that expected {expect:?}");
    }
}

#[test]
fn of_many_that_expect_the_same_current_one_succeeds() {
    let (place, store) = fresh_quick();
    let base = build(&store, "web", &inputs("lock"), "base");
    let publish = |label: String| {
        let files = place.image(&label, &label);
        import(&store, "web", &files, &expecting(Expect::Current(base.id().clone())))
    };
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || publish(format!("racer {n}")))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let won: Vec<_> = results.iter().flatten().collect();
    assert_eq!(won.len(), 1, "{results:?}");
    assert_eq!(store.current_id(&id("web")).unwrap().as_ref(), Some(won[0].revision.id()));
    assert_eq!(store.revisions(&id("web")).unwrap().len(), 2, "the others published nothing");
}

#[test]
fn the_names_of_the_artifacts_can_be_given() {
    let (_place, store) = fresh();
    let draft = draft(&store, "web", &inputs("lock"));
    for name in ["boot/bzImage", "disk.img", "firecracker.json", "boot/initramfs"] {
        fs::create_dir_all(draft.path().join("boot")).unwrap();
        fs::write(draft.path().join(name), bytes(name, 70_000)).unwrap();
    }
    let names = ArtifactNames::default()
        .vmlinux(id::<ArtifactPath>("boot/bzImage"))
        .rootfs(id::<ArtifactPath>("disk.img"))
        .fc_base_config(id::<ArtifactPath>("firecracker.json"))
        .initrd(id::<ArtifactPath>("boot/initramfs"));
    let sealed = draft.seal_with(&SealOptions::default().names(names), &mut ()).unwrap();
    let revision = sealed.publish().unwrap();
    assert_right(&revision);
    for (path, name) in [
        (revision.kernel(), "boot/bzImage"),
        (revision.rootfs(), "disk.img"),
        (revision.fc_base_config(), "firecracker.json"),
        (revision.initrd().expect("it is there"), "boot/initramfs"),
    ] {
        assert_eq!(path, revision.path().join(name));
        assert_eq!(fs::read(path).unwrap(), bytes(name, 70_000));
    }
    let sizes = revision.build().artifact_paths.sizes.clone().unwrap();
    assert_eq!((sizes.vmlinux_bytes, sizes.rootfs_bytes, sizes.initrd_bytes), (70_000, 70_000, Some(70_000)));
}

#[test]
fn a_draft_that_is_not_published_leaves_nothing() {
    let (_place, store) = fresh();
    type End = fn(Draft);
    let ends: [(&str, End); 4] = [
        ("dropped", drop),
        ("sealed and dropped", |draft| drop(draft.seal().unwrap())),
        ("abandoned", |draft| draft.abandon().unwrap()),
        ("failed", |draft| draft.fail("no luck").unwrap()),
    ];
    for (how, end) in ends {
        let draft = draft(&store, "web", &inputs("lock"));
        image(draft.path(), "one");
        end(draft);
        assert_clean(store.layout());
        assert!(store.templates().unwrap().is_empty(), "no template was made for what was {how}");
    }
    assert_right(&build(&store, "web", &inputs("lock"), "one"));
}

/// A revision whose record is cut to half, and what publishing makes of it.
fn with_a_truncated_record(heal: impl FnOnce(&Place, &Store, &mut Heard) -> RevisionId) {
    let (place, store) = fresh();
    let revision = build(&store, "web", &inputs("lock"), "one");
    let (web, path) = (id("web"), revision.path().join("revision.json"));
    let (kernel, directory) = (inode(revision.kernel()), inode(revision.path()));
    truncate(&path, 100);
    assert_error(store.current(&web), ErrorKind::Damaged, &["revision.json"]);

    let mut heard = Heard::default();
    let healed = heal(&place, &store, &mut heard);
    assert_eq!(healed, *revision.id());
    assert!(heard.notes.contains(&Note::Healed { path }), "it says so: {:?}", heard.notes);
    let current = store.current(&web).unwrap();
    assert_eq!((current.id(), inode(current.kernel())), (revision.id(), kernel), "its files stayed where they are");
    assert_eq!(inode(current.path()), directory, "and so did its directory");
    assert_eq!(current.contents(), revision.contents());
    assert_right(&current);
    assert_clean(store.layout());
}

#[test]
fn a_truncated_record_is_healed_by_publishing_the_same_files() {
    with_a_truncated_record(|place, store, heard| {
        let files = place.image("files", "one");
        let published = store.publish_dir_with(&id("web"), &files, &ImportOptions::default(), heard).unwrap();
        published.revision.id().clone()
    });
}

#[test]
fn a_truncated_record_is_healed_by_building_the_same_again() {
    with_a_truncated_record(|_, store, heard| {
        let draft = match store.build_with(&id("web"), &inputs("lock"), &BuildOptions::default(), heard).unwrap() {
            Build::Draft(draft) => draft,
            reused => panic!("what has no record is not offered: {reused:?}"),
        };
        assert!(matches!(heard.notes[..], [Note::SourceDamaged { .. }, ..]), "it says why: {:?}", heard.notes);
        image(draft.path(), "one");
        let published = draft.seal().unwrap().publish_with(&PublishOptions::default(), heard).unwrap();
        published.revision.id().clone()
    });
}

#[test]
fn a_truncated_record_under_an_id_that_says_nothing_of_its_contents_stays_damaged() {
    let (place, store) = fresh();
    let files = place.image("files", "one");
    let revision = import(&store, "web", &files, &called("r1")).unwrap().revision;
    truncate(&revision.path().join("revision.json"), 100);
    let before = listing(store.layout().root());
    assert_error(import(&store, "web", &files, &called("r1")), ErrorKind::Damaged, &["r1/revision.json"]);
    assert_eq!(listing(store.layout().root()), before, "nothing is guessed");
}

#[test]
fn files_that_changed_or_went_are_healed_by_publishing_the_same() {
    let (place, store) = fresh();
    let files = place.image("files", "one");
    let revision = import(&store, "web", &files, &called("r1")).unwrap().revision;
    let log = fs::read(store.layout().activations(&id("web"))).unwrap();
    type Damage = fn(&Utf8Path);
    let damages: [(&str, Damage); 6] = [
        ("vmlinux", |path| flip(path, 70_000, false)),
        ("vmlinux", |path| flip(path, 70_000, true)),
        ("fc-base.json", |path| flip(path, 3, true)),
        ("rootfs.ext4", |path| fs::remove_file(path).unwrap()),
        ("rootfs.ext4", |path| truncate(path, 10)),
        ("fc-base.json", |path| fs::remove_file(path).unwrap()),
    ];
    for (n, (name, damage)) in damages.iter().enumerate() {
        let path = revision.path().join(name);
        damage(&path);
        let mut heard = Heard::default();
        let published = store.publish_dir_with(&id("web"), &files, &called("r1"), &mut heard).unwrap();
        assert_eq!(published.outcome, Outcome::Unchanged);
        assert!(heard.notes.contains(&Note::Healed { path }), "damage {n} to {name}: {:?}", heard.notes);
        assert_right(&revision);
    }
    assert_eq!(fs::read(store.layout().activations(&id("web"))).unwrap(), log, "it was current all the time");
    assert_clean(store.layout());
}

#[test]
fn a_store_does_not_publish_itself() {
    let (place, store) = fresh();
    let revision = build(&store, "web", &inputs("lock"), "one");
    let before = listing(store.layout().root());
    for dir in [revision.path(), store.layout().root().to_owned(), place.path().to_owned()] {
        let result = import(&store, "other", &dir, &ImportOptions::default());
        assert_error(result, ErrorKind::Failed, &["overlaps with the store"]);
        assert_eq!(listing(store.layout().root()), before);
    }
    assert_error(store.publish_dir(&id("web"), place.join("none")), ErrorKind::Failed, &["none"]);
    fs::write(place.join("file"), "").unwrap();
    assert_error(store.publish_dir(&id("web"), place.join("file")), ErrorKind::Failed, &["file", "not a directory"]);
}
