//! `adopt`: an mvm directory becomes a store.

use std::collections::BTreeSet;

use camino::Utf8Path;
use serde_json::json;
use template_store::{Adopted, Store};

use super::output::shown;
use super::terminal::Terminal;
use super::{Result, Session, Status};

pub(crate) fn adopt(session: &Session, dir: &Utf8Path) -> Result {
    let mut terminal = Terminal::new(session.output);
    let adopted = Store::adopt(dir, &session.options(), &mut terminal)?;
    for left in &adopted.left {
        session.output.note(&format!("{} was left as it is: {}", left.path, left.reason));
    }
    let (root, notes) = (adopted.store.layout().root(), terminal.notes());
    let document = || {
        let revisions = adopted.revisions.iter().map(|(id, revision)| json!({ "template": id, "revision": revision }));
        let left = adopted.left.iter().map(|left| json!({ "path": left.path, "reason": left.reason }));
        json!({
            "store": root,
            "adopted": revisions.collect::<Vec<_>>(),
            "left": left.collect::<Vec<_>>(),
            "notes": notes,
        })
    };
    session.output.result(document, || text(&adopted));
    Ok(Status::Done)
}

fn text(adopted: &Adopted) -> String {
    let templates: BTreeSet<_> = adopted.revisions.iter().map(|(template, _)| template).collect();
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let (revisions, templates) = (count(adopted.revisions.len(), "revision"), count(templates.len(), "template"));
    let mut text = format!("adopted {revisions} of {templates}; {} is a store\n", adopted.store.layout().root());
    if !adopted.left.is_empty() {
        text += "left as they are:\n";
    }
    text.extend(adopted.left.iter().map(|left| format!("  {}: {}\n", shown(&left.path), shown(&left.reason))));
    text
}
