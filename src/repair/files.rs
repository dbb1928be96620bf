//! Artifacts and objects: replaced by intact copies.

use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};

use super::Repair;
use crate::error::Result;
use crate::format::{Content, SEALED_MODE};
use crate::fs::atomic::parent_of;
use crate::fs::read::{self, FileId, Metadata};
use crate::fs::seal::{holds, looks_sealed};
use crate::heal;
use crate::id::{Digest, RevisionId, TemplateId};
use crate::progress::Note;

impl Repair<'_> {
    /// Gives a revision its file again, if there is an intact copy anywhere.
    pub(super) fn mend(&mut self, template: &TemplateId, id: &RevisionId, content: &Content) -> Result<()> {
        let path = self.core.layout.artifact(template, id, &content.path);
        let (good, is_ours) = match self.copy_of(&content.blake3, Some(content.size), &path)? {
            Some(good) => (good, true),
            None => match self.copy_in_instances(&content.blake3, content.size)? {
                Some(good) => (good, false),
                None => return self.mend_from_outside(template, id, content, path),
            },
        };
        self.make_way(template, id, content)?;
        self.keep(&path, Some(template), Some(id))?;
        match is_ours {
            true => self.put(&good, &path)?,
            false => self.put_copy(&good, &path)?,
        }
        self.progress.note(Note::Healed { path: path.clone() });
        let from = self.below_root(&good);
        self.done(path, format!("replaced by the intact copy {from}"));
        Ok(())
    }

    /// Gives a file another inode: a link if it may share it, else a copy.
    pub(super) fn put(&mut self, good: &Utf8Path, path: &Utf8Path) -> Result<()> {
        let (core, staging) = (self.core, self.staging()?);
        let metadata = read::metadata(good)?;
        let parent = read::metadata(parent_of(path))?;
        core.disk.open_up(parent_of(path), &parent)?;
        let put = match read::can_share(&metadata) && looks_sealed(&metadata, metadata.len()) {
            true => heal::replace(core, good, path, &staging),
            false => heal::replace_by_copy(core, good, path, &staging),
        };
        core.disk.restore_mode(parent_of(path), &parent);
        Ok(put?)
    }

    /// Gives a file an inode of its own, with the bytes of somebody else's file.
    fn put_copy(&mut self, good: &Utf8Path, path: &Utf8Path) -> Result<()> {
        let (core, staging) = (self.core, self.staging()?);
        let parent = read::metadata(parent_of(path))?;
        core.disk.open_up(parent_of(path), &parent)?;
        let put = heal::replace_by_copy(core, good, path, &staging);
        core.disk.restore_mode(parent_of(path), &parent);
        Ok(put?)
    }

    /// Makes the directories in a revision that lead to a file; what took the place of one goes aside.
    pub(super) fn make_way(&mut self, template: &TemplateId, id: &RevisionId, content: &Content) -> Result<()> {
        let disk = &self.core.disk;
        let mut at: Utf8PathBuf = self.core.layout.revision(template, id);
        let below = content.path.as_path().parent().map(Utf8Path::components);
        for part in below.into_iter().flatten() {
            let parent = at.clone();
            at.push(part);
            match read::metadata_if_there(&at)? {
                Some(found) if found.is_dir() => continue,
                Some(_) => drop(self.set_aside(&at, Some(template), Some(id))?),
                None => {}
            }
            disk.mkdir(&at, 0o755)?;
            disk.fsync_dir(&parent)?;
        }
        Ok(())
    }

    /// Gives a file with the right bytes its mode and time again.
    pub(super) fn seal(&mut self, template: &TemplateId, id: &RevisionId, content: &Content) -> Result<()> {
        let path = self.core.layout.artifact(template, id, &content.path);
        let found = read::metadata(&path)?;
        if let Some(sealed) = self.open.get(&FileId::of(&found)).cloned() {
            self.put(&sealed, &path)?;
            self.done(path, "replaced by a sealed copy: somebody could still write to it");
            return Ok(());
        }
        // Another name of the inode may have been sealed before.
        if is_sealed(&found) {
            return Ok(());
        }
        let in_place = self.core.disk.seal_again(&path)?;
        // Whoever wrote to it before it was shut has been seen or not: its bytes tell.
        if !holds(&path, &content.blake3)? {
            return self.mend(template, id, content);
        }
        match in_place {
            true => self.done(path, "has its mode and modification time again"),
            false => self.seal_copy(template, id, &path, content)?,
        }
        Ok(())
    }

    /// Gives a file, and the object that it is, another inode, which nobody can write to.
    fn seal_copy(&mut self, template: &TemplateId, id: &RevisionId, path: &Utf8Path, content: &Content) -> Result<()> {
        let old = FileId::of(&read::metadata(path)?);
        let staging = self.staging()?;
        // Its old inode stays what it is for who writes to it, and may hold anything later: it has no name to keep.
        heal::replace_by_copy(self.core, path, path, &staging)?;
        if !holds(path, &content.blake3)? {
            return self.mend(template, id, content);
        }
        let object = self.core.layout.object(&content.blake3);
        if matches!(read::metadata_if_there(&object)?, Some(found) if FileId::of(&found) == old) {
            self.core.disk.replace_by_link(&staging, path, &object)?;
        }
        self.open.insert(old, path.to_owned());
        self.done(path, "replaced by a sealed copy: somebody could still write to it");
        Ok(())
    }

    /// Gives the name of an object its bytes again, or takes away what is not what it says.
    pub(super) fn object(&mut self, digest: &Digest) -> Result<()> {
        let path = self.core.layout.object(digest);
        if self.is_intact(&path, digest, None) {
            return Ok(()); // an inode that was mended under another name
        }
        let Some(good) = self.copy_of(digest, None, &path)? else {
            let moved = self.set_aside(&path, None, None)?;
            self.done(path, format!("moved to {moved}: nothing has its bytes"));
            return Ok(());
        };
        self.keep(&path, None, None)?;
        let staging = self.staging()?;
        match self.core.disk.replace_by_link(&staging, &good, &path) {
            Err(error) if read::exists(&path)? => {
                tracing::debug!(%error, "the object can't be a link to {good}");
                let moved = self.set_aside(&path, None, None)?;
                self.done(path, format!("moved to {moved}"));
            }
            Err(error) => return Err(error.into()),
            Ok(()) => {
                self.core.disk.fsync_dir(parent_of(&path))?;
                let from = self.below_root(&good);
                self.done(path, format!("replaced by the intact copy {from}"));
            }
        }
        Ok(())
    }
}

/// Whether nobody needs to seal the file again.
fn is_sealed(metadata: &Metadata) -> bool {
    looks_sealed(metadata, metadata.len()) && metadata.mode() & 0o7777 == SEALED_MODE && metadata.mtime_nsec() == 0
}
