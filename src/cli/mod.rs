//! The program's commands, one file a group. All printing is here; everything else is the library's.

mod adopt;
mod args;
mod build;
mod cached;
mod change;
mod child;
mod du;
mod gc;
mod input;
mod instance;
mod keep;
mod log;
mod look;
mod output;
mod publish;
mod remote;
mod run;
mod share;
mod snapshot;
mod terminal;
mod verify;

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::Parser;
use template_store::{Error, ErrorKind, Store, StoreOptions};

use args::{Args, Command};
use output::Output;

/// What a command ends with.
pub(crate) type Result<T = Status> = std::result::Result<T, Failure>;

/// How a command ended that did what it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Done,
    /// An answer that is no error of the program: not reproducible.
    Failed,
    NotFound,
    Damaged,
    /// It would not.
    Refused,
    /// The exit code of a command that was run.
    Code(u8),
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> ExitCode {
        ExitCode::from(match status {
            Status::Done => 0,
            Status::Failed => 1,
            Status::NotFound => 3,
            Status::Damaged => 4,
            Status::Refused => 5,
            Status::Code(code) => code,
        })
    }
}

/// Why a command could not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    Store(Error),
    /// A mistake in the call.
    Usage(String),
    /// Something else: text and exit code.
    Other(String, u8),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Store(error.into())
    }
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Store(error) => match error.kind() {
                ErrorKind::Invalid => 2,
                ErrorKind::NotFound => 3,
                ErrorKind::Damaged => 4,
                ErrorKind::Refused => 5,
                _ => 1,
            },
            Failure::Usage(_) => 2,
            Failure::Other(_, code) => *code,
        }
    }

    fn text(&self) -> String {
        match self {
            Failure::Store(error) => error.to_string(),
            Failure::Usage(text) | Failure::Other(text, _) => text.clone(),
        }
    }
}

pub(crate) fn main() -> ExitCode {
    // The helper that starts a builder's command must not be parsed: its arguments are the command's own.
    let words: Vec<_> = std::env::args_os().collect();
    if words.get(1).is_some_and(|word| word == child::HELPER) {
        return child::exec(&words[2..]);
    }
    let args = match Args::try_parse_from(&words) {
        Ok(args) => args,
        Err(error) => return usage(&error, words.iter().any(|word| word == "--json")),
    };
    raise_file_limit();
    let output = Output::new(args.json, args.quiet);
    show_log(&args);
    match dispatch(&args, &output) {
        Ok(status) => status.into(),
        Err(failure) => {
            output.failure(&failure.text(), failure.code());
            ExitCode::from(failure.code())
        }
    }
}

/// What the library logs goes to stderr: warnings, and each change to the disk for those who want to see it.
fn show_log(args: &Args) {
    let level = match () {
        () if args.verbose => tracing::Level::DEBUG,
        () if args.quiet => tracing::Level::ERROR,
        () => tracing::Level::WARN,
    };
    log::show(level);
}

/// Says what is wrong with a call, or the help that it asks for.
fn usage(error: &clap::Error, json: bool) -> ExitCode {
    if json && error.use_stderr() {
        Output::new(true, false).failure(error.to_string().trim_start_matches("error: ").trim_end(), 2);
    } else {
        let _ = error.print();
    }
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

/// Each revision that is held takes a descriptor, and a store may have thousands.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

fn dispatch(args: &Args, output: &Output) -> Result {
    let session = Session { args, output };
    match &args.command {
        Command::Init(init) => change::init(&session, init),
        Command::Create(create) => change::create(&session, create),
        Command::Apply { file } => change::apply(&session, file),
        Command::Build(build) => build::build(&session, build),
        Command::Publish(publish) => publish::publish(&session, publish),
        Command::Lookup(lookup) => look::lookup(&session, lookup),
        Command::List => look::list(&session),
        Command::Show { target } => look::show(&session, target),
        Command::Path { target, artifact } => look::path(&session, target, artifact.as_deref()),
        Command::History { id } => look::history(&session, id),
        Command::Activate(activate) => change::activate(&session, activate),
        Command::Rollback { id } => change::rollback(&session, id),
        Command::Rm { target, force } => change::remove(&session, target, *force),
        Command::Adopt { dir } => adopt::adopt(&session, dir),
        Command::Run { target, command } => run::run(&session, target, command),
        Command::Instance(args) => instance::instance(&session, args),
        Command::Snapshot(args) => snapshot::snapshot(&session, args),
        Command::Pin(pin) => keep::pin(&session, pin),
        Command::Unpin { name } => keep::unpin(&session, name),
        Command::Pins => keep::pins(&session),
        Command::Gc(args) => gc::gc(&session, args),
        Command::Why { target, policy } => gc::why(&session, target, policy),
        Command::Du { id } => du::du(&session, id.as_ref()),
        Command::Verify(verify) => verify::verify(&session, verify),
        Command::Push(push) => share::push(&session, push),
        Command::Pull(pull) => share::pull(&session, pull),
        Command::Remote(command) => remote::remote(&session, command),
        Command::Completions { shell } => {
            args::completions(*shell);
            Ok(Status::Done)
        }
    }
}

/// What every command needs.
pub(crate) struct Session<'a> {
    pub args: &'a Args,
    pub output: &'a Output,
}

impl Session<'_> {
    /// The store that the call names, which must exist.
    pub fn open(&self) -> Result<Store> {
        Ok(Store::open_with(self.root()?, &self.options())?)
    }

    /// The store that the call names; it is made when there is none.
    pub fn open_or_init(&self) -> Result<Store> {
        Ok(Store::init(self.root()?, &self.options())?)
    }

    /// The store that the call names, to change it, if there is one.
    pub fn open_if_there(&self) -> Result<Option<Store>> {
        match Store::open_with(self.root()?, &self.options()) {
            // What must not be changed says so before anything else is looked at.
            Ok(store) => {
                store.check_writable()?;
                Ok(Some(store))
            }
            Err(Error::NoStore { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub fn options(&self) -> StoreOptions {
        let options = StoreOptions::default();
        if self.args.allow_network_fs { options.allow_network_fs() } else { options }
    }

    /// `--store`, `$TEMPLATE_STORE_DIR`, `$MVM_DATA_DIR`, `$XDG_DATA_HOME/template-store`, `~/.local/share/template-store`.
    pub fn root(&self) -> Result<Utf8PathBuf> {
        if let Some(root) = &self.args.store {
            return Ok(root.clone());
        }
        let from = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty()).map(Utf8PathBuf::from);
        from("TEMPLATE_STORE_DIR")
            .or_else(|| from("MVM_DATA_DIR"))
            .or_else(|| from("XDG_DATA_HOME").map(|dir| dir.join("template-store")))
            .or_else(|| from("HOME").map(|dir| dir.join(".local/share/template-store")))
            .ok_or_else(|| Failure::Usage("no store is named, and $HOME is not set; say --store DIR".into()))
    }
}
