//! What others say, made fit to be shown: one line of it, that names no secret and says nothing to a terminal.

use object_store::Error as StoreError;
use url::Url;

/// Characters of what may be a page of a server.
const MOST: usize = 600;

/// What somebody else says, as an error may quote it.
pub(super) fn plain(text: &str) -> String {
    let line = text.split_whitespace().map(without_secrets).collect::<Vec<_>>().join(" ");
    let mut shown = String::new();
    for (at, char) in line.chars().enumerate() {
        match char {
            _ if at == MOST => {
                shown.push('…');
                break;
            }
            _ if char.is_control() => shown.extend(char.escape_default()),
            _ => shown.push(char),
        }
    }
    shown
}

/// A word of a text: of a URL, neither who asks nor what is asked, which may be a signature.
fn without_secrets(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else { return word.to_owned() };
    let end_of_host = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let start = rest[..end_of_host].rfind('@').map_or(0, |at| at + 1);
    let user = if start > 0 { "…@" } else { "" };
    match rest[start..].split_once('?') {
        Some((path, query)) => {
            let end = query.find([')', '"', '\'', '<', '>', ';']).map_or("", |at| &query[at..]);
            format!("{scheme}://{user}{path}?…{end}")
        }
        None => format!("{scheme}://{user}{}", &rest[start..]),
    }
}

/// A URL that somebody gave for a remote, which need not be one.
pub(super) fn url(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().collect() } else { vec![c] };
    if !holds_secrets(text) {
        return text.chars().flat_map(escaped).collect();
    }
    let scheme = text.find("://").map_or("", |at| &text[..at + 3]);
    let place = &text[text.rfind('@').map_or(scheme.len(), |at| at + 1)..];
    match text.find('?') {
        // Of the two, either may be in the other.
        Some(query) if text.rfind('@').is_some_and(|at| query < at) => format!("{scheme}…"),
        _ => format!("{scheme}…@{}", place.split('?').next().unwrap_or_default()).chars().flat_map(escaped).collect(),
    }
}

/// Whether there is, or may be, more in a URL than a place.
pub(super) fn holds_secrets(text: &str) -> bool {
    match Url::parse(text) {
        Ok(url) if text.contains("://") => {
            !url.username().is_empty() || url.password().is_some() || url.query().is_some()
        }
        // A slip of the keyboard before it, and a password is in a directory's name.
        _ => text.split_once('@').is_some_and(|(before, _)| before.contains(':')),
    }
}

/// An error with what caused it, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// The status with which a server answered, if it answered.
pub(super) fn status(text: &str) -> Option<u16> {
    let (_, after) = text.split_once("status code: ")?;
    after.get(..3)?.parse().ok()
}

/// What a server says of other bytes than were sent; the last two of a list of parts.
const CHANGED: [&str; 6] = [
    "BadDigest",
    "InvalidDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
    "MalformedXML",
    "InvalidPart",
];

/// Whether the server got other bytes than were sent, and says so.
pub(super) fn was_changed(text: &str) -> bool {
    CHANGED.iter().any(|code| text.contains(code))
}

/// Whether the same request may succeed the next time. What a server answers with 5xx was asked for again already.
pub(super) fn may_pass(error: &StoreError) -> bool {
    let text = chain(error);
    match error {
        StoreError::Generic { .. } => was_changed(&text) || status(&text).is_none_or(|status| status == 408),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        for (text, shown) in [
            ("s3://key:secret@bucket/a", "s3://…@bucket/a"),
            ("s3://key:sec/ret@bucket/a", "s3://…@bucket/a"),
            ("https://host:99999999/a", "https://host:99999999/a"),
            ("https://key:secret@host:99999999/a", "https://…@host:99999999/a"),
            ("https:/key:secret@host/a", "…@host/a"),
            ("https://host/a?sig=secret", "https://…@host/a"),
            ("https://key:sec?ret@host/a", "https://…"),
            ("s3://bucket/a@b", "s3://bucket/a@b"),
            ("/mnt/a@b", "/mnt/a@b"),
        ] {
            assert_eq!(url(text), shown);
        }
        let said = "error sending request for url (http://me:secret@host/b?sig=secret) to\nhttp://host/a@b \u{1b}[2J";
        assert_eq!(plain(said), "error sending request for url (http://…@host/b?…) to http://host/a@b \\u{1b}[2J");
    }
}
