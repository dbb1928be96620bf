//! The credentials that the tools of a cloud leave in a file; those in the environment are read by the object store.

use std::collections::HashMap;

use camino::Utf8PathBuf;

use crate::error::Result;
use crate::fs::read;

#[derive(PartialEq, Eq)]
pub(super) struct Aws {
    pub key_id: String,
    pub secret: String,
    pub token: Option<String>,
}

/// What `~/.aws/credentials` has for the profile, unless the environment says more than that.
pub(super) fn of_aws() -> Result<Option<Aws>> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let elsewhere = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_SKIP_SIGNATURE",
    ];
    if elsewhere.iter().any(|name| set(name).is_some()) {
        return Ok(None);
    }
    let file = set("AWS_SHARED_CREDENTIALS_FILE")
        .or_else(|| Some(format!("{}/.aws/credentials", set("HOME")?)))
        .map(Utf8PathBuf::from);
    let Some(bytes) = file.map(|file| read::user_bytes_if_there(&file)).transpose()?.flatten() else { return Ok(None) };
    let profile = set("AWS_PROFILE").unwrap_or_else(|| "default".into());
    Ok(parse(&String::from_utf8_lossy(&bytes), &profile))
}

/// A file of `[profile]` lines, each followed by lines `name = value`.
fn parse(text: &str, profile: &str) -> Option<Aws> {
    let mut values = HashMap::new();
    let mut here = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            here = name.trim() == profile;
        } else if let (true, Some((name, value))) = (here, line.split_once('=')) {
            values.insert(name.trim(), value.trim().to_owned());
        }
    }
    Some(Aws {
        key_id: values.remove("aws_access_key_id")?,
        secret: values.remove("aws_secret_access_key")?,
        token: values.remove("aws_session_token"),
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_profile_that_is_asked_for_is_read() {
        let text = "[default]\naws_access_key_id = A\naws_secret_access_key=B\n\n# more\n[ci]\n aws_access_key_id=C\n\
                    aws_secret_access_key = D=\naws_session_token = E\n[half]\naws_access_key_id = F\n";
        let of = |profile| parse(text, profile).map(|found| (found.key_id, found.secret, found.token));
        assert_eq!(of("default"), Some(("A".into(), "B".into(), None)));
        assert_eq!(of("ci"), Some(("C".into(), "D=".into(), Some("E".into()))));
        assert_eq!(of("half"), None);
        assert_eq!(of("none"), None);
    }
}
