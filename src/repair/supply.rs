//! Files that nobody here has: fetched from outside the store, most of them before the store is held.

use std::collections::HashMap;

use camino::{Utf8Path, Utf8PathBuf};

use super::Repair;
use super::facts;
use super::plan::{Action, Stage, plan};
use crate::error::Result;
use crate::format::Content;
use crate::fs::Disk;
use crate::fs::copy::Advance;
use crate::fs::read;
use crate::id::{Digest, RevisionId, TemplateId};
use crate::progress::{self, Note};
use crate::seal::in_parallel;

/// Somebody outside the store who may have the bytes of a file.
pub(crate) trait Supply: Sync {
    /// Who it is, for people.
    fn name(&self) -> &str;

    /// Makes a sealed, durable file of these bytes; `false` if it has none.
    fn fetch(&self, disk: &Disk, content: &Content, to: &Utf8Path, advance: Advance) -> Result<bool>;
}

/// What a supply is known to have.
pub(super) struct Supplied<'a> {
    from: Option<&'a dyn Supply>,
    /// Why it is not asked any more.
    failed: Option<String>,
    /// What was asked for: the file that came, or `None` if there is none.
    files: HashMap<Digest, Option<Utf8PathBuf>>,
}

impl<'a> Supplied<'a> {
    pub fn new(from: Option<&'a dyn Supply>) -> Supplied<'a> {
        Supplied { from, failed: None, files: HashMap::new() }
    }
}

impl Repair<'_> {
    /// Fetches what the first look missed, while others may still change the store: this takes as long as the network does.
    /// What is mended meanwhile, or has become somebody's copy, was fetched for nothing.
    pub(super) fn fetch_ahead(&mut self) -> Result<()> {
        if self.supplied.from.is_none() {
            return Ok(());
        }
        let findings = self.now.report.findings.clone();
        let actions = Stage::ALL.iter().flat_map(|stage| plan(*stage, &findings, &facts(self.core, &findings)));
        let mut wanted = HashMap::new();
        for action in actions {
            let Action::MendFile(template, id, content) = action else { continue };
            let path = self.core.layout.artifact(&template, &id, &content.path);
            let is_here = self.copy_of(&content.blake3, Some(content.size), &path)?.is_some()
                || self.copy_in_instances(&content.blake3, content.size)?.is_some();
            if !is_here {
                wanted.insert(content.blake3, content);
            }
        }
        let mut left = read::available_space(self.core.layout.root())?;
        for content in wanted.values() {
            let Some(then) = left.checked_sub(content.size) else { continue };
            self.ask(content)?;
            left = then;
        }
        Ok(())
    }

    /// The file that the supply has for these bytes; it is asked once. When it failed once, it is asked for nothing more:
    /// others may be waiting for the store.
    fn ask(&mut self, content: &Content) -> Result<Option<Utf8PathBuf>> {
        if let Some(known) = self.supplied.files.get(&content.blake3) {
            return Ok(known.clone());
        }
        let Some(supply) = self.supplied.from.filter(|_| self.supplied.failed.is_none()) else { return Ok(None) };
        let to = self.staging()?.join(content.blake3.to_hex());
        let disk = &self.core.disk;
        let fetched = in_parallel(progress::Stage::Fetching, content.size, self.progress, |advance| {
            supply.fetch(disk, content, &to, advance)
        });
        self.supplied.failed = fetched.as_ref().err().map(ToString::to_string);
        let file = fetched?.then_some(to);
        self.supplied.files.insert(content.blake3, file.clone());
        Ok(file)
    }

    /// Gives a revision its file again from outside the store, if anybody there has it.
    pub(super) fn mend_from_outside(
        &mut self,
        template: &TemplateId,
        id: &RevisionId,
        content: &Content,
        path: Utf8PathBuf,
    ) -> Result<()> {
        let Some(name) = self.supplied.from.map(Supply::name) else {
            self.failed.insert(path, "neither the store nor an instance has an intact copy".into());
            return Ok(());
        };
        let asked = self.ask(content);
        // It may answer the next time: the revision is not lost for that.
        if let Some(reason) = self.supplied.failed.clone().filter(|_| !matches!(asked, Ok(Some(_)))) {
            self.fail(path, reason);
            return Ok(());
        }
        let Some(fetched) = asked? else {
            self.failed.insert(path, format!("neither the store, an instance nor {name} has an intact copy"));
            return Ok(());
        };
        self.make_way(template, id, content)?;
        self.keep(&path, Some(template), Some(id))?;
        self.put(&fetched, &path)?;
        // Whoever else wants it finds it there.
        self.core.disk.unlink(&fetched)?;
        self.supplied.files.remove(&content.blake3);
        self.progress.note(Note::Healed { path: path.clone() });
        self.done(path, format!("fetched again from {name}"));
        Ok(())
    }
}
