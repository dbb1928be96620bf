//! What the library logs: on stderr, each a line, as the program's own notes are.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use super::output::shown;

/// Shows what is logged at this level, and what is worse.
pub(super) fn show(level: Level) {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).event_format(Line).init();
}

struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "note",
            _ => "debug",
        };
        // What it tells of may have been named by anybody.
        writeln!(writer, "{level}: {}", shown(&text))
    }
}
