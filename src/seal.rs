//! From a builder's directory to files that nobody can change: what a draft may hold, and how it is sealed.

use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use rayon::prelude::*;

use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{Content, OBJECT_MIN_SIZE};
use crate::fs::read::{self, FileId};
use crate::fs::seal::looks_sealed;
use crate::fs::walk::{Entry, bottom_up, walk};
use crate::fs::{Disk, copy::Advance};
use crate::heal;
use crate::id::ArtifactPath;
use crate::objects::{self, Interned};
use crate::options::SealOptions;
use crate::progress::{Note, Progress, Stage};
use crate::work::{Imported, Work};

/// What a revision lists must be readable again; see [`MOST_PARTS`](crate::format::MOST_PARTS).
const MOST_FILES: usize = 100_000;

/// Bytes, or files, from which on several threads are done sooner than one, also where nothing waits for the disk.
const WORTH_THREADS: u64 = 1024 * 1024;
const MANY_FILES: usize = 64;

/// What a draft holds: regular files in directories, with all artifacts that a revision needs.
#[derive(Debug)]
pub(crate) struct Survey {
    pub files: Vec<(ArtifactPath, Entry)>,
    /// Each after those that it holds.
    pub dirs: Vec<Utf8PathBuf>,
}

impl Survey {
    /// Looks at everything in the directory.
    ///
    /// # Errors
    /// The first thing that a revision can't hold, by name.
    pub fn of(disk: &Disk, dir: &Utf8Path, options: &SealOptions) -> Result<Survey> {
        disk.note_foreign(dir)?;
        disk.open_up_tree(dir.as_std_path())?;
        Survey::read_only(dir, options)
    }

    /// As [`of`](Survey::of), for a directory that stays as it is.
    pub fn read_only(dir: &Utf8Path, options: &SealOptions) -> Result<Survey> {
        let entries = walk(dir)?;
        let mut files = Vec::new();
        for entry in &entries {
            let path = check(entry)?;
            if entry.kind.is_file() {
                files.push((path, entry.clone()));
            }
        }
        if files.is_empty() {
            let problem = "is empty: the build left no file in it".to_owned();
            return Err(Error::BadDraft { path: dir.to_owned(), problem });
        }
        if files.len() > MOST_FILES {
            let problem = format!("holds {} files, and a revision holds up to {MOST_FILES}", files.len());
            return Err(Error::BadDraft { path: dir.to_owned(), problem });
        }
        let names = &options.names;
        for name in [&names.vmlinux, &names.rootfs, &names.fc_base_config] {
            if !files.iter().any(|(path, _)| path == name) {
                return Err(Error::MissingArtifact { name: name.to_string(), dir: dir.to_owned() });
            }
        }
        let dirs = bottom_up(&entries).map(|entry| entry.path.clone()).chain([dir.to_owned()]).collect();
        Ok(Survey { files, dirs })
    }

    /// The same directory once more, when nobody else can change what is in it.
    ///
    /// # Errors
    /// Something came or went since.
    fn again(self, dir: &Utf8Path, options: &SealOptions) -> Result<Survey> {
        let now = Survey::read_only(dir, options)?;
        let paths = |survey: &Survey| survey.files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
        if now.dirs == self.dirs && paths(&now) == paths(&self) {
            return Ok(now);
        }
        let problem = "was changed while it was sealed; publish it when whoever writes to it is done".to_owned();
        Err(Error::BadDraft { path: dir.to_owned(), problem })
    }

    /// Bytes of all files, holes included.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, entry)| entry.metadata.len()).fold(0, u64::saturating_add)
    }

    /// Whether to do all files takes longer than to call other threads: they read, or wait for the disk at once.
    pub fn is_worth_threads(&self, disk: &Disk) -> bool {
        disk.waits() || self.bytes() >= WORTH_THREADS || self.files.len() >= MANY_FILES
    }

    /// Does the same with each file.
    pub fn each_file<T: Send, C: Send + FromIterator<T> + FromParallelIterator<T>>(
        &self,
        in_threads: bool,
        work: impl Fn(&(ArtifactPath, Entry)) -> Result<T> + Send + Sync,
    ) -> Result<C> {
        match in_threads {
            true => self.files.par_iter().map(work).collect(),
            false => self.files.iter().map(work).collect(),
        }
    }
}

/// Refuses what a revision can't hold.
pub(crate) fn check(entry: &Entry) -> Result<ArtifactPath> {
    use std::os::unix::fs::FileTypeExt;
    let kind = entry.kind;
    let name = match () {
        () if kind.is_file() || kind.is_dir() => None,
        () if kind.is_symlink() => Some("symbolic link"),
        () if kind.is_socket() => Some("socket"),
        () if kind.is_fifo() => Some("pipe"),
        () => Some("device"),
    };
    let refuse = |problem| Error::BadDraft { path: entry.path.clone(), problem };
    match name {
        Some(name) => Err(refuse(format!("is a {name}; a revision holds regular files and directories only"))),
        None => entry.relative.as_str().parse().map_err(|error| refuse(format!("can't be in a revision: {error}"))),
    }
}

/// A file of a draft that nobody can change any more.
#[derive(Debug, Clone)]
pub(crate) struct DraftFile {
    pub content: Content,
    /// What was sealed.
    pub inode: FileId,
    pub notes: Vec<Note>,
}

/// Seals every file of a draft, several at a time.
pub(crate) fn seal_files(
    disk: &Disk,
    survey: &Survey,
    work: &Work,
    progress: &mut dyn Progress,
) -> Result<Vec<DraftFile>> {
    let imported = &work.imported;
    // What was copied here is sealed already.
    let is_copied = imported.len() == survey.files.len();
    in_parallel(Stage::Sealing, survey.bytes(), progress, |advance| {
        let seal = |(path, entry): &(ArtifactPath, Entry)| {
            seal_file(disk, work.staging(), path, entry, imported.get(path), advance)
        };
        survey.each_file(!is_copied && survey.is_worth_threads(disk), seal)
    })
}

fn seal_file(
    disk: &Disk,
    staging: &Utf8Path,
    path: &ArtifactPath,
    entry: &Entry,
    imported: Option<&Imported>,
    advance: Advance,
) -> Result<DraftFile> {
    // Whoever writes to a file changes its time; one that still has the sealed time is what was copied here.
    if let Some(Imported { content, is_object }) = imported
        && looks_sealed(&entry.metadata, content.size)
        && (*is_object || entry.metadata.nlink() == 1)
    {
        advance(content.size);
        return Ok(DraftFile { content: content.clone(), inode: FileId::of(&entry.metadata), notes: Vec::new() });
    }
    let sealed = disk.seal_file(&entry.path, staging, advance)?;
    let mut notes = Vec::new();
    if !sealed.dropped.is_empty() {
        notes.push(Note::AttributesDropped { path: path.clone(), names: sealed.dropped });
    }
    if let Some(reason) = sealed.copied {
        notes.push(Note::Copied { path: path.clone(), reason });
    }
    let content = Content { path: path.clone(), size: sealed.size, blake3: sealed.digest };
    Ok(DraftFile { content, inode: sealed.inode, notes })
}

/// Does parallel work whose parts say how many bytes they have done.
pub(crate) fn in_parallel<T>(
    stage: Stage,
    bytes: u64,
    progress: &mut dyn Progress,
    work: impl FnOnce(Advance) -> Result<T>,
) -> Result<T> {
    progress.begin(stage, bytes);
    let shared = Mutex::new(&mut *progress);
    let done = work(&|bytes| shared.lock().unwrap_or_else(PoisonError::into_inner).advance(bytes));
    progress.end();
    done
}

/// What sealing made of a work.
#[derive(Debug)]
pub(crate) struct SealedFiles {
    pub contents: Vec<Content>,
    /// The inodes of the files, in the same order, as they were before any was shared.
    pub inodes: Vec<FileId>,
    pub dirs: Vec<Utf8PathBuf>,
    /// Bytes of files whose blocks the store had already.
    pub shared_bytes: u64,
}

/// Seals a draft: every file is durable before any of them becomes an object.
pub(crate) fn seal(work: &mut Work, options: &SealOptions, progress: &mut dyn Progress) -> Result<SealedFiles> {
    let _change = work.core.begin_change()?;
    let disk = &work.core.disk;
    let survey = Survey::of(disk, work.path(), options)?;
    shut(&work.core, &survey)?;
    let survey = survey.again(work.path(), options)?;
    let files = seal_files(disk, &survey, work, progress)?;
    let mut shared_bytes = 0;
    for file in &files {
        file.notes.iter().cloned().for_each(|note| progress.note(note));
        // Somebody else's directory gets no links to objects before it is ours.
        if !work.is_moved() {
            work.objects.add((file.content.size >= OBJECT_MIN_SIZE).then_some(file.content.blake3));
            shared_bytes += intern(&work.core, &file.content, work.path(), work.staging(), progress)?;
        }
    }
    let (contents, inodes) = files.into_iter().map(|file| (file.content, file.inode)).unzip();
    Ok(SealedFiles { contents, inodes, dirs: survey.dirs, shared_bytes })
}

/// Takes the directories from those who could change them: whoever owns one can give himself every right to it.
fn shut(core: &Core, survey: &Survey) -> Result<()> {
    let public = core.public_mode()?;
    for dir in &survey.dirs {
        let owner = read::metadata(dir)?.uid();
        if owner != read::user() {
            if read::user() != 0 {
                let problem =
                    format!("is a directory of user {owner}, who could change it later; make one of your own");
                return Err(Error::BadDraft { path: dir.clone(), problem });
            }
            core.disk.chown(dir, read::user(), read::group())?;
        }
        core.disk.chmod(dir, public)?;
    }
    Ok(())
}

/// Makes a file an object, or a link to the one that is there; gives the bytes that need no blocks of their own.
pub(crate) fn intern(
    core: &Core,
    content: &Content,
    dir: &Utf8Path,
    staging: &Utf8Path,
    progress: &mut dyn Progress,
) -> Result<u64> {
    if content.size < OBJECT_MIN_SIZE {
        return Ok(0);
    }
    let file = dir.join(content.path.as_path());
    match objects::intern(core, &file, content, staging)? {
        Interned::New => Ok(0),
        Interned::Shared => Ok(content.size),
        Interned::Replaced { rotten } => {
            heal::everywhere(core, content, rotten, &file, staging, progress)?;
            Ok(0)
        }
        Interned::Private { reason } => {
            progress.note(Note::NotShared { path: content.path.clone(), reason });
            Ok(0)
        }
    }
}
