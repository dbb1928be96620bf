//! What processes that died have left in a store, and whether anything of it is still there.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use camino::Utf8Path;
use template_store::Error;

use super::builds::{files, fill};
use super::world::{Broken, list};

/// Leaves a draft that nobody works in, with a file that became an object; half-written files; an object that nobody
/// has; the trash of a removal that went on after a long time; a mark and a note about revisions that are gone.
pub fn leave(root: &Utf8Path) -> Result<(), Error> {
    let private = root.join(".store");
    let draft = private.join("drafts/dead");
    fill(&draft, "two");
    intern(&private, &draft.join("rootfs.ext4"), true);
    fs::write(private.join("drafts/file-dead"), "{").expect("drafts/ takes files");
    let kernel = private.join("drafts/.copy-dead");
    fs::write(&kernel, &files("one")[0].1[1..]).expect("drafts/ takes files");
    intern(&private, &kernel, false);
    fill(&private.join("trash/dead/web@three"), "three");
    for (dir, name) in [("damaged", "web@gone.json"), ("leases/web@gone", "7-7.json")] {
        fs::create_dir_all(private.join(dir)).expect(".store/ takes directories");
        fs::write(private.join(dir).join(name), "{}").expect("they take files");
    }
    Ok(())
}

/// Makes a file an object, as a seal would, beside its name or in its stead.
fn intern(private: &Utf8Path, file: &Utf8Path, keep: bool) {
    let digest = blake3::hash(&fs::read(file).expect("it was written")).to_hex();
    let (shard, rest) = digest.split_at(2);
    let shard = private.join("objects").join(shard);
    fs::create_dir_all(&shard).expect("objects/ takes directories");
    // Another revision may have it already.
    if !shard.join(rest).exists() {
        fs::hard_link(file, shard.join(rest)).expect("a file takes names");
    }
    if !keep {
        fs::remove_file(file).expect("it is there");
    }
}

/// Fails when a collection has left something that nobody needs.
pub fn none_is_left(root: &Utf8Path) -> Result<(), Broken> {
    let private = root.join(".store");
    for dir in ["trash", "drafts", "leases", "damaged"] {
        if let Some((name, _)) = list(&private.join(dir))?.first() {
            return Err(format!("a collection leaves {dir}/{name}"));
        }
    }
    for (shard, dir) in list(&private.join("objects"))? {
        for (rest, object) in list(&dir)? {
            if object.metadata().is_ok_and(|found| found.nlink() == 1) {
                return Err(format!("a collection leaves the object {shard}{rest}, which nobody has"));
            }
        }
    }
    Ok(())
}
