//! Instances, read from the bare disk.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;

use super::world::{Broken, Digests, Files, list, read_json};
use camino::{Utf8Path, Utf8PathBuf};

/// Where acts make instances, beside the store.
pub fn vms(root: &Utf8Path) -> Utf8PathBuf {
    root.with_file_name("vms")
}

/// The digests of all instances that are visible, but for what depends on where they are.
///
/// Fails when one is not whole, or when the store has no note of it.
pub fn read(root: &Utf8Path, digests: &mut Digests) -> Result<BTreeMap<String, Files>, Broken> {
    let notes: Vec<String> = list(&root.join(".store/instances"))?
        .into_iter()
        .filter_map(|(_, link)| link.read_link_utf8().ok().map(Utf8PathBuf::into_string))
        .collect();
    let mut instances = BTreeMap::new();
    for (name, dir) in list(&vms(root))?.into_iter().filter(|(name, _)| !name.starts_with('.')) {
        if !notes.iter().any(|note| *note == format!("../../../vms/{name}")) {
            return Err(format!("the store has no note of the instance {name}"));
        }
        instances.insert(name, read_one(&dir, digests)?);
    }
    Ok(instances)
}

fn read_one(dir: &Utf8Path, digests: &mut Digests) -> Result<Files, Broken> {
    let record = read_json(&dir.join("instance.json"))?;
    let warm = record["start"] == "snapshot";
    read_json(&dir.join(if warm { "snapshot-load.json" } else { "fc.json" }))?;
    let mut files = Files::new();
    for file in record["files"].as_array().into_iter().flatten() {
        let name = file["path"].as_str().unwrap_or_default();
        let path = dir.join(name);
        if ["instance.json", "fc.json", "snapshot-load.json"].contains(&name) {
            continue;
        }
        let digest = digests.of(&path)?;
        if file["blake3"].as_str().is_some_and(|published| published != digest) {
            return Err(format!("{path} does not hold what was published"));
        }
        let mode = path.metadata().map_err(|error| format!("{path}: {error}"))?.mode() & 0o7777;
        if mode != if file["writable"] == true { 0o600 } else { 0o444 } {
            return Err(format!("{path} has the mode {mode:o}"));
        }
        files.insert(name.into(), digest);
    }
    let names = list(dir)?.len();
    match names >= 5 && (warm || files.contains_key(Utf8Path::new("vmlinux"))) {
        true => Ok(files),
        false => Err(format!("{dir} is visible and has {names} names")),
    }
}

/// Fails when there is half-done work beside the instances.
pub fn nothing_is_beside(root: &Utf8Path) -> Result<(), Broken> {
    match list(&vms(root))?.iter().find(|(name, _)| name.starts_with('.')) {
        Some((name, _)) => Err(format!("{name} is left beside the instances")),
        None => Ok(()),
    }
}
