//! `[remote.NAME]` in `.store/config.toml`: where remotes are. Pure: text in, text out.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use toml_edit::{DocumentMut, Item, Table, TomlError, value};

use super::text::{plain, url};
use crate::format::{FormatError, check_toml};
use crate::id::RemoteName;
use crate::options::setters;

/// Where a remote is, and how it is reached. Never credentials: those come from the environment and files of each cloud.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RemoteSettings {
    /// `s3://bucket/prefix`, `gs://…`, `az://…`, `https://…` (to read only), or a directory.
    pub url: String,
    /// The server that speaks S3, if it is not Amazon's: `https://host:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region of the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether the server may be reached without encryption.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_http: bool,
    /// A promise that nobody else pushes there, for servers that do not honour conditions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub single_writer: bool,
}

impl fmt::Debug for RemoteSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.shown();
        f.debug_struct("RemoteSettings")
            .field("url", &shown.url)
            .field("endpoint", &shown.endpoint)
            .field("region", &shown.region)
            .field("allow_http", &shown.allow_http)
            .field("single_writer", &shown.single_writer)
            .finish()
    }
}

impl RemoteSettings {
    /// A remote at this URL, or in this directory.
    pub fn at(url: impl Into<String>) -> RemoteSettings {
        RemoteSettings { url: url.into(), endpoint: None, region: None, allow_http: false, single_writer: false }
    }

    /// The same, as it may be shown: without what would be a user, a password or a signature in a URL. Such a remote can't be
    /// opened.
    ///
    /// ```
    /// let slip = template_store::RemoteSettings::at("s3://key:secret@bucket/images");
    /// assert_eq!(slip.shown().url, "s3://…@bucket/images");
    /// assert!(!format!("{slip:?}").contains("secret"));
    /// ```
    pub fn shown(&self) -> RemoteSettings {
        RemoteSettings { url: url(&self.url), endpoint: self.endpoint.as_deref().map(url), ..self.clone() }
    }

    setters! {
        /// The server that speaks S3, if it is not Amazon's.
        endpoint: Option<String>,
        /// The region of the bucket.
        region: Option<String>,
        /// Whether the server may be reached without encryption.
        allow_http: bool,
        /// A promise that nobody else pushes there.
        single_writer: bool,
    }
}

/// All remotes that a configuration names.
pub(super) fn all(text: &str) -> Result<BTreeMap<RemoteName, RemoteSettings>, FormatError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Config {
        remote: BTreeMap<RemoteName, RemoteSettings>,
    }
    check_toml("config.toml", text)?;
    let config: Config = toml::from_str(text)
        .map_err(|error| FormatError::toml("config.toml", text, &plain(error.message()), error.span()))?;
    Ok(config.remote)
}

/// The configuration with a remote more; whatever else it holds stays, comments too.
pub(super) fn with(text: &str, name: &RemoteName, settings: &RemoteSettings) -> Result<String, FormatError> {
    let mut document = parse(text)?;
    let mut table = Table::new();
    table["url"] = value(&settings.url);
    for (key, text) in [("endpoint", &settings.endpoint), ("region", &settings.region)] {
        if let Some(text) = text {
            table[key] = value(text);
        }
    }
    for (key, is_set) in [("allow_http", settings.allow_http), ("single_writer", settings.single_writer)] {
        if is_set {
            table[key] = value(true);
        }
    }
    let remotes = document.entry("remote").or_insert_with(|| {
        let mut all = Table::new();
        all.set_implicit(true);
        Item::Table(all)
    });
    let remotes =
        remotes.as_table_like_mut().ok_or_else(|| FormatError::invalid("config.toml", "remote is no table"))?;
    remotes.insert(name.as_ref(), Item::Table(table));
    Ok(document.to_string())
}

/// The configuration without a remote.
pub(super) fn without(text: &str, name: &RemoteName) -> Result<String, FormatError> {
    let mut document = parse(text)?;
    if let Some(remotes) = document.get_mut("remote").and_then(Item::as_table_like_mut) {
        remotes.remove(name.as_ref());
        if remotes.is_empty() {
            document.remove("remote");
        }
    }
    Ok(document.to_string())
}

fn parse(text: &str) -> Result<DocumentMut, FormatError> {
    check_toml("config.toml", text)?;
    text.parse()
        .map_err(|error: TomlError| FormatError::toml("config.toml", text, &plain(error.message()), error.span()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RemoteName {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_added_is_there_and_what_was_there_stays() {
        let text = "# ours\n[gc]\nkeep_last = 5 # five\n";
        let hub =
            RemoteSettings::at("s3://bucket/images").endpoint("http://127.0.0.1:8333".to_owned()).allow_http(true);
        let more = with(text, &name("hub"), &hub).unwrap();
        let more = with(&more, &name("shared.1"), &RemoteSettings::at("/mnt/images")).unwrap();
        assert!(more.starts_with(text), "{more}");
        let found = all(&more).unwrap();
        assert_eq!(found[&name("hub")], hub);
        assert_eq!(found[&name("shared.1")], RemoteSettings::at("/mnt/images"));
        let less = without(&without(&more, &name("hub")).unwrap(), &name("shared.1")).unwrap();
        assert_eq!(less.trim_end(), text.trim_end());
    }

    #[test]
    fn names_and_fields_are_checked() {
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", &"a".repeat(65)] {
            assert!(bad.parse::<RemoteName>().is_err(), "{bad}");
        }
        assert!(all("[remote.hub]\nurl = 's3://b'\nsecret = 'x'\n").is_err());
        assert!(all("[remote.hub]\n").is_err());
        assert!(all("[remote.'a b']\nurl = 'x'\n").is_err());
    }
}
