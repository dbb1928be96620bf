//! What a build is made from.

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use camino::Utf8Path;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::format::{MOST_PARTS, MadeFrom, RevisionRecord, check_parts};
use crate::fs::copy::hash;
use crate::fs::walk::sources;
use crate::fs::{read, utf8};
use crate::id::{CacheKey, Digest, FlakeLockHash, Profile, Role};

/// What a build is made from: the three parts of its cache key, and what else tells builds apart.
///
/// ```
/// use template_store::BuildInputs;
///
/// let inputs = BuildInputs::new("lock-hash".parse()?, "minimal".parse()?, "worker".parse()?);
/// assert_eq!(inputs.key().to_hex().len(), 64);
/// # Ok::<(), template_store::InvalidName>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildInputs {
    flake_lock_hash: FlakeLockHash,
    /// The same file's hash as others spell it.
    other_spellings: Vec<FlakeLockHash>,
    profile: Profile,
    role: Role,
    flake_ref: Option<String>,
    source_hash: Option<Digest>,
}

impl BuildInputs {
    /// Inputs whose lock file was hashed elsewhere.
    pub fn new(flake_lock_hash: FlakeLockHash, profile: Profile, role: Role) -> BuildInputs {
        let other_spellings = Vec::new();
        BuildInputs { flake_lock_hash, other_spellings, profile, role, flake_ref: None, source_hash: None }
    }

    /// Inputs from a `flake.lock`: the lower-case hex SHA-256 of its bytes, and the digest of the `flake.nix`
    /// beside it, if there is one.
    ///
    /// What mvm recorded for the same file (`nix hash path flake.lock`) is found as well.
    ///
    /// # Errors
    /// The file can't be read or is not a lock file; the profile or role is not valid.
    ///
    /// ```no_run
    /// use template_store::BuildInputs;
    ///
    /// let inputs = BuildInputs::from_flake_lock("flake.lock", "minimal", "worker")?;
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn from_flake_lock(path: impl AsRef<Path>, profile: &str, role: &str) -> Result<BuildInputs> {
        let path = utf8(path.as_ref())?;
        let (profile, role) = (profile.parse()?, role.parse()?);
        let bytes = read::user_bytes(path)?;
        check_flake_lock(&bytes).map_err(|reason| Error::NotAFlakeLock { path: path.into(), reason })?;
        let mut inputs = BuildInputs::new(sha256_hex(&bytes), profile, role);
        inputs.other_spellings = vec![nar_sri(&bytes)];
        let flake = path.parent().unwrap_or(Utf8Path::new("")).join("flake.nix");
        inputs.source_hash = read::user_bytes_if_there(&flake)?.map(|bytes| Digest::of(&bytes));
        Ok(inputs)
    }

    /// Records where the flake is.
    #[must_use]
    pub fn with_flake_ref(mut self, flake_ref: impl Into<String>) -> Self {
        self.flake_ref = Some(flake_ref.into());
        self
    }

    /// Takes the whole tree at `dir` as the sources, in place of the `flake.nix` beside the lock file.
    ///
    /// Names, contents, executable bits and the texts of links count; `.git` does not.
    ///
    /// # Errors
    /// A file that can't be read, or a name that is not UTF-8.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// use template_store::BuildInputs;
    ///
    /// let inputs = BuildInputs::new("lock".parse()?, "minimal".parse()?, "worker".parse()?).with_source_tree(&files)?;
    /// assert!(inputs.source_hash().is_some());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn with_source_tree(mut self, dir: impl AsRef<Path>) -> Result<Self> {
        self.source_hash = Some(tree_digest(utf8(dir.as_ref())?)?);
        Ok(self)
    }

    /// The cache key.
    pub fn key(&self) -> CacheKey {
        CacheKey::new(&self.flake_lock_hash, &self.profile, &self.role)
    }

    /// The cache key, and the keys that others have for the same inputs.
    pub(crate) fn keys(&self) -> impl Iterator<Item = CacheKey> {
        let spellings = std::iter::once(&self.flake_lock_hash).chain(&self.other_spellings);
        spellings.map(|hash| CacheKey::new(hash, &self.profile, &self.role))
    }

    /// Whether a revision was made from these.
    pub(crate) fn made(&self, record: &RevisionRecord) -> Made {
        match () {
            () if record.made_from().any(|made| self.fit(&made)) => Made::These,
            () if record.made_from().any(|made| self.have_key_of(&made)) => Made::OtherSources,
            () => Made::Others,
        }
    }

    /// Whether these are the inputs that something was made from, as far as both sides know their sources.
    pub(crate) fn fit(&self, made: &MadeFrom) -> bool {
        let differ = matches!((made.source_hash, self.source_hash), (Some(a), Some(b)) if a != b);
        self.have_key_of(made) && !differ
    }

    fn have_key_of(&self, made: &MadeFrom) -> bool {
        self.keys().any(|key| key == made.key())
    }

    /// The hash of the lock file.
    pub fn flake_lock_hash(&self) -> &FlakeLockHash {
        &self.flake_lock_hash
    }

    /// The build profile.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The role.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// Where the flake is, if it was said.
    pub fn flake_ref(&self) -> Option<&str> {
        self.flake_ref.as_deref()
    }

    /// The digest of the sources, if there are any.
    pub fn source_hash(&self) -> Option<Digest> {
        self.source_hash
    }
}

/// What a revision says about the inputs that are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    These,
    /// The key is the same; the sources are known, and others.
    OtherSources,
    Others,
}

pub(crate) fn check_flake_lock(bytes: &[u8]) -> Result<(), String> {
    check_parts("flake.lock", bytes, MOST_PARTS).map_err(|error| error.to_string())?;
    let lock: Value = serde_json::from_slice(bytes).map_err(|error| format!("it is not JSON ({error})"))?;
    if !lock.get("version").is_some_and(Value::is_u64) {
        return Err("it has no `version`".into());
    }
    if !lock.get("nodes").is_some_and(Value::is_object) {
        return Err("it has no `nodes`".into());
    }
    Ok(())
}

fn sha256_hex(bytes: &[u8]) -> FlakeLockHash {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    hex.parse().expect("hex digits are a hash")
}

/// What `nix hash path` prints for a regular file with these bytes: the SHA-256 of its NAR, as SRI.
///
/// Format: Dolstra, "The Purely Functional Software Deployment Model", figure 5.2.
fn nar_sri(bytes: &[u8]) -> FlakeLockHash {
    let mut nar = Sha256::new();
    for part in [b"nix-archive-1", &b"("[..], b"type", b"regular", b"contents", bytes, b")"] {
        nar.update((part.len() as u64).to_le_bytes());
        nar.update(part);
        nar.update(&[0; 8][..part.len().next_multiple_of(8) - part.len()]);
    }
    let sri = format!("sha256-{}", BASE64_STANDARD.encode(nar.finalize()));
    sri.parse().expect("base64 digits are a hash")
}

fn tree_digest(dir: &Utf8Path) -> Result<Digest> {
    use std::os::unix::fs::PermissionsExt;
    let mut hasher = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for entry in sources(&read::canonical(dir)?)? {
        if entry.relative.components().any(|part| part.as_str() == ".git") {
            continue;
        }
        field(entry.relative.as_str().as_bytes());
        if entry.kind.is_file() {
            let executable = entry.metadata.permissions().mode() & 0o111 != 0;
            field(if executable { b"program" } else { b"file" });
            field(hash(&read::open(&entry.path)?, &entry.path, &|_| ())?.0.as_bytes());
        } else if entry.kind.is_symlink() {
            field(b"link");
            field(read::link_if_there(&entry.path)?.unwrap_or_default().as_bytes());
        } else {
            field(b"other");
        }
    }
    Ok(Digest::from(*hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_file_has_a_version_and_nodes() {
        assert_eq!(check_flake_lock(br#"{"version":7,"root":"root","nodes":{}}"#), Ok(()));
        for (bytes, reason) in
            [("", "JSON"), ("[]", "version"), (r#"{"version":7}"#, "nodes"), ("{\"version\":", "JSON")]
        {
            assert!(check_flake_lock(bytes.as_bytes()).unwrap_err().contains(reason), "{bytes}");
        }
    }

    #[test]
    fn the_nar_hash_of_an_empty_file_is_the_one_that_nix_prints() {
        assert_eq!(nar_sri(b"").as_str(), "sha256-d6xi4mKdjkX2JFicDIv5niSzpyI0m/Hnm8GGAIU04kY=");
    }
}
