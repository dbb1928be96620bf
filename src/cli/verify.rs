//! `verify`: what is wrong with a store, and what was mended.

use jiff::Timestamp;
use serde_json::json;
use template_store::{Depth, Finding, Mended, Remote, Report, Severity, Store, VerifyOptions};

use super::args::Verify;
use super::output::{size, table};
use super::remote::settings;
use super::terminal::Terminal;
use super::{Result, Session, Status};

/// What was found and done; without a repair, all remains.
struct Done {
    report: Report,
    mended: Vec<Mended>,
    remaining: Vec<Finding>,
}

pub(crate) fn verify(session: &Session, args: &Verify) -> Result {
    let store = session.open()?;
    let depth = if args.quick { Depth::Quick } else { Depth::Full };
    let options = VerifyOptions::default().depth(depth).since(args.since).sample(args.sample);
    let mut terminal = Terminal::new(session.output);
    let (report, mended, remaining) = match args.repair {
        true => {
            let repaired = match &args.remote {
                Some(named) => {
                    let remote = Remote::open(&settings(Some(&store), Some(named))?)?;
                    store.repair_from(&remote, &options, &mut terminal)?
                }
                None => store.repair(&options, &mut terminal)?,
            };
            (repaired.report, repaired.mended, repaired.remaining)
        }
        false => {
            let report = store.verify(&options, &mut terminal)?;
            let counts = |finding: &&Finding| finding.severity > Severity::Note;
            let remaining = report.findings.iter().filter(counts).cloned().collect();
            (report, Vec::new(), remaining)
        }
    };
    let done = Done { report, mended, remaining };
    let is_clean = done.remaining.is_empty();
    let document = || {
        json!({
            "clean": is_clean,
            "findings": done.report.findings,
            "revisions": done.report.revisions,
            "files": done.report.files,
            "bytes_hashed": done.report.bytes_hashed,
            "repaired": done.mended,
            "remaining": done.remaining,
        })
    };
    session.output.result(document, || text(&store, &done, args.repair));
    Ok(if is_clean { Status::Done } else { Status::Damaged })
}

/// A time, or how long ago it was.
pub(crate) fn since(text: &str) -> std::result::Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let refused = || format!("{text:?} is neither a time (2026-01-31T12:00:00Z) nor an age (7d, 12h)");
    let age: jiff::Span = text.parse().map_err(|_| refused())?;
    let now = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    match now.checked_sub(age) {
        Ok(time) if time <= now => Ok(time.timestamp()),
        _ => Err(refused()),
    }
}

/// `5%` or `5`.
pub(crate) fn percent(text: &str) -> std::result::Result<f64, String> {
    let number: Option<f64> = text.strip_suffix('%').unwrap_or(text).trim().parse().ok();
    number
        .filter(|number| *number > 0.0 && *number <= 100.0)
        .ok_or_else(|| format!("{text:?} is no percentage above 0 and up to 100"))
}

fn text(store: &Store, done: &Done, repair: bool) -> String {
    let mut text = findings(store, &done.report.findings);
    if repair && !done.mended.is_empty() {
        let rows = done.mended.iter().map(|mended| vec![below(store, &mended.path), mended.how.clone()]);
        text += &format!("\n{}", table(&["MENDED", "HOW"], rows));
    }
    if repair && !done.remaining.is_empty() {
        text += &format!("\nnot mended:\n{}", findings(store, &done.remaining));
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text + &summary(&done.report, repair.then_some(done))
}

fn findings(store: &Store, findings: &[Finding]) -> String {
    if findings.is_empty() {
        return String::new();
    }
    let row = |finding: &Finding| {
        let (severity, kind) = (finding.severity.to_string(), finding.kind.to_string());
        vec![severity, kind, below(store, &finding.path), finding.detail.clone()]
    };
    table(&["SEVERITY", "WHAT", "PATH", "DETAIL"], findings.iter().map(row))
}

/// A path below the store, which the user has named.
fn below(store: &Store, path: &camino::Utf8Path) -> String {
    path.strip_prefix(store.layout().root()).unwrap_or(path).to_string()
}

fn summary(report: &Report, repaired: Option<&Done>) -> String {
    let count = |severity| report.count(severity);
    let mut text = format!(
        "{} revisions, {} files, {} read: {} errors, {} warnings, {} notes",
        report.revisions,
        report.files,
        size(report.bytes_hashed),
        count(Severity::Error),
        count(Severity::Warning),
        count(Severity::Note),
    );
    if let Some(repaired) = repaired {
        text += &format!("; {} mended, {} remain", repaired.mended.len(), repaired.remaining.len());
    }
    text + "\n"
}
