//! `template.json`, and the TOML file that defines several templates at once.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{CURRENT_SCHEMA_VERSION, Extra, FormatError, check_toml, default_schema_version, pretty, versioned};
use crate::id::{InvalidName, Profile, Role, TemplateId};

/// Several templates that are built from one flake, as a TOML file defines them.
///
/// ```
/// use template_store::TemplateConfig;
///
/// let config = TemplateConfig::from_toml(r#"
///     template_id = "web"
///     flake_ref = "."
///
///     [[variants]]
///     role = "worker"
///     vcpus = 2
///     mem_mib = 512
/// "#)?;
/// let spec = &config.specs("2026-01-01T00:00:00Z")?[0];
/// assert_eq!((spec.template_id.as_str(), spec.profile.as_str()), ("web-worker", "minimal"));
/// # Ok::<(), template_store::FormatError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateConfig {
    /// The base of the name of a variant that has none.
    #[serde(default)]
    pub template_id: String,
    /// The flake that all variants are built from.
    pub flake_ref: String,
    /// The default profile.
    #[serde(default = "default_profile")]
    pub profile: String,
    /// The templates.
    pub variants: Vec<TemplateVariant>,
}

/// One template of a [`TemplateConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateVariant {
    /// The template's id; if empty, `<template_id>-<role>`.
    #[serde(default)]
    pub name: String,
    /// The role of the workload.
    pub role: String,
    /// The build profile.
    #[serde(default = "default_profile")]
    pub profile: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Size of the data disk in MiB; 0 for none.
    #[serde(default)]
    pub data_disk_mib: u32,
}

const WHAT: &str = "template configuration";

fn default_profile() -> String {
    "minimal".to_owned()
}

impl TemplateConfig {
    /// Reads a TOML file.
    ///
    /// A variant that names no profile gets the profile of the file, and that is `minimal` if the file names none.
    ///
    /// # Errors
    /// What is wrong, with the line it stands on.
    pub fn from_toml(text: &str) -> Result<TemplateConfig, FormatError> {
        check_toml(WHAT, text)?;
        let mut config: TemplateConfig = toml::from_str(text).map_err(|error| FormatError::invalid(WHAT, error))?;
        // serde's default does not know the profile of the file.
        for (variant, table) in config.variants.iter_mut().zip(&tables(text)?) {
            if !table.get_ref().contains_key("profile") {
                variant.profile.clone_from(&config.profile);
            }
        }
        Ok(config)
    }

    /// The templates that a TOML file defines, created at `now` (RFC 3339).
    ///
    /// # Errors
    /// What is wrong, with the line it stands on, or the line on which its variant begins.
    ///
    /// ```
    /// use template_store::TemplateConfig;
    ///
    /// let text = "flake_ref = '.'\n\n[[variants]]\nname = 'web'\nrole = 'a:b'\nvcpus = 1\nmem_mib = 256\n";
    /// let error = TemplateConfig::specs_from_toml(text, "2026-01-01T00:00:00Z").unwrap_err();
    /// assert!(error.to_string().contains("line 3"));
    /// ```
    pub fn specs_from_toml(text: &str, now: &str) -> Result<Vec<TemplateSpec>, FormatError> {
        let config = TemplateConfig::from_toml(text)?;
        for (variant, table) in config.variants.iter().zip(&tables(text)?) {
            let line = || text[..table.span().start].matches('\n').count() + 1;
            config.check(variant).map_err(|reason| FormatError::invalid(WHAT, format!("line {}: {reason}", line())))?;
        }
        config.specs(now)
    }

    /// What is wrong with a variant by itself.
    fn check(&self, variant: &TemplateVariant) -> Result<(), String> {
        self.spec(variant, "").map_err(|error| error.to_string())?;
        match variant {
            TemplateVariant { vcpus: 0, .. } => Err("vcpus is 0; a VM needs at least one".into()),
            TemplateVariant { mem_mib: 0, .. } => Err("mem_mib is 0; a VM needs memory".into()),
            _ => Ok(()),
        }
    }

    /// The templates that this file defines, created at `now` (RFC 3339).
    ///
    /// # Errors
    /// A variant whose id, profile or role is not valid, or two variants with one id.
    pub fn specs(&self, now: &str) -> Result<Vec<TemplateSpec>, FormatError> {
        let invalid = |reason: String| FormatError::invalid(WHAT, reason);
        let (mut specs, mut ids) = (Vec::new(), HashSet::new());
        if self.variants.is_empty() {
            return Err(invalid("it has no variants; add a [[variants]] table".into()));
        }
        for variant in &self.variants {
            let spec = self.spec(variant, now).map_err(|error| invalid(error.to_string()))?;
            if !ids.insert(spec.template_id.clone()) {
                return Err(invalid(format!("two variants have the id {:?}", spec.template_id)));
            }
            specs.push(spec);
        }
        Ok(specs)
    }

    fn spec(&self, variant: &TemplateVariant, now: &str) -> Result<TemplateSpec, InvalidName> {
        let (profile, role) = (variant.profile.parse()?, variant.role.parse()?);
        let id = variant.id(&self.template_id).parse()?;
        let mut spec = TemplateSpec::new(&id, &self.flake_ref, &profile, &role, now);
        spec.vcpus = variant.vcpus;
        spec.mem_mib = variant.mem_mib;
        spec.data_disk_mib = variant.data_disk_mib;
        Ok(spec)
    }
}

/// The variants of a file as they stand there: what they say, and where.
fn tables(text: &str) -> Result<Vec<toml::Spanned<toml::Table>>, FormatError> {
    #[derive(Deserialize)]
    struct Tables {
        variants: Vec<toml::Spanned<toml::Table>>,
    }
    let tables: Tables = toml::from_str(text).map_err(|error| FormatError::invalid(WHAT, error))?;
    Ok(tables.variants)
}

impl TemplateVariant {
    /// The variant's template id: its name, or `<template_id>-<role>` when it has none.
    pub fn id(&self, template_id: &str) -> String {
        if self.name.is_empty() { format!("{template_id}-{}", self.role) } else { self.name.clone() }
    }
}

/// The definition of a template: `template.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateSpec {
    /// The version of this document; 1 when absent.
    #[serde(default = "default_schema_version")]
    pub schema_version: u32,
    /// The template's id.
    pub template_id: String,
    /// The flake that it is built from.
    pub flake_ref: String,
    /// The build profile.
    pub profile: String,
    /// The role of the workload.
    pub role: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Size of the data disk in MiB; 0 for none.
    pub data_disk_mib: u32,
    /// When it was made (RFC 3339).
    pub created_at: String,
    /// When it was last changed (RFC 3339).
    pub updated_at: String,
    /// Fields of a newer program.
    #[serde(flatten)]
    pub extra: Extra,
}

impl TemplateSpec {
    /// A template with 2 virtual CPUs, 512 MiB of memory and no data disk, made at `now` (RFC 3339).
    pub fn new(id: &TemplateId, flake_ref: &str, profile: &Profile, role: &Role, now: &str) -> TemplateSpec {
        TemplateSpec {
            schema_version: CURRENT_SCHEMA_VERSION,
            template_id: id.to_string(),
            flake_ref: flake_ref.to_owned(),
            profile: profile.to_string(),
            role: role.to_string(),
            vcpus: 2,
            mem_mib: 512,
            data_disk_mib: 0,
            created_at: now.to_owned(),
            updated_at: now.to_owned(),
            extra: Extra::new(),
        }
    }

    /// Reads `template.json`.
    ///
    /// # Errors
    /// Not valid, or of a newer version.
    ///
    /// ```
    /// use template_store::TemplateSpec;
    ///
    /// let spec = TemplateSpec::new(&"web".parse()?, ".", &"minimal".parse()?, &"worker".parse()?, "2026-01-01T00:00:00Z");
    /// assert_eq!(TemplateSpec::from_json(&spec.to_json()).unwrap(), spec);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn from_json(bytes: &[u8]) -> Result<TemplateSpec, FormatError> {
        versioned("template.json", bytes)
    }

    /// The bytes of `template.json`.
    pub fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }

    /// Whether the two define the same template, whenever they were made.
    pub fn defines_the_same(&self, other: &TemplateSpec) -> bool {
        let timeless = |spec: &TemplateSpec| TemplateSpec {
            created_at: String::new(),
            updated_at: String::new(),
            extra: Extra::new(),
            ..spec.clone()
        };
        timeless(self) == timeless(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "template_id = 'web'\nflake_ref = '.'\n";

    #[test]
    fn a_mistake_is_shown_with_its_line() {
        let variant =
            |lines: &str| format!("{HEAD}[[variants]]\nrole = 'a'\nvcpus = 1\nmem_mib = 1\n\n[[variants]]\n{lines}");
        for (lines, shown) in [
            ("role = 'b'\nvcpus = 300\nmem_mib = 1\n", "line 10"),
            ("role = 'b:c'\nvcpus = 1\nmem_mib = 1\n", "line 8"),
            ("role = 'b'\nvcpus = 0\nmem_mib = 1\n", "line 8: vcpus"),
            ("role = ", "line 9"),
        ] {
            let error = TemplateConfig::specs_from_toml(&variant(lines), "now").unwrap_err().to_string();
            assert!(error.contains(shown), "{error}");
        }
    }

    #[test]
    fn a_variant_without_a_profile_has_the_one_of_the_file() {
        let variants = "[[variants]]\nrole = 'a'\nvcpus = 1\nmem_mib = 1\n[[variants]]\nrole = 'b'\nprofile = 'own'\nvcpus = 1\nmem_mib = 1\n";
        let profiles = |head: &str| {
            let config = TemplateConfig::from_toml(&format!("{HEAD}{head}{variants}")).unwrap();
            config.variants.into_iter().map(|variant| variant.profile).collect::<Vec<_>>()
        };
        assert_eq!(profiles(""), ["minimal", "own"]);
        assert_eq!(profiles("profile = 'full'\n"), ["full", "own"]);
    }
}
