//! `pin`, `unpin`, `pins`: what is kept by name.

use jiff::Timestamp;
use serde_json::json;
use template_store::gc::parse_age;
use template_store::{Error, Pin, PinName, PinOptions};

use super::args::Pin as PinArgs;
use super::output::table;
use super::{Failure, Result, Session, Status};

pub(crate) fn pin(session: &Session, args: &PinArgs) -> Result {
    if let Some(until) = args.until.filter(|until| *until <= Timestamp::now()) {
        return Err(Failure::Usage(format!("--until {until} is over already: the pin would keep nothing")));
    }
    let store = session.open()?;
    let template = &args.target.template;
    // What is current is held until the pin is there: another may become so, and a collection run.
    let held = if args.target.revision.is_none() { store.current(template).ok() } else { None };
    let revision = match (&args.target.revision, &held) {
        (Some(revision), _) => revision.clone(),
        (None, Some(held)) => held.id().clone(),
        // One that is damaged can be pinned as well.
        (None, None) => store.current_id(template)?.ok_or_else(|| Error::NoCurrent { template: template.clone() })?,
    };
    let options = PinOptions::default().until(args.until).reason(args.reason.clone().unwrap_or_default());
    let pin = store.pin(&args.name, template, &revision, &options)?;
    session.output.result(|| json!(pin), || format!("{template}@{revision} is kept as {}{}", args.name, until(&pin)));
    Ok(Status::Done)
}

fn until(pin: &Pin) -> String {
    pin.until.map(|until| format!(" until {until}")).unwrap_or_default()
}

pub(crate) fn unpin(session: &Session, name: &PinName) -> Result {
    session.open()?.unpin(name)?;
    session.output.result(|| json!({ "unpinned": name }), || format!("{name} keeps nothing any more"));
    Ok(Status::Done)
}

pub(crate) fn pins(session: &Session) -> Result {
    let pins = session.open()?.pins()?;
    let now = Timestamp::now();
    let row = |pin: &Pin| {
        let until = match pin.until {
            None => "for ever".to_owned(),
            Some(until) if pin.holds_at(now) => until.to_string(),
            Some(until) => format!("{until} (expired)"),
        };
        vec![pin.name().to_owned(), format!("{}@{}", pin.template, pin.revision), until, pin.reason.clone()]
    };
    let text = || match pins.is_empty() {
        true => "nothing is pinned".into(),
        false => table(&["NAME", "REVISION", "UNTIL", "WHY"], pins.iter().map(row)),
    };
    session.output.result(|| json!(pins), text);
    Ok(Status::Done)
}

/// A moment: RFC 3339, or a length of time from now.
pub(crate) fn moment(text: &str) -> std::result::Result<Timestamp, String> {
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let from_now = parse_age(text).ok().and_then(|age| Timestamp::now().checked_add(age).ok());
    from_now.ok_or_else(|| format!("{text:?} is neither a time such as 2026-12-31T00:00:00Z nor a length such as 30d"))
}
