//! What a document may cost. Whoever can write one may have written it to hurt.

use super::FormatError;

/// The brackets, colons and commas of a JSON document, which is as many values as it can have. Each takes up to a hundred
/// bytes of memory while the document is read. A revision of 100,000 files has 700,000.
pub(crate) const MOST_PARTS: usize = 1_000_000;

/// The bytes of a TOML document: people write it.
const LARGEST_TOML: usize = 1024 * 1024;

/// So much of a reason is shown, in characters: it may quote the document.
const LONGEST_REASON: usize = 1000;

/// Refuses JSON that would take much more memory than it has bytes.
pub(crate) fn check_parts(what: &'static str, bytes: &[u8], most: usize) -> Result<(), FormatError> {
    let is_part = |byte: &&u8| matches!(byte, b'[' | b'{' | b',' | b':');
    if bytes.len() > most && bytes.iter().filter(is_part).count() > most {
        return Err(FormatError::invalid(what, format!("it has more than {most} parts")));
    }
    Ok(())
}

/// Refuses JSON whose values are nested deeper than this: written as people read it, each level adds to every line below it.
#[cfg(feature = "remote")]
pub(crate) fn check_depth(what: &'static str, bytes: &[u8], most: usize) -> Result<(), FormatError> {
    let (mut depth, mut in_text, mut is_escaped) = (0, false, false);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_text => is_escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text && depth == most => {
                return Err(FormatError::invalid(what, format!("it is nested more than {most} levels deep")));
            }
            b'[' | b'{' if !in_text => depth += 1,
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Refuses TOML that nobody has written by hand.
pub(crate) fn check_toml(what: &'static str, text: &str) -> Result<(), FormatError> {
    if text.len() > LARGEST_TOML {
        let reason = format!("it has {} bytes, and may have {LARGEST_TOML}", text.len());
        return Err(FormatError::invalid(what, reason));
    }
    Ok(())
}

/// A reason that fits on a screen.
pub(super) fn shorten(mut reason: String) -> String {
    if let Some((end, _)) = reason.char_indices().nth(LONGEST_REASON) {
        reason.truncate(end);
        reason.push('…');
    }
    reason
}
