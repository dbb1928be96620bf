//! The one thing that the store changes in a Firecracker configuration.

use serde_json::{Value, json};

use super::{FormatError, pretty};

/// The configuration with these resources in its `machine-config`; everything else stays as it is.
///
/// Field names: Firecracker's API, `PUT /machine-config` (`vcpu_count`, `mem_size_mib`).
pub(crate) fn with_machine(bytes: &[u8], vcpus: u8, mem_mib: u32) -> Result<Vec<u8>, FormatError> {
    let what = "Firecracker configuration";
    let mut config: Value = super::plain(what, bytes)?;
    let object = config.as_object_mut().ok_or_else(|| FormatError::invalid(what, "it is not a JSON object"))?;
    let machine = object.entry("machine-config").or_insert_with(|| json!({}));
    let machine =
        machine.as_object_mut().ok_or_else(|| FormatError::invalid(what, "machine-config is not an object"))?;
    machine.insert("vcpu_count".into(), vcpus.into());
    machine.insert("mem_size_mib".into(), mem_mib.into());
    Ok(pretty(&config))
}
