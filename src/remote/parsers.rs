//! What a remote sends, for those who try parsers with any bytes: see `crate::parsers`.

use super::documents::{KeyPointer, Lead, Listed, Manifest, SnapshotManifest, TemplatePointer};
use super::frames::{Decoder, FOOTER, first_frame, is_table, most_object_bytes, read_table, table_len};
use super::mvm::Sums;
use super::preamble::{RemoteFormat, with_check};
use crate::format::Extra;
use crate::id::Digest;

/// The largest file that [`frames`] unpacks.
const LARGEST_FILE: u32 = 64 * 1024 * 1024;

/// All documents of a remote, and the sums of mvm's registry, as those of `web@r`.
pub fn remote(bytes: &[u8]) {
    let (template, revision) = ("web".parse().expect("a name"), "r".parse().expect("a name"));
    let _ = RemoteFormat::check(bytes);
    let _ = Sums::from_json(bytes, &template, &revision);
    if let Ok(read) = Manifest::from_json(bytes, &template, &revision) {
        assert_eq!(Manifest::from_json(&read.to_json(), &template, &revision).as_ref(), Ok(&read));
        let sizes = read.files.iter().map(|file| file.content.size);
        assert!(sizes.clone().try_fold(0_u64, u64::checked_add).is_some());
        assert!(read.files.iter().all(|file| file.data_bytes() <= file.content.size));
    }
    if let Ok(read) = SnapshotManifest::from_json(bytes, &template, &revision) {
        assert_eq!(SnapshotManifest::from_json(&read.to_json(), &template, &revision).as_ref(), Ok(&read));
    }
    pointers(bytes);
    // Hardly ever do bytes have their check by chance.
    if let Some(bytes) = with_check(bytes) {
        pointers(&bytes);
    }
}

/// What is added to a pointer is in it once, and takes nothing from it.
fn pointers(bytes: &[u8]) {
    let (template, revision, manifest) =
        ("web".parse().expect("a name"), "of-parsers".parse().expect("a name"), Digest::of(b"a manifest"));
    if let Ok(read) = TemplatePointer::from_json(bytes, &template) {
        assert_eq!(TemplatePointer::from_json(&read.to_json(), &template).as_ref(), Ok(&read));
        let at = jiff::Timestamp::UNIX_EPOCH;
        let listed = Listed { revision, manifest, bytes: 1, pushed_at: at, snapshot: None, extra: Extra::new() };
        let with = read.with(&listed, true, at, "write").unwrap_or_else(|| read.clone());
        assert!(read.revisions.iter().all(|known| with.find(&known.revision).is_some()));
        assert_eq!(with.current.as_ref(), Some(&listed.revision));
        assert_eq!(with.with(&listed, true, at, "again"), None);
    }
    let key = Digest::of(b"").to_hex().parse().expect("a key");
    if let Ok(read) = KeyPointer::from_json(bytes, &key) {
        assert_eq!(KeyPointer::from_json(&read.to_json(), &key).as_ref(), Ok(&read));
        let revision = "of-parsers".parse().expect("a name");
        let lead = Lead { template, revision, manifest, source_hash: None, extra: Extra::new() };
        let with = read.with(&lead, "write").unwrap_or_else(|| read.clone());
        assert!(with.revisions.len() >= read.revisions.len());
        assert_eq!(with.with(&lead, "again"), None);
    }
}

/// An object of a file; the first four bytes say how large the file is.
pub fn frames(bytes: &[u8]) {
    let Some((size, object)) = bytes.split_first_chunk() else { return };
    let size = u64::from(u32::from_le_bytes(*size) % LARGEST_FILE);
    let walked = walk(object, size);
    if let Ok(file) = unpack(object, size) {
        assert_eq!(file.len() as u64, size);
        assert!(object.len() as u64 <= most_object_bytes(size) || size == 0);
        // Its table may make one of several frames.
        assert!(walked.is_none_or(|walked| walked == file));
    }
}

/// The file as who gets no parts of the object reads it, if the frames tell all of it.
fn walk(object: &[u8], size: u64) -> Option<Vec<u8>> {
    let (mut file, mut at) = (Vec::new(), 0);
    let mut decoder = Decoder::new().expect("a decoder");
    while (file.len() as u64) < size && !is_table(&object[at..]) {
        let frame = first_frame(&object[at..], at as u64, file.len() as u64).ok()??;
        let mut part = vec![0; frame.part_len as usize];
        decoder.part(&object[at..at + frame.len as usize], &mut part).ok()?;
        at += frame.len as usize;
        file.extend(part);
    }
    (file.len() as u64 == size).then_some(file)
}

/// The file of `size` bytes of which `object` has the frames.
pub(super) fn unpack(object: &[u8], size: u64) -> Result<Vec<u8>, String> {
    let footer = &object[object.len().saturating_sub(FOOTER as usize)..];
    let table = table_len(footer, size)?;
    let start = (object.len() as u64).checked_sub(table).ok_or("it is too short")?;
    let mut decoder = Decoder::new().expect("a decoder");
    let mut bytes = Vec::new();
    for frame in read_table(&object[start as usize..], object.len() as u64, size)? {
        let packed = &object[frame.at as usize..(frame.at + u64::from(frame.len)) as usize];
        let mut part = vec![0; frame.part_len as usize];
        decoder.part(packed, &mut part)?;
        bytes.extend(part);
    }
    Ok(bytes)
}

/// Bytes of each kind that are in order.
#[cfg(test)]
pub(crate) fn examples() -> Vec<Vec<u8>> {
    let (digest, at) = (Digest::of(b"").to_hex(), "2026-01-01T00:00:00Z");
    let template = r#"{"template_id":"web","flake_ref":".","profile":"minimal","role":"worker","vcpus":1,"mem_mib":1,"data_disk_mib":0,"created_at":"","updated_at":""}"#;
    let files = format!(
        r#"{{"path":"rootfs.ext4","size":70000,"blake3":"{digest}","holes":[[0,4096],[65536,4096]]}},{{"path":"vmlinux","size":1,"blake3":"{digest}"}}"#
    );
    let list = files.replace(r#","holes":[[0,4096],[65536,4096]]"#, "");
    let revision = format!(
        r#"{{"schema_version":1,"revision_hash":"r","flake_ref":".","flake_lock_hash":"l","artifact_paths":{{"vmlinux":"vmlinux","rootfs":"rootfs.ext4","fc_base_config":"vmlinux"}},"built_at":"","profile":"minimal","role":"worker","vcpus":1,"mem_mib":128,"data_disk_mib":0,"snapshot":null,"contents":[{list}]}}"#
    );
    let parts = format!(
        r#"{{"path":"mem.bin","size":1,"blake3":"{digest}"}},{{"path":"vmstate.bin","size":1,"blake3":"{digest}"}}"#
    );
    let snapshot = format!(
        r#"{{"schema_version":1,"vmm":"firecracker","created_at":"t","vmstate_size_bytes":1,"mem_size_bytes":1,"boot_args":"","vcpus":1,"mem_mib":1,"contents":[{parts}],"drives":[]}}"#
    );
    let documents = [
        format!(r#"{{"version":1,"template":{template},"revision":{revision},"files":[{files}],"later":1}}"#),
        format!(r#"{{"version":1,"template":"web","revision":"r","snapshot":{snapshot},"files":[{parts}]}}"#),
        format!(
            r#"{{"version":1,"features":[],"template":"web","current":"r","revisions":[{{"revision":"r","manifest":"{digest}","bytes":7,"pushed_at":"{at}"}}],"history":[{{"revision":"r","at":"{at}"}}],"write":"w"}}"#
        ),
        format!(
            r#"{{"version":1,"key":"{digest}","revisions":[{{"template":"web","revision":"r","manifest":"{digest}"}}],"write":"w"}}"#
        ),
        format!(r#"{{"schema_version":1,"template_id":"web","revision_hash":"r","files":{{"vmlinux":"{digest}"}}}}"#),
        r#"{"version":1,"what":"a remote"}"#.to_owned(),
    ];
    let mut object = 300_000_u32.to_le_bytes().to_vec();
    object.extend(packed(&[7; 300_000], 100_000));
    documents.into_iter().map(String::into_bytes).chain([object]).collect()
}

/// The object of a file, in frames of so many bytes.
#[cfg(test)]
pub(super) fn packed(file: &[u8], frame: usize) -> Vec<u8> {
    let mut encoder = super::frames::Encoder::new().expect("an encoder");
    let (mut table, mut object) = (super::frames::TableWriter::default(), Vec::new());
    for part in file.chunks(frame) {
        let frame = encoder.frame(part).expect("a frame");
        table.add(frame.len(), part.len());
        object.extend(frame);
    }
    object.extend(table.finish());
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_are_in_order() {
        let examples = examples();
        let (template, revision) = ("web".parse().unwrap(), "r".parse().unwrap());
        Manifest::from_json(&examples[0], &template, &revision).unwrap();
        SnapshotManifest::from_json(&examples[1], &template, &revision).unwrap();
        TemplatePointer::from_json(&with_check(&examples[2]).unwrap(), &template).unwrap();
        KeyPointer::from_json(&with_check(&examples[3]).unwrap(), &Digest::of(b"").to_hex().parse().unwrap()).unwrap();
        Sums::from_json(&examples[4], &template, &revision).unwrap();
        RemoteFormat::check(&examples[5]).unwrap();
        assert_eq!(unpack(&examples[6][4..], 300_000).unwrap(), [7; 300_000]);
        assert_eq!(walk(&examples[6][4..], 300_000).unwrap(), [7; 300_000]);
    }
}
