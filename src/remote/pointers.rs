//! Pointers: read, and changed only while they are what they were.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use object_store::path::Path;

use super::Move;
use super::backend::{Backend, Found, Version};
use super::documents::{KeyPointer, Lead, Listed, TemplatePointer};
use super::error::RemoteError;
use super::preamble::check_cost;
use super::push::{SendFiles, known_manifest};
use super::swap::Swap;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::Content;
use crate::fs::lock::BackOff;
use crate::fs::read;
use crate::id::{CacheKey, RevisionId, TemplateId};

/// What becomes of a template's pointer that is damaged where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfDamaged {
    /// Nothing: it is an error.
    Refuse,
    /// It counts for an empty one, and is replaced.
    Replace,
}

impl From<SendFiles> for IfDamaged {
    fn from(which: SendFiles) -> IfDamaged {
        match which {
            SendFiles::Missing => IfDamaged::Refuse,
            SendFiles::All => IfDamaged::Replace,
        }
    }
}

/// The pointer of a template, and what it is; an empty one if there is none.
pub(super) async fn template_pointer(
    backend: &Backend,
    id: &TemplateId,
    if_damaged: IfDamaged,
) -> Result<(TemplatePointer, Version)> {
    let path = backend.names.template(id);
    match backend.look(&path, |bytes| TemplatePointer::from_json(bytes, id)).await? {
        Found::Sound(pointer, version) => Ok((pointer, version)),
        Found::Absent => Ok((TemplatePointer::new(id.clone()), Version::Absent)),
        Found::Damaged(_, version) if if_damaged == IfDamaged::Replace => {
            Ok((TemplatePointer::new(id.clone()), version))
        }
        Found::Damaged(error, _) => Err(error),
    }
}

/// The pointer of a key, and what it is; an empty one if there is none, or if it is damaged: what it led to is found again
/// when it is built again.
pub(super) async fn key_pointer(backend: &Backend, key: &CacheKey) -> Result<(KeyPointer, Version)> {
    match backend.look(&backend.names.key(key), |bytes| KeyPointer::from_json(bytes, key)).await? {
        Found::Sound(pointer, version) => Ok((pointer, version)),
        Found::Absent => Ok((KeyPointer::new(*key), Version::Absent)),
        Found::Damaged(error, version) => {
            tracing::warn!(%error, "it counts for nothing");
            Ok((KeyPointer::new(*key), version))
        }
    }
}

/// The pointer of a template, about to be changed.
pub(super) struct Pointer<'a> {
    pub core: &'a Core,
    pub backend: &'a Backend,
    pub template: &'a TemplateId,
    pub if_damaged: IfDamaged,
}

impl Pointer<'_> {
    pub fn read(&self) -> Result<(TemplatePointer, Version)> {
        self.backend.wait(template_pointer(self.backend, self.template, self.if_damaged))
    }

    /// Whether a revision becomes current; an error where it was to, in the place of one that the caller does not know of.
    pub fn may_move(&self, pointer: &TemplatePointer, revision: &RevisionId, moves: &Move) -> Result<bool> {
        let current = pointer.current.as_ref();
        let expected = match moves {
            Move::No => return Ok(false),
            _ if current == Some(revision) => return Ok(true),
            Move::Forward | Move::ForwardOrStay => match current {
                None => return Ok(true),
                Some(theirs) if read::exists(&self.core.layout.revision(&pointer.template, theirs))? => {
                    return Ok(true);
                }
                Some(_) if *moves == Move::ForwardOrStay => return Ok(false),
                Some(_) => "a revision that this store has".to_owned(),
            },
            Move::FromAbsent if current.is_none() => return Ok(true),
            Move::From(expected) if current == Some(expected) => return Ok(true),
            Move::FromAbsent => "none".to_owned(),
            Move::From(expected) => expected.to_string(),
        };
        Err(self.moved(expected, current))
    }

    fn moved(&self, expected: String, found: Option<&RevisionId>) -> Error {
        let found = found.map_or_else(|| "none".to_owned(), RevisionId::to_string);
        let (remote, template) = (self.backend.url.clone(), self.template.clone());
        RemoteError::Moved { remote, template, expected, found }.into()
    }

    /// Adds a revision, and moves `current` there if it is to.
    pub fn add(
        &self,
        (mut pointer, mut version): (TemplatePointer, Version),
        (listed, contents): (&Listed, &[Content]),
        moves: &Move,
    ) -> Result<(TemplatePointer, bool)> {
        let path = self.backend.names.template(self.template);
        let (seen, now) = (pointer.current.clone(), self.core.now());
        let mut activate = self.may_move(&pointer, &listed.revision, moves)?;
        let mut rounds = Rounds::new(self.backend, &path);
        loop {
            let Some(new) = pointer.with(listed, activate, now, &unique()) else { return Ok((pointer, false)) };
            let bytes = fitting(self.template.as_str(), new.to_json())?;
            match self.backend.wait(self.backend.swap(&path, &version, &bytes))? {
                Swap::Done => return Ok((new, true)),
                Swap::Lost => rounds.next()?,
            }
            // Somebody else changed it. That is no matter as long as what was current still is.
            (pointer, version) = self.read()?;
            // Our answer may have been lost, and somebody have gone on from there.
            if pointer.history.iter().any(|moved| moved.revision == listed.revision && moved.at == now) {
                return Ok((pointer, true));
            }
            known_manifest(self.backend, &pointer, &listed.revision, contents)?;
            let is_there = pointer.current.as_ref() == Some(&listed.revision);
            if activate && pointer.current != seen && !is_there {
                if *moves == Move::ForwardOrStay {
                    activate = false;
                    continue;
                }
                let expected = seen.as_ref().map_or_else(|| "none".to_owned(), RevisionId::to_string);
                return Err(self.moved(expected, pointer.current.as_ref()));
            }
        }
    }
}

/// Adds a revision to those that a key leads to, behind those that are there.
pub(super) fn offer_key(backend: &Backend, key: CacheKey, lead: &Lead) -> Result<()> {
    change_key(backend, key, |pointer| Ok::<_, Error>(pointer.with(lead, &unique()))).map(drop)
}

/// Changes the pointer of a key until nobody else changed it meanwhile, or there is nothing to change; whether it was.
pub(super) fn change_key(
    backend: &Backend,
    key: CacheKey,
    mut change: impl FnMut(&KeyPointer) -> Result<Option<KeyPointer>>,
) -> Result<bool> {
    let path = backend.names.key(&key);
    let mut rounds = Rounds::new(backend, &path);
    loop {
        let (pointer, version) = backend.wait(key_pointer(backend, &key))?;
        let Some(new) = change(&pointer)? else { return Ok(false) };
        let bytes = fitting(&key.to_hex(), new.to_json())?;
        match backend.wait(backend.swap(&path, &version, &bytes))? {
            Swap::Done => return Ok(true),
            Swap::Lost => rounds.next()?,
        }
    }
}

/// Refuses a pointer that nobody would read any more.
fn fitting(what: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
    match check_cost("pointer", &bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => {
            let problem =
                format!("its pointer at the remote is full ({error}); push to another template, or elsewhere");
            Err(RemoteError::CannotPush { what: what.to_owned(), problem }.into())
        }
    }
}

/// The rounds of those who change one pointer at once; a server with which nobody ever wins must not keep us for ever.
struct Rounds<'a> {
    backend: &'a Backend,
    path: &'a Path,
    pauses: BackOff,
}

impl Rounds<'_> {
    fn new<'a>(backend: &'a Backend, path: &'a Path) -> Rounds<'a> {
        Rounds { backend, path, pauses: BackOff::new(Some(Duration::from_secs(60))) }
    }

    /// Waits a little before the next.
    fn next(&mut self) -> Result<()> {
        if self.pauses.pause() {
            return Ok(());
        }
        let (remote, object) = (self.backend.url.clone(), self.path.to_string());
        let problem = "it was another one each time that it was to be replaced, for a minute".to_owned();
        Err(RemoteError::Failed { remote, doing: "replace", object, problem }.into())
    }
}

/// A text that no other write has.
pub(super) fn unique() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}
