//! Every object of a remote has a name; all of them are here.

use object_store::path::Path;

use crate::id::{CacheKey, Digest, TemplateId};

/// The names below the place that a remote's URL gives.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: Path,
}

impl Names {
    pub fn below(prefix: Path) -> Names {
        Names { prefix }
    }

    fn below_prefix(&self, parts: &[&str]) -> Path {
        parts.iter().fold(self.prefix.clone(), |path, part| path.join(*part))
    }

    /// A name that somebody else gave.
    pub fn plain(&self, parts: &[&str]) -> Path {
        self.below_prefix(parts)
    }

    pub fn format(&self) -> Path {
        self.below_prefix(&["format.json"])
    }

    pub fn blob(&self, digest: &Digest) -> Path {
        let hex = digest.to_hex();
        self.below_prefix(&["blobs", &hex[..2], &format!("{}.zst", &hex[2..])])
    }

    pub fn manifest(&self, digest: &Digest) -> Path {
        let hex = digest.to_hex();
        self.below_prefix(&["manifests", &hex[..2], &format!("{}.json", &hex[2..])])
    }

    pub fn templates(&self) -> Path {
        self.below_prefix(&["templates"])
    }

    pub fn template(&self, id: &TemplateId) -> Path {
        self.below_prefix(&["templates", &format!("{id}.json")])
    }

    /// The template whose pointer has this name.
    pub fn template_of(&self, path: &Path) -> Option<TemplateId> {
        path.filename()?.strip_suffix(".json")?.parse().ok()
    }

    pub fn keys(&self) -> Path {
        self.below_prefix(&["keys"])
    }

    pub fn key(&self, key: &CacheKey) -> Path {
        let hex = key.to_hex();
        self.below_prefix(&["keys", &hex[..2], &format!("{}.json", &hex[2..])])
    }

    /// The key whose pointer has this name.
    pub fn key_of(&self, path: &Path) -> Option<CacheKey> {
        let mut parts = path.parts().collect::<Vec<_>>().into_iter().rev();
        let (name, shard) = (parts.next()?, parts.next()?);
        format!("{}{}", shard.as_ref(), name.as_ref().strip_suffix(".json")?).parse().ok()
    }

    /// An object that only a check of the server makes.
    pub fn check(&self, name: &str) -> Path {
        self.below_prefix(&["check", name])
    }
}
