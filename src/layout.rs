//! Where everything is in a store.

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};

use crate::id::{ArtifactPath, CacheKey, Digest, PinName, RevisionId, TemplateId};

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
        self.revision(id, revision).join(SNAPSHOT)
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

    /// `.store/adopting`: there from before the first change to an mvm directory until it is a store.
    pub fn adopting(&self) -> Utf8PathBuf {
        self.private().join("adopting")
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

    /// `.store/pins/<name>.json`
    pub fn pin(&self, name: &PinName) -> Utf8PathBuf {
        self.pins().join(format!("{name}.json"))
    }

    /// `.store/leases/`
    pub fn leases(&self) -> Utf8PathBuf {
        self.private().join("leases")
    }

    /// `.store/leases/<template>@<revision>/`: notes of the processes that use the revision.
    pub fn leases_of(&self, id: &TemplateId, revision: &RevisionId) -> Utf8PathBuf {
        self.leases().join(format!("{id}@{revision}"))
    }

    /// `.store/instances/`
    pub fn instances(&self) -> Utf8PathBuf {
        self.private().join(INSTANCES)
    }

    /// `.store/instances/<32 hex>`: a link whose text is the way from there to the directory of an instance; its name
    /// follows from the text.
    pub fn instance(&self, dir: &Utf8Path) -> Utf8PathBuf {
        self.instances().join(&Digest::of(self.way_to(dir).as_str().as_bytes()).to_hex()[..32])
    }

    /// The text of the link to an instance: both may be mounted elsewhere the next time, so it says no more than the way.
    pub(crate) fn way_to(&self, instance: &Utf8Path) -> Utf8PathBuf {
        let from = self.instances();
        let (mut there, mut here) = (instance.components().peekable(), from.components().peekable());
        while here.peek().is_some() && here.peek() == there.peek() {
            here.next();
            there.next();
        }
        here.map(|_| Utf8Component::ParentDir).chain(there).collect()
    }

    /// Where the text of a link to an instance leads.
    pub(crate) fn instance_at(&self, way: &Utf8Path) -> Utf8PathBuf {
        let mut at = self.instances();
        for part in way.components() {
            match part {
                Utf8Component::ParentDir => drop(at.pop()),
                part => at.push(part),
            }
        }
        at
    }

    /// `.store/damaged/`
    pub fn damaged(&self) -> Utf8PathBuf {
        self.private().join("damaged")
    }

    /// `.store/damaged/<template>@<revision>.json`: says that the revision is damaged, and must not be offered.
    pub fn damage_mark(&self, id: &TemplateId, revision: &RevisionId) -> Utf8PathBuf {
        self.damaged().join(format!("{id}@{revision}.json"))
    }

    /// `.store/config.toml`
    pub fn config(&self) -> Utf8PathBuf {
        self.private().join("config.toml")
    }

    /// `.store/locks/`
    pub fn locks(&self) -> Utf8PathBuf {
        self.private().join("locks")
    }

    /// `.store/locks/<64 hex>`: held by the process that builds this key.
    pub fn build_lock(&self, key: &CacheKey) -> Utf8PathBuf {
        self.locks().join(key.to_hex())
    }

    /// `.store/repairing`: there while a repair is not known to be durable.
    pub fn repairing(&self) -> Utf8PathBuf {
        self.private().join(REPAIRING)
    }

    /// `.store/catalog`: what is known of each revision of a large store.
    pub fn catalog(&self) -> Utf8PathBuf {
        self.private().join("catalog")
    }

    /// `.store/samples/`: which large files are objects.
    pub fn samples(&self) -> Utf8PathBuf {
        self.private().join("samples")
    }

    /// `.store/reserve`: blocks that are given up when the disk is full.
    pub fn reserve(&self) -> Utf8PathBuf {
        self.private().join("reserve")
    }
}

pub(crate) const INSTANCES: &str = "instances";
pub(crate) const REPAIRING: &str = "repairing";
pub(crate) const TEMPLATE_JSON: &str = "template.json";
pub(crate) const REVISION_JSON: &str = "revision.json";
pub(crate) const SNAPSHOT: &str = "snapshot";
pub(crate) const SNAPSHOT_JSON: &str = "snapshot.json";
pub(crate) const ARTIFACTS: &str = "artifacts";
pub(crate) const ALIAS: &str = "revisions";
pub(crate) const ACTIVATIONS: &str = "activations.jsonl";

/// The text of `current`: mvm takes `revisions/` off, and through the alias it resolves on disk.
pub(crate) fn current_target(revision: &RevisionId) -> String {
    format!("{ALIAS}/{revision}")
}

/// Where the text of a `current` may look for a revision, seen from the template's directory.
const HOLDERS: [&str; 3] = ["artifacts/revisions/", "artifacts/", "revisions/"];

/// The revision that the text of a `current` names, in any relative spelling that mvm or a user has used.
pub(crate) fn revision_of_target(target: &str) -> Option<RevisionId> {
    let mut text = target.trim_end_matches('/');
    while let Some(rest) = text.strip_prefix("./") {
        text = rest.trim_start_matches('/');
    }
    HOLDERS.iter().find_map(|holder| text.strip_prefix(holder)).unwrap_or(text).parse().ok()
}

/// The revision that an absolute text names, if a template's directory is at the start of it: `is_it` knows the template.
pub(crate) fn revision_of_path(target: &str, is_it: impl Fn(&Utf8Path) -> bool) -> Option<RevisionId> {
    let (holder, revision) = target.trim_end_matches('/').rsplit_once('/')?;
    let holder = format!("{}/", holder.trim_end_matches('/'));
    let dirs = HOLDERS.iter().filter_map(|below| holder.strip_suffix(below)?.strip_suffix('/'));
    let mut dirs = dirs.filter(|dir| dir.starts_with('/')).map(Utf8Path::new);
    if dirs.any(is_it) { revision.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_an_instance_says_the_way() {
        let layout = Layout::new("/data/store");
        for (place, way) in [
            ("/data/vms/1", "../../../vms/1"),
            ("/vms/1", "../../../../vms/1"),
            ("/data/store2/x", "../../../store2/x"),
        ] {
            assert_eq!(layout.way_to(Utf8Path::new(place)), way);
            assert_eq!(layout.instance_at(Utf8Path::new(way)), place);
        }
        let moved = Layout::new("/mnt/store");
        assert_eq!(
            layout.instance(Utf8Path::new("/data/vms/1")).file_name(),
            moved.instance(Utf8Path::new("/mnt/vms/1")).file_name()
        );
    }

    #[test]
    fn current_is_read_in_every_spelling() {
        for text in ["3c7f1e", "revisions/3c7f1e", "artifacts/3c7f1e", "artifacts/revisions/3c7f1e"] {
            for text in [text.to_owned(), format!("./{text}"), format!("{text}/"), format!(".//./{text}//")] {
                assert_eq!(revision_of_target(&text).unwrap().as_str(), "3c7f1e");
            }
        }
        for text in ["", ".", "./", "/", "/etc", "../x", "revisions/", "revisions/../x", "revisions/a/b"] {
            assert_eq!(revision_of_target(text), None, "{text}");
        }
    }

    #[test]
    fn an_absolute_current_counts_below_its_own_template() {
        let of = |text: &str| revision_of_path(text, |dir| dir == "/data/templates/web");
        for below in HOLDERS {
            for end in ["", "/"] {
                let text = format!("/data/templates/web/{below}3c7f1e{end}");
                assert_eq!(of(&text).unwrap().as_str(), "3c7f1e", "{text}");
            }
        }
        for text in ["/data/templates/db/artifacts/x", "/data/templates/web/x", "artifacts/x", "/artifacts/x", "/", ""]
        {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
