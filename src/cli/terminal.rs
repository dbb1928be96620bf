//! Long work on a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use template_store::{Attempt, Note, Progress, Stage};

use super::output::Output;

/// Draws a bar where there is a terminal, and keeps what is to be said.
pub(crate) struct Terminal<'a> {
    output: &'a Output,
    bar: Option<ProgressBar>,
    notes: Vec<String>,
}

impl<'a> Terminal<'a> {
    pub fn new(output: &'a Output) -> Terminal<'a> {
        Terminal { output, bar: None, notes: Vec::new() }
    }

    /// What was said, for the JSON document.
    pub fn notes(self) -> Vec<String> {
        self.notes
    }

    fn say(&mut self, text: String) {
        if self.notes.contains(&text) {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.note(&text)),
            None => self.output.note(&text),
        }
        self.notes.push(text);
    }
}

impl Progress for Terminal<'_> {
    fn begin(&mut self, stage: Stage, bytes: u64) {
        if !self.output.draws() {
            return;
        }
        let what = match stage {
            Stage::Copying => "copying",
            Stage::Sealing => "sealing",
            Stage::Comparing => "comparing",
            Stage::Collecting => "collecting",
            Stage::Looking => "looking",
            Stage::Verifying => "verifying",
            Stage::Sending => "sending",
            Stage::Fetching => "fetching",
            _ => "working",
        };
        let numbers = match stage {
            Stage::Collecting => "{pos}/{len} revisions",
            Stage::Looking => "{pos}/{len} templates",
            _ => "{bytes}/{total_bytes} {bytes_per_sec}",
        };
        let style =
            ProgressStyle::with_template(&format!("{{msg}} {{bar:30}} {numbers}")).expect("the template is valid");
        self.bar = Some(ProgressBar::new(bytes).with_style(style).with_message(what));
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn waiting(&mut self, on: &Attempt) {
        let command = if on.command.is_empty() { String::new() } else { format!(": `{}`", on.command) };
        self.say(format!(
            "process {} builds this since {} for {}{command}; waiting",
            on.pid, on.started_at, on.template
        ));
    }

    fn note(&mut self, note: Note) {
        self.say(note.to_string());
    }
}
