//! What a collection keeps; pure.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::format::{FormatError, check_toml};
use crate::id::TemplateId;
use crate::options::setters;

/// What a collection keeps, beside what it always keeps: what is current, pinned, in use, or was not published by
/// this store.
///
/// ```
/// use std::time::Duration;
/// use template_store::gc::Policy;
///
/// let policy = Policy::default().keep_last(5u32).keep_within(Duration::from_secs(14 * 86_400));
/// assert_eq!(policy.keep_last, 5);
/// assert_eq!(Policy::default().keep_last, 3);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Policy {
    /// The newest revisions of each template, by the time of their publication. 3 unless said otherwise.
    pub keep_last: u32,
    /// Revisions that were published less than this long ago.
    #[serde(with = "seconds", skip_serializing_if = "Option::is_none")]
    pub keep_within: Option<Duration>,
    /// So many revisions that rollbacks would go back to. Unless said otherwise one, and none where `keep_last` is 1 or 0:
    /// who keeps the last one only does not keep the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<u32>,
    /// The bytes that the whole store may take on the disk. Older revisions go beyond `keep_last` and `keep_within`
    /// until it takes no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<u64>,
    /// What is to be free on the file system; as `max_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_free: Option<Space>,
    /// Whether revisions that were adopted from mvm may go as well.
    pub adopted: Adopted,
    /// What differs for some templates.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub templates: BTreeMap<TemplateId, Limits>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            keep_last: 3,
            keep_within: None,
            rollback: None,
            max_size: None,
            min_free: None,
            adopted: Adopted::Keep,
            templates: BTreeMap::new(),
        }
    }
}

impl Policy {
    setters! {
        /// Sets how many of the newest revisions of each template are kept.
        keep_last: u32,
        /// Sets for how long each revision is kept.
        keep_within: Option<Duration>,
        /// Sets how many rollbacks are kept possible.
        rollback: Option<u32>,
        /// Sets how many bytes the store may take.
        max_size: Option<u64>,
        /// Sets how much of the file system is to be free.
        min_free: Option<Space>,
        /// Sets what becomes of revisions that were adopted.
        adopted: Adopted,
    }

    /// Other limits for one template.
    #[must_use]
    pub fn template(mut self, id: TemplateId, limits: Limits) -> Self {
        self.templates.insert(id, limits);
        self
    }

    /// What `.store/config.toml` says in its table `gc`; an empty file says nothing.
    ///
    /// # Errors
    /// Not TOML, an unknown name, or a value that is none.
    ///
    /// ```
    /// use template_store::gc::Policy;
    ///
    /// let policy = Policy::from_toml("[gc]\nkeep_last = 5\nmax_size = \"200GiB\"\n[gc.template.web]\nkeep_last = 10")?;
    /// assert_eq!(policy.max_size, Some(200 << 30));
    /// # Ok::<(), template_store::FormatError>(())
    /// ```
    pub fn from_toml(text: &str) -> Result<Policy, FormatError> {
        check_toml("config.toml", text)?;
        let config: Config = toml::from_str(text)
            .map_err(|error| FormatError::toml("config.toml", text, error.message(), error.span()))?;
        config.gc.into_policy().map_err(|reason| FormatError::invalid("config.toml", reason))
    }

    /// What holds for one template.
    pub(super) fn limits(&self, template: &TemplateId) -> Effective {
        let own = self.templates.get(template).copied().unwrap_or_default();
        let keep_last = own.keep_last.unwrap_or(self.keep_last);
        let rollback = own.rollback.or(self.rollback).unwrap_or(keep_last.saturating_sub(1).min(1));
        Effective { keep_last, keep_within: own.keep_within.or(self.keep_within), rollback }
    }
}

/// What becomes of revisions that were adopted from mvm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Adopted {
    /// They are kept.
    #[default]
    Keep,
    /// The same as of all others.
    Collect,
}

/// What differs for one template; what is `None` is as for all others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Limits {
    /// As in [`Policy`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<u32>,
    /// As in [`Policy`].
    #[serde(with = "seconds", skip_serializing_if = "Option::is_none")]
    pub keep_within: Option<Duration>,
    /// As in [`Policy`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<u32>,
}

impl Limits {
    setters! {
        /// Sets how many of the newest revisions are kept.
        keep_last: Option<u32>,
        /// Sets for how long each revision is kept.
        keep_within: Option<Duration>,
        /// Sets how many rollbacks are kept possible.
        rollback: Option<u32>,
    }
}

/// What holds for one template.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effective {
    pub keep_last: u32,
    pub keep_within: Option<Duration>,
    pub rollback: u32,
}

/// A part of a file system: `10GiB`, or `10%`.
///
/// ```
/// use template_store::gc::Space;
///
/// assert_eq!("10GiB".parse::<Space>()?.of(1 << 40), 10 << 30);
/// assert_eq!("10%".parse::<Space>()?.of(1000), 100);
/// assert!("120%".parse::<Space>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of its size.
    Percent(f64),
}

impl Space {
    /// The bytes that this is on a file system of so many bytes.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Space::Bytes(bytes) => bytes,
            Space::Percent(percent) => (total as f64 * percent / 100.0) as u64,
        }
    }
}

impl FromStr for Space {
    type Err = String;

    fn from_str(text: &str) -> Result<Space, String> {
        let Some(number) = text.trim().strip_suffix('%') else { return parse_size(text).map(Space::Bytes) };
        let percent = number.trim().parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
        percent.map(Space::Percent).ok_or_else(|| format!("{text:?} is not a share from 0% to 100%"))
    }
}

/// A number of bytes as people write it: `512MiB`, `200GiB`, `1.5TB`.
///
/// # Errors
/// Something else; the text says what is expected.
///
/// ```
/// assert_eq!(template_store::gc::parse_size("1.5GiB").unwrap(), 3 << 29);
/// assert!(template_store::gc::parse_size("many").is_err());
/// ```
pub fn parse_size(text: &str) -> Result<u64, String> {
    let parsed: Result<bytesize::ByteSize, String> = text.trim().parse();
    parsed.map(|size| size.as_u64()).map_err(|_| format!("{text:?} is not a size such as 512MiB, 200GiB or 1.5TB"))
}

/// A length of time as people write it: `14d`, `36h`, `2w`; a day is 24 hours.
///
/// # Errors
/// Something else; the text says what is expected.
///
/// ```
/// assert_eq!(template_store::gc::parse_age("14d").unwrap().as_secs(), 14 * 86_400);
/// assert!(template_store::gc::parse_age("soon").is_err());
/// ```
pub fn parse_age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a length of time such as 14d, 36h or 2w");
    let span: jiff::Span = text.trim().parse().map_err(|_| wrong())?;
    let length = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    Duration::try_from(length).map_err(|_| wrong())
}

/// `.store/config.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    gc: GcTable,
    /// Read where remotes are opened; a collection must not fail for a mistake in it.
    #[serde(rename = "remote")]
    _remote: serde::de::IgnoredAny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct GcTable {
    keep_last: Option<u32>,
    keep_within: Option<String>,
    rollback: Option<u32>,
    max_size: Option<String>,
    min_free: Option<String>,
    include_adopted: bool,
    template: BTreeMap<TemplateId, TemplateTable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TemplateTable {
    keep_last: Option<u32>,
    keep_within: Option<String>,
    rollback: Option<u32>,
}

impl GcTable {
    fn into_policy(self) -> Result<Policy, String> {
        let mut policy = Policy::default()
            .keep_within(self.keep_within.as_deref().map(parse_age).transpose()?)
            .rollback(self.rollback)
            .max_size(self.max_size.as_deref().map(parse_size).transpose()?)
            .min_free(self.min_free.as_deref().map(str::parse::<Space>).transpose()?)
            .adopted(if self.include_adopted { Adopted::Collect } else { Adopted::Keep });
        policy.keep_last = self.keep_last.unwrap_or(policy.keep_last);
        for (id, table) in self.template {
            let keep_within = table.keep_within.as_deref().map(parse_age).transpose()?;
            let limits = Limits::default().keep_last(table.keep_last).keep_within(keep_within).rollback(table.rollback);
            policy = policy.template(id, limits);
        }
        Ok(policy)
    }
}

/// Lengths of time as whole seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(|time| time.as_secs()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_secs))
    }
}
