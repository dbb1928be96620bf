//! Names and digests, parsed once: whoever holds one of these types holds a valid value.

use std::fmt;
use std::str::FromStr;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::layout::SNAPSHOT;

/// A value from outside that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {kind}: {problem}; {rule}")]
pub struct InvalidName {
    /// What it was to be: `template id`, `role`, …
    pub kind: &'static str,
    /// The value as given, shortened.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
    /// What a valid one looks like.
    pub rule: &'static str,
}

impl InvalidName {
    pub(crate) fn new(kind: &'static str, value: &str, problem: impl Into<String>, rule: &'static str) -> Self {
        let value = value.chars().take(160).collect();
        InvalidName { kind, value, problem: problem.into(), rule }
    }
}

/// Declares a validated string: its check, and the traits that every name has.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                match $check(text) {
                    Ok(()) => Ok($name(text.to_owned())),
                    Err(problem) => Err(InvalidName::new($kind, text, problem, $rule)),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// The name of a template: a directory below `templates/`.
    ///
    /// - 1 to 63 characters of `a-z 0-9 - _`
    /// - does not start with `-` or `_`
    ///
    /// ```
    /// use template_store::TemplateId;
    ///
    /// assert!("web-server_2".parse::<TemplateId>().is_ok());
    /// for bad in ["", "-web", "_web", "Web", "a/b", "../../etc", &"a".repeat(64)] {
    ///     assert!(bad.parse::<TemplateId>().is_err(), "{bad}");
    /// }
    /// ```
    TemplateId, "template id", "use 1 to 63 of a-z 0-9 - _, not starting with - or _", check_template_id
}

name! {
    /// The name of a revision: a directory below `artifacts/`.
    ///
    /// - 1 to 128 characters of `A-Z a-z 0-9 . _ + -`
    /// - does not start with `.` or `-`
    /// - is not `revisions`, which names the alias on disk
    ///
    /// ```
    /// use template_store::RevisionId;
    ///
    /// assert!("3c7f1e+0a1b2c3d4e5f".parse::<RevisionId>().is_ok());
    /// for bad in ["", ".", "..", "-r", "a/b", "revisions", &"a".repeat(129)] {
    ///     assert!(bad.parse::<RevisionId>().is_err(), "{bad}");
    /// }
    /// ```
    RevisionId, "revision id", "use 1 to 128 of A-Z a-z 0-9 . _ + -, not starting with . or -; `revisions` is reserved", check_revision_id
}

name! {
    /// The build profile, such as `minimal`: the second part of a cache key.
    ///
    /// - 1 to 128 bytes of UTF-8
    /// - no `:` (so that the cache key says what it was made from) and no control characters
    ///
    /// ```
    /// use template_store::Profile;
    ///
    /// assert!("minimal".parse::<Profile>().is_ok());
    /// assert!("a:b".parse::<Profile>().is_err());
    /// ```
    Profile, "profile", "use 1 to 128 bytes without ':' and control characters", check_label
}

name! {
    /// The role of the workload, such as `worker`: the third part of a cache key.
    ///
    /// - 1 to 128 bytes of UTF-8
    /// - no `:` and no control characters
    ///
    /// ```
    /// use template_store::Role;
    ///
    /// assert!("gateway".parse::<Role>().is_ok());
    /// assert!("".parse::<Role>().is_err());
    /// ```
    Role, "role", "use 1 to 128 bytes without ':' and control characters", check_label
}

name! {
    /// The hash of a `flake.lock`, in whatever spelling its maker uses: the first part of a cache key.
    ///
    /// - 1 to 256 bytes of UTF-8
    /// - no `:` and no control characters
    ///
    /// ```
    /// use template_store::FlakeLockHash;
    ///
    /// assert!("sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".parse::<FlakeLockHash>().is_ok());
    /// ```
    FlakeLockHash, "flake.lock hash", "use 1 to 256 bytes without ':' and control characters", check_lock_hash
}

name! {
    /// The name of a pin: a file below `.store/pins/`.
    ///
    /// - 1 to 128 characters of `A-Z a-z 0-9 . _ + -`
    /// - does not start with `.` or `-`
    ///
    /// ```
    /// use template_store::PinName;
    ///
    /// assert!("release-2026.11".parse::<PinName>().is_ok());
    /// for bad in ["", ".hidden", "-x", "a/b"] {
    ///     assert!(bad.parse::<PinName>().is_err(), "{bad}");
    /// }
    /// ```
    PinName, "pin name", "use 1 to 128 of A-Z a-z 0-9 . _ + -, not starting with . or -", check_pin_name
}

#[cfg(feature = "remote")]
name! {
    /// The name of a remote in `.store/config.toml`.
    ///
    /// - 1 to 64 characters of `A-Z a-z 0-9 . _ -`
    /// - starts with a letter or digit
    RemoteName, "remote name", "use 1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit", check_remote_name
}

name! {
    /// The name of a drive of a VM, as Firecracker has it (`drive_id`): a file below `snapshot/drives/`.
    ///
    /// - 1 to 64 characters of `A-Z a-z 0-9 . _ -`
    /// - does not start with `.` or `-`
    ///
    /// ```
    /// use template_store::DriveId;
    ///
    /// assert!("rootfs".parse::<DriveId>().is_ok());
    /// for bad in ["", "..", "-x", "a/b", "a=b"] {
    ///     assert!(bad.parse::<DriveId>().is_err(), "{bad}");
    /// }
    /// ```
    DriveId, "drive id", "use 1 to 64 of A-Z a-z 0-9 . _ -, not starting with . or -", check_drive_id
}

name! {
    /// The path of an artifact below its revision's directory.
    ///
    /// - relative, `/` between its parts, none of them empty, `.` or `..`
    /// - at most 1024 bytes, each part at most 255; no control characters
    /// - its first part is not `revision.json` or `snapshot`, which are the store's own
    ///
    /// ```
    /// use template_store::ArtifactPath;
    ///
    /// assert!("modules/6.1/virtio.ko".parse::<ArtifactPath>().is_ok());
    /// for bad in ["", "/etc/passwd", "a//b", "a/../b", "./a", "revision.json", "snapshot/mem.bin"] {
    ///     assert!(bad.parse::<ArtifactPath>().is_err(), "{bad}");
    /// }
    /// ```
    ArtifactPath, "artifact path", "use a relative path without '.', '..' and control characters, at most 1024 bytes", check_artifact_path
}

impl ArtifactPath {
    /// The path, relative to the revision's directory.
    pub fn as_path(&self) -> &Utf8Path {
        Utf8Path::new(&self.0)
    }

    /// The path, below the revision's directory, of a file that has this one below `snapshot/`. No caller can name it so:
    /// the store looks at the files of a snapshot as it does at artifacts.
    pub(crate) fn in_snapshot(&self) -> ArtifactPath {
        ArtifactPath(format!("{SNAPSHOT}/{}", self.0))
    }

    /// Whether it is that of a file of a snapshot.
    pub(crate) fn is_in_snapshot(&self) -> bool {
        self.as_path().starts_with(SNAPSHOT)
    }
}

fn check_template_id(text: &str) -> Result<(), String> {
    check_alphabet(text, 63, |c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_'))?;
    check_first(text, &['-', '_'])
}

fn check_pin_name(text: &str) -> Result<(), String> {
    check_alphabet(text, 128, |c| c.is_ascii_alphanumeric() || "._+-".contains(c))?;
    check_first(text, &['.', '-'])
}

fn check_drive_id(text: &str) -> Result<(), String> {
    check_alphabet(text, 64, |c| c.is_ascii_alphanumeric() || "._-".contains(c))?;
    check_first(text, &['.', '-'])
}

#[cfg(feature = "remote")]
fn check_remote_name(text: &str) -> Result<(), String> {
    check_alphabet(text, 64, |c| c.is_ascii_alphanumeric() || "._-".contains(c))?;
    check_first(text, &['.', '-', '_'])
}

fn check_revision_id(text: &str) -> Result<(), String> {
    check_pin_name(text)?;
    if text == "revisions" { Err("it is reserved".into()) } else { Ok(()) }
}

fn check_label(text: &str) -> Result<(), String> {
    check_key_part(text, 128)
}

fn check_lock_hash(text: &str) -> Result<(), String> {
    check_key_part(text, 256)
}

fn check_artifact_path(text: &str) -> Result<(), String> {
    check_length(text, 1024)?;
    check_no_control(text)?;
    for part in text.split('/') {
        match part {
            "" => return Err("it has an empty part".into()),
            "." | ".." => return Err(format!("it has the part {part:?}")),
            _ if part.len() > 255 => return Err("a part is longer than 255 bytes".into()),
            _ => {}
        }
    }
    match text.split('/').next() {
        Some(first @ ("revision.json" | "snapshot")) => Err(format!("{first:?} is reserved for the store")),
        _ => Ok(()),
    }
}

fn check_key_part(text: &str, longest: usize) -> Result<(), String> {
    check_length(text, longest)?;
    check_no_control(text)?;
    if text.contains(':') { Err("it contains ':'".into()) } else { Ok(()) }
}

fn check_alphabet(text: &str, longest: usize, allowed: impl Fn(char) -> bool) -> Result<(), String> {
    check_length(text, longest)?;
    match text.chars().find(|&c| !allowed(c)) {
        Some(c) => Err(format!("it contains {c:?}")),
        None => Ok(()),
    }
}

fn check_length(text: &str, longest: usize) -> Result<(), String> {
    match text.len() {
        0 => Err("it is empty".into()),
        n if n > longest => Err(format!("it has {n} bytes")),
        _ => Ok(()),
    }
}

fn check_first(text: &str, refused: &[char]) -> Result<(), String> {
    match text.chars().next() {
        Some(c) if refused.contains(&c) => Err(format!("it starts with {c:?}")),
        _ => Ok(()),
    }
}

fn check_no_control(text: &str) -> Result<(), String> {
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(format!("it contains the control character {c:?}")),
        None => Ok(()),
    }
}

/// Declares a 32-byte hash, written as 64 lower-case hex digits.
macro_rules! hash {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 32]);

        impl $name {
            /// The 32 bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The 64 lower-case hex digits.
            pub fn to_hex(&self) -> String {
                self.0.iter().map(|byte| format!("{byte:02x}")).collect()
            }
        }

        impl From<[u8; 32]> for $name {
            fn from(bytes: [u8; 32]) -> Self {
                $name(bytes)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let problem = |problem: &str| InvalidName::new($kind, text, problem, "use 64 digits of 0-9 a-f");
                if text.len() != 64 {
                    return Err(problem("it does not have 64 digits"));
                }
                let mut bytes = [0; 32];
                for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                    let digit = |c: u8| match c {
                        b'0'..=b'9' => Ok(c - b'0'),
                        b'a'..=b'f' => Ok(c - b'a' + 10),
                        _ => Err(problem("it has something else than 0-9 a-f")),
                    };
                    *byte = digit(pair[0])? << 4 | digit(pair[1])?;
                }
                Ok($name(bytes))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(hash: $name) -> String {
                hash.to_hex()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.to_hex())
            }
        }
    };
}

hash! {
    /// What a build was made *from*: the SHA-256 of `flake_lock_hash ":" profile ":" role`.
    ///
    /// ```
    /// use template_store::CacheKey;
    ///
    /// let key = CacheKey::new(&"lock".parse()?, &"minimal".parse()?, &"worker".parse()?);
    /// assert_eq!(key.to_hex(), "5471af277aca2f7fc3878cc10770363388a7f1840f0a6355bfbf3f1f47eba6f4");
    /// # Ok::<(), template_store::InvalidName>(())
    /// ```
    CacheKey, "cache key"
}

hash! {
    /// What a file *is*: the BLAKE3 of its bytes, as `b3sum` prints it.
    ///
    /// ```
    /// use template_store::Digest;
    ///
    /// let empty = Digest::of(b"");
    /// assert_eq!(empty.to_hex(), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
    /// ```
    Digest, "BLAKE3 digest"
}

impl CacheKey {
    /// The key of the builds that are made from these three.
    ///
    /// None of them holds a `:`, so different inputs have different texts.
    pub fn new(flake_lock_hash: &FlakeLockHash, profile: &Profile, role: &Role) -> CacheKey {
        CacheKey::of_text(flake_lock_hash.as_str(), profile.as_str(), role.as_str())
    }

    /// The key of parts that nobody has checked, as `mvm` computes it.
    pub(crate) fn of_text(flake_lock_hash: &str, profile: &str, role: &str) -> CacheKey {
        let mut hasher = Sha256::new();
        for part in [flake_lock_hash, ":", profile, ":", role] {
            hasher.update(part.as_bytes());
        }
        CacheKey(hasher.finalize().into())
    }
}

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(blake3::hash(bytes).into())
    }
}
