//! Where everything is in a store.

use camino::{Utf8Path, Utf8PathBuf};

use crate::id::{ArtifactPath, CacheKey, Digest, RevisionId, TemplateId};

/// Every path of a store, from its root; pure.
///
/// ```
/// use template_store::Layout;
///
/// let layout = Layout::new("/var/lib/templates");
/// let revision = layout.revision(&"web".parse()?, &"3c7f1e".parse()?);
/// assert_eq!(revision, "/var/lib/templates/templates/web/artifacts/3c7f1e");
/// # Ok::<(), template_store::InvalidName>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: Utf8PathBuf,
}

impl Layout {
    /// The layout of the store at `root`.
    pub fn new(root: impl Into<Utf8PathBuf>) -> Layout {
        Layout { root: root.into() }
    }

    /// The store's directory.
    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// `templates/`
    pub fn templates(&self) -> Utf8PathBuf {
        self.root.join("templates")
    }

    /// `templates/<id>/`
    pub fn template(&self, id: &TemplateId) -> Utf8PathBuf {
        self.templates().join(id.as_str())
    }

    /// `templates/<id>/template.json`
    pub fn template_json(&self, id: &TemplateId) -> Utf8PathBuf {
        self.template(id).join(TEMPLATE_JSON)
    }

    /// `templates/<id>/artifacts/`
    pub fn artifacts(&self, id: &TemplateId) -> Utf8PathBuf {
        self.template(id).join(ARTIFACTS)
    }

    /// `templates/<id>/artifacts/<revision>/`
    pub fn revision(&self, id: &TemplateId, revision: &RevisionId) -> Utf8PathBuf {
        self.artifacts(id).join(revision.as_str())
    }

    /// `templates/<id>/artifacts/<revision>/revision.json`
    pub fn revision_json(&self, id: &TemplateId, revision: &RevisionId) -> Utf8PathBuf {
        self.revision(id, revision).join(REVISION_JSON)
    }

    /// `templates/<id>/artifacts/<revision>/<path>`
    pub fn artifact(&self, id: &TemplateId, revision: &RevisionId, path: &ArtifactPath) -> Utf8PathBuf {
        self.revision(id, revision).join(path.as_path())
    }

    /// `templates/<id>/artifacts/<revision>/snapshot/`
    pub fn snapshot(&self, id: &TemplateId, revision: &RevisionId) -> Utf8PathBuf {
        self.revision(id, revision).join("snapshot")
    }

    /// `templates/<id>/revisions`, the alias that makes `current` resolve.
    pub fn alias(&self, id: &TemplateId) -> Utf8PathBuf {
        self.template(id).join(ALIAS)
    }

    /// `templates/<id>/current`
    pub fn current(&self, id: &TemplateId) -> Utf8PathBuf {
        self.template(id).join("current")
    }

    /// `templates/<id>/activations.jsonl`
    pub fn activations(&self, id: &TemplateId) -> Utf8PathBuf {
        self.template(id).join(ACTIVATIONS)
    }

    /// `templates/<id>/.activating`: there while a swap of `current` is not known to be durable.
    pub fn activating(&self, id: &TemplateId) -> Utf8PathBuf {
        self.template(id).join(".activating")
    }

    /// `.store/`
    pub fn private(&self) -> Utf8PathBuf {
        self.root.join(".store")
    }

    /// `.store/format.json`
    pub fn format_json(&self) -> Utf8PathBuf {
        self.private().join("format.json")
    }

    /// `.store/objects/`
    pub fn objects(&self) -> Utf8PathBuf {
        self.private().join("objects")
    }

    /// `.store/objects/ab/`
    pub fn object_shard(&self, digest: &Digest) -> Utf8PathBuf {
        self.objects().join(&digest.to_hex()[..2])
    }

    /// `.store/objects/ab/<62 hex>`
    pub fn object(&self, digest: &Digest) -> Utf8PathBuf {
        self.object_shard(digest).join(&digest.to_hex()[2..])
    }

    /// `.store/keys/`
    pub fn keys(&self) -> Utf8PathBuf {
        self.private().join("keys")
    }

    /// `.store/keys/ab/<62 hex>.json`
    pub fn key(&self, key: &CacheKey) -> Utf8PathBuf {
        let hex = key.to_hex();
        self.keys().join(&hex[..2]).join(format!("{}.json", &hex[2..]))
    }

    /// `.store/drafts/`
    pub fn drafts(&self) -> Utf8PathBuf {
        self.private().join("drafts")
    }

    /// `.store/trash/`
    pub fn trash(&self) -> Utf8PathBuf {
        self.private().join("trash")
    }

    /// `.store/pins/`
    pub fn pins(&self) -> Utf8PathBuf {
        self.private().join("pins")
    }

    /// `.store/leases/`
    pub fn leases(&self) -> Utf8PathBuf {
        self.private().join("leases")
    }

    /// `.store/locks/`
    pub fn locks(&self) -> Utf8PathBuf {
        self.private().join("locks")
    }

    /// `.store/locks/<64 hex>`: held by the process that builds this key.
    pub fn build_lock(&self, key: &CacheKey) -> Utf8PathBuf {
        self.locks().join(key.to_hex())
    }

    /// `.store/reserve`: blocks that are given up when the disk is full.
    pub fn reserve(&self) -> Utf8PathBuf {
        self.private().join("reserve")
    }
}

pub(crate) const TEMPLATE_JSON: &str = "template.json";
pub(crate) const REVISION_JSON: &str = "revision.json";
pub(crate) const ARTIFACTS: &str = "artifacts";
pub(crate) const ALIAS: &str = "revisions";
pub(crate) const ACTIVATIONS: &str = "activations.jsonl";

/// The text of `current`: mvm takes `revisions/` off, and through the alias it resolves on disk.
pub(crate) fn current_target(revision: &RevisionId) -> String {
    format!("{ALIAS}/{revision}")
}

/// The revision that the text of a `current` names, in any spelling that mvm has used.
pub(crate) fn revision_of_target(target: &str) -> Option<RevisionId> {
    let text = ["artifacts/revisions/", "artifacts/", "revisions/"]
        .iter()
        .find_map(|prefix| target.strip_prefix(prefix))
        .unwrap_or(target);
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_is_read_in_every_spelling() {
        for text in ["3c7f1e", "revisions/3c7f1e", "artifacts/3c7f1e", "artifacts/revisions/3c7f1e"] {
            assert_eq!(revision_of_target(text).unwrap().as_str(), "3c7f1e");
        }
        for text in ["", "/etc", "../x", "revisions/", "revisions/../x", "revisions/a/b"] {
            assert_eq!(revision_of_target(text), None, "{text}");
        }
    }
}
