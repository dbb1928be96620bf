//! What a remote holds, to be changed by hand.

use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use serde_json::Value;
use template_store::{Digest, ErrorKind, Store};

use super::{host, in_memory, publish, pull, push};
use crate::support::{Place, assert_clean, assert_error, listing};

/// The pointer of the template that the tests use.
pub const POINTER: &str = "images/templates/web.json";

/// What a remote holds, to be changed.
pub struct Held {
    pub memory: Arc<InMemory>,
}

impl Held {
    pub fn pushed(place: &Place) -> Held {
        let a = host(place, "a");
        let memory = Arc::new(InMemory::new());
        push(&a, &in_memory(memory.clone()), &publish(place, &a, "one")).unwrap();
        Held { memory }
    }

    pub fn wait<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    pub fn get(&self, path: &str) -> Bytes {
        Held::wait(async { self.memory.get(&Path::from(path)).await.unwrap().bytes().await.unwrap() })
    }

    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        Held::wait(self.memory.put(&Path::from(path), bytes.into())).unwrap();
    }

    pub fn pointer(&self) -> Value {
        serde_json::from_slice(&self.get(POINTER)).unwrap()
    }

    pub fn manifest_name(digest: &str) -> String {
        format!("images/manifests/{}/{}.json", &digest[..2], &digest[2..])
    }

    pub fn manifest(&self) -> Value {
        let pointer = self.pointer();
        serde_json::from_slice(&self.get(&Held::manifest_name(pointer["revisions"][0]["manifest"].as_str().unwrap())))
            .unwrap()
    }

    /// Lets the pointer lead to another manifest, whose name is right.
    pub fn publish(&self, manifest: &[u8]) {
        let digest = Digest::of(manifest).to_hex();
        self.put(&Held::manifest_name(&digest), manifest.to_vec());
        let mut pointer = self.pointer();
        pointer["revisions"][0]["manifest"] = digest.into();
        self.put(POINTER, sealed(&pointer));
    }

    pub fn blob_of(&self, name: &str) -> String {
        let manifest = self.manifest();
        let files = manifest["files"].as_array().unwrap();
        let file = files.iter().find(|file| file["path"] == name).unwrap();
        let digest = file["blake3"].as_str().unwrap();
        format!("images/blobs/{}/{}.zst", &digest[..2], &digest[2..])
    }

    /// Pulls to a store of its own, which has nothing afterwards, nor has what is around it.
    #[track_caller]
    pub fn refused(&self, place: &Place, kind: ErrorKind, words: &[&str]) {
        let b = Store::open_or_init(place.join("deep/down/b")).unwrap();
        let around = around(place);
        assert_error(pull(&b, &in_memory(self.memory.clone()), None), kind, words);
        assert!(b.templates().unwrap().is_empty());
        assert_eq!(around, self::around(place));
        b.gc(&template_store::gc::Policy::default(), &mut ()).unwrap();
        assert_clean(b.layout());
    }
}

/// A pointer as it lies in a remote: with its check.
pub fn sealed(pointer: &Value) -> Vec<u8> {
    let mut pointer = pointer.clone();
    pointer.as_object_mut().unwrap().remove("check");
    let text = format!("{},\"check\":\"", pointer.to_string().strip_suffix('}').unwrap());
    let check = Digest::of(text.as_bytes()).to_hex();
    format!("{text}{check}\"}}").into_bytes()
}

/// Everything that is not below `b`.
fn around(place: &Place) -> Vec<String> {
    listing(place.path()).into_iter().filter(|line| !line.contains("/deep/down/b")).collect()
}

/// A manifest with its first file, and the same in its record, changed.
pub fn with_file(manifest: &Value, change: impl Fn(&mut Value)) -> Vec<u8> {
    let mut manifest = manifest.clone();
    change(&mut manifest["files"][0]);
    let mut file = manifest["files"][0].clone();
    file.as_object_mut().unwrap().remove("holes");
    manifest["revision"]["contents"][0] = file;
    manifest.to_string().into_bytes()
}
