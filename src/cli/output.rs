//! Results on stdout: text for people, or one JSON document; everything else on stderr.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};

use serde_json::{Value, json};
use template_store::Revision;

pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub fn new(json: bool, quiet: bool) -> Output {
        Output { json, quiet }
    }

    /// The result of a command, in the form that was asked for.
    pub fn result(&self, document: impl FnOnce() -> Value, text: impl FnOnce() -> String) {
        if self.json {
            print(&format!("{:#}\n", document()));
        } else {
            let text = text();
            let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            print(&format!("{}{end}", plain(&text)));
        }
    }

    /// The result of a command that may be long: the document is written as it is made.
    pub fn document(&self, document: &impl serde::Serialize, text: impl FnOnce() -> String) {
        if !self.json {
            return self.result(|| Value::Null, text);
        }
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        // A reader that has seen enough is no error.
        let _ = serde_json::to_writer_pretty(&mut out, document);
        let _ = out.write_all(b"\n").and_then(|()| out.flush());
    }

    /// Something that the user should know.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("note: {}", shown(text));
        }
    }

    pub fn failure(&self, text: &str, code: u8) {
        // Some errors have several lines; none of them is to look like another message.
        eprintln!("error: {}", plain(text).replace('\n', "\n       "));
        if self.json {
            print(&format!("{:#}\n", json!({ "error": text, "exit_code": code })));
        }
    }

    /// Whether long work may draw on the terminal.
    pub fn draws(&self) -> bool {
        !self.quiet && !self.json && std::io::stderr().is_terminal()
    }
}

/// Text of several lines, in which nothing speaks to the terminal.
fn plain(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.is_control() && c != '\n')
}

/// Text from elsewhere as it may stand in a line. Names, commands and reasons come from anybody: none of them may speak
/// to the terminal, or begin a line of its own.
pub(crate) fn shown(text: &(impl AsRef<str> + ?Sized)) -> Cow<'_, str> {
    escaped(text.as_ref(), char::is_control)
}

fn escaped(text: &str, speaks: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&speaks) {
        return text.into();
    }
    text.chars().flat_map(|c| if speaks(c) { c.escape_default().collect() } else { vec![c] }).collect()
}

/// A reader that has seen enough is no error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// A table without lines.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    let rows = rows.into_iter().map(|row| row.iter().map(|cell| shown(cell).into_owned()).collect::<Vec<_>>());
    table.load_preset(comfy_table::presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A revision as JSON.
pub(crate) fn revision_json(revision: &Revision) -> Value {
    json!({
        "template": revision.template(),
        "revision": revision.id(),
        "path": revision.path(),
        "kernel": revision.kernel(),
        "rootfs": revision.rootfs(),
        "fc_base_config": revision.fc_base_config(),
        "initrd": revision.initrd(),
        "cache_key": revision.cache_key(),
    })
}

/// A size for people, in powers of 1024.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_speaks_to_the_terminal() {
        let text = "web\u{1b}[2J\u{9b}x\u{7f}\r\n\tüß 雪";
        assert_eq!(super::plain(text), "web\\u{1b}[2J\\u{9b}x\\u{7f}\\r\n\\tüß 雪");
        assert_eq!(super::shown(text), "web\\u{1b}[2J\\u{9b}x\\u{7f}\\r\\n\\tüß 雪");
    }
}
