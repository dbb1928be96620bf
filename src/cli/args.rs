//! The words of a call.

mod remotes;
mod vms;

use camino::Utf8PathBuf;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use template_store::gc::{Space, parse_age, parse_size};
use template_store::{
    ArtifactNames, ArtifactPath, InvalidName, PinName, Profile, Resources, RevisionId, Role, TemplateId,
};

pub(crate) use remotes::{AddRemote, AsCache, Pull, Push, Remote};
pub(crate) use vms::{AttachSnapshot, HostArgs, Instance, InstanceCommand, MakeInstance, Snapshot};

/// Keeps the images that microVMs start from: built once, published atomically, never stored twice
#[derive(Debug, Parser)]
#[command(name = "template-store", version, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done; 1 failed; 2 usage; 3 not found; 4 damage found; 5 in use, or would not.")]
pub(crate) struct Args {
    /// The store's directory [default: $TEMPLATE_STORE_DIR, $MVM_DATA_DIR, or template-store in the user's data directory]
    #[arg(long, global = true, value_name = "DIR")]
    pub store: Option<Utf8PathBuf>,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub json: bool,
    /// Say each change to the disk
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Say nothing but results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Use a store on a network file system, where the locks of other hosts may not count
    #[arg(long, global = true)]
    pub allow_network_fs: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a store
    Init(Init),
    /// Make a template
    Create(Create),
    /// Make or change all templates of a TOML file
    Apply {
        /// A template configuration: template_id, flake_ref, profile, [[variants]]
        file: Utf8PathBuf,
    },
    /// Reuse what was built from the same inputs, or run a command that builds it, and publish
    Build(Build),
    /// Publish files that were built elsewhere
    Publish(Publish),
    /// Print where the revision is that was built from these inputs
    Lookup(Lookup),
    /// List all templates
    ///
    /// Of a store with many revisions it shows what a collection noted: whether all files are there is for `show` or
    /// `verify` to say.
    List,
    /// Show a template or a revision
    Show {
        /// ID or ID@REVISION
        target: Target,
    },
    /// Print the path of a revision, or of a file in it
    Path {
        /// ID (its current revision) or ID@REVISION
        target: Target,
        /// vmlinux, rootfs, fc-base, initrd, or a path in the revision
        artifact: Option<String>,
    },
    /// Show which revisions were current, and when
    History {
        /// The template
        id: TemplateId,
    },
    /// Make a revision current
    Activate(Activate),
    /// Make the revision current that was so before
    Rollback {
        /// The template
        id: TemplateId,
    },
    /// Remove a revision, or a template with all its revisions
    Rm {
        /// ID or ID@REVISION
        target: Target,
        /// Remove what is in use as well, and what is current after going back to an earlier revision
        #[arg(long)]
        force: bool,
    },
    /// Make a data directory of mvm a store, where it is
    Adopt {
        /// The directory that holds templates/; it is the store
        dir: Utf8PathBuf,
    },
    /// Run a command while the revision is held; its paths are in $TEMPLATE_VMLINUX, $TEMPLATE_ROOTFS, …
    Run {
        /// ID (its current revision) or ID@REVISION
        target: Target,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<std::ffi::OsString>,
    },
    /// Make what one VM starts from: private disks, all else read-only, and a configuration
    Instance(Instance),
    /// Memory and disks of a paused VM, for warm starts
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Keep a revision by name: nothing collects or removes it
    Pin(Pin),
    /// Remove a pin
    Unpin {
        /// The pin's name
        name: PinName,
    },
    /// List all pins
    Pins,
    /// Collect what nobody needs; `.store/config.toml` may say what is kept
    Gc(Gc),
    /// Say why a revision is kept, or that the next gc removes it
    Why {
        /// ID (its current revision) or ID@REVISION
        target: Target,
        #[command(flatten)]
        policy: PolicyArgs,
    },
    /// Show what the store takes on the disk, and who of it
    Du {
        /// Only this template, with its revisions
        id: Option<TemplateId>,
    },
    /// Check everything that the store holds, and mend what is damaged
    Verify(Verify),
    /// Send a revision to a remote
    Push(Push),
    /// Fetch a revision from a remote
    Pull(Pull),
    /// Where other hosts get revisions from
    #[command(subcommand)]
    Remote(Remote),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// Whether what has returned must survive a power cut; fixed when the store is made [default: full]
    #[arg(long, value_enum)]
    pub durability: Option<DurabilityArg>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DurabilityArg {
    Full,
    None,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// The template: 1 to 63 of a-z 0-9 - _
    pub id: TemplateId,
    /// The flake that it is built from
    #[arg(long, value_name = "REF", default_value = ".")]
    pub flake_ref: String,
    /// The build profile
    #[arg(long, default_value = "minimal")]
    pub profile: Profile,
    /// The role of the workload
    #[arg(long)]
    pub role: Role,
    #[command(flatten)]
    pub machine: Machine,
}

/// What a VM gets.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Machine {
    /// Virtual CPUs [default for a new template: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub vcpus: Option<u8>,
    /// Memory in MiB [default for a new template: 512]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    pub mem: Option<u32>,
    /// Size of the data disk in MiB [default for a new template: 0, none]
    #[arg(long, value_name = "MIB")]
    pub data_disk: Option<u32>,
}

impl Machine {
    pub fn resources(&self) -> Resources {
        let default = Resources::default();
        Resources {
            vcpus: self.vcpus.unwrap_or(default.vcpus),
            mem_mib: self.mem.unwrap_or(default.mem_mib),
            data_disk_mib: self.data_disk.unwrap_or(default.data_disk_mib),
        }
    }
}

/// What a build is made from.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Inputs {
    /// The flake.lock [default: the one of the template's flake, if that is a directory]
    #[arg(long, value_name = "FILE")]
    pub flake_lock: Option<Utf8PathBuf>,
    /// The build profile [default: the template's]
    #[arg(long)]
    pub profile: Option<Profile>,
    /// The role of the workload [default: the template's]
    #[arg(long)]
    pub role: Option<Role>,
    /// The sources, as a whole tree [default: the flake.nix beside the flake.lock]
    #[arg(long, value_name = "DIR")]
    pub source: Option<Utf8PathBuf>,
    /// The flake that it is built from [default: the template's]
    #[arg(long, value_name = "REF")]
    pub flake_ref: Option<String>,
}

/// What the artifacts are called.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Names {
    /// The revision's id [default: it follows from the contents]
    #[arg(long, value_name = "REV")]
    pub revision: Option<RevisionId>,
    /// The kernel's name
    #[arg(long, value_name = "NAME", default_value = "vmlinux")]
    pub kernel: ArtifactPath,
    /// The root file system's name
    #[arg(long, value_name = "NAME", default_value = "rootfs.ext4")]
    pub rootfs: ArtifactPath,
    /// The Firecracker configuration's name
    #[arg(long, value_name = "NAME", default_value = "fc-base.json")]
    pub fc_base: ArtifactPath,
    /// The initial RAM disk's name; it may be missing
    #[arg(long, value_name = "NAME", default_value = "initrd")]
    pub initrd: ArtifactPath,
}

impl Names {
    pub fn artifacts(&self) -> ArtifactNames {
        ArtifactNames::default()
            .vmlinux(self.kernel.clone())
            .rootfs(self.rootfs.clone())
            .fc_base_config(self.fc_base.clone())
            .initrd(self.initrd.clone())
    }
}

/// What becomes of `current`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Activation {
    /// Leave `current` as it is
    #[arg(long)]
    pub no_activate: bool,
    /// Only if this revision is current (`none`: if there is none yet)
    #[arg(long, value_name = "REV")]
    pub expect: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Build {
    /// The template; it is made when it does not exist
    pub id: TemplateId,
    #[command(flatten)]
    pub inputs: Inputs,
    #[command(flatten)]
    pub machine: Machine,
    #[command(flatten)]
    pub names: Names,
    #[command(flatten)]
    pub activation: Activation,
    /// Build again although it was built already; other bytes become another revision
    #[arg(long)]
    pub force: bool,
    /// Build again, compare, and publish nothing
    #[arg(long, conflicts_with = "force")]
    pub check: bool,
    /// Reuse only what was built from the same flake reference
    #[arg(long)]
    pub strict: bool,
    /// Wait at most this many seconds for another process that builds the same
    #[arg(long, value_name = "SECONDS")]
    pub wait: Option<u64>,
    #[command(flatten)]
    pub cache: AsCache,
    /// Send what is built to the remote, unless another host was first: then take that
    #[arg(long, requires = "remote")]
    pub push: bool,
    /// The command that builds; it writes to the directory in $OUT
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Publish {
    /// The template; it is made when it does not exist
    pub id: TemplateId,
    /// The directory that holds the artifacts
    pub dir: Utf8PathBuf,
    /// Move the directory itself; it must be on the store's file system
    #[arg(long = "move")]
    pub move_in: bool,
    #[command(flatten)]
    pub inputs: Inputs,
    #[command(flatten)]
    pub machine: Machine,
    #[command(flatten)]
    pub names: Names,
    #[command(flatten)]
    pub activation: Activation,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Lookup {
    /// Only revisions of this template
    pub id: Option<TemplateId>,
    #[command(flatten)]
    pub inputs: Inputs,
    /// Only what was built from the same flake reference
    #[arg(long)]
    pub strict: bool,
    #[command(flatten)]
    pub cache: AsCache,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Activate {
    /// The template
    pub id: TemplateId,
    /// The revision
    pub revision: RevisionId,
    /// Only if this revision is current (`none`: if there is none yet)
    #[arg(long, value_name = "REV")]
    pub expect: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Pin {
    /// The pin's name: 1 to 128 of A-Z a-z 0-9 . _ + -
    pub name: PinName,
    /// ID (its current revision) or ID@REVISION
    pub target: Target,
    /// Until when: a time (2026-12-31T00:00:00Z) or a length from now (30d) [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = super::keep::moment)]
    pub until: Option<jiff::Timestamp>,
    /// Why, for people
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Gc {
    /// Say what would go and why, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do at most what this plan says: the output of `gc --dry-run --json`, or - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["keep_last", "keep_within", "rollback", "max_size", "min_free", "include_adopted"])]
    pub plan: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// What a collection keeps.
#[derive(Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    /// Keep the newest N revisions of each template [default: 3]; a template with a table of its own in
    /// .store/config.toml ([gc.template.ID]) keeps as many as that says
    #[arg(long, value_name = "N")]
    pub keep_last: Option<u32>,
    /// Keep what was published within this time, such as 14d
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    pub keep_within: Option<std::time::Duration>,
    /// Keep N rollbacks possible [default: 1; 0 with --keep-last 1]
    #[arg(long, value_name = "N")]
    pub rollback: Option<u32>,
    /// Take more, the least loss first, until the store has at most this size, such as 200GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_size: Option<u64>,
    /// Take more, the least loss first, until this much of the disk is free: 10% or 50GiB
    #[arg(long, value_name = "SPACE")]
    pub min_free: Option<Space>,
    /// Take revisions that were adopted from mvm as well
    #[arg(long)]
    pub include_adopted: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// Read no artifact: check names, sizes, modes, times and documents
    #[arg(long)]
    pub quick: bool,
    /// Read only files of revisions published since then: a time (RFC 3339), or an age such as 7d
    #[arg(long, value_name = "T", conflicts_with = "quick", value_parser = super::verify::since)]
    pub since: Option<jiff::Timestamp>,
    /// Read each file with this probability
    #[arg(long, value_name = "P%", conflicts_with = "quick", value_parser = super::verify::percent)]
    pub sample: Option<f64>,
    /// Mend what can be mended; nothing is deleted
    #[arg(long)]
    pub repair: bool,
    /// Fetch what has no intact copy here from this remote (a name, a URL, or a directory)
    #[arg(long, value_name = "REMOTE", requires = "repair")]
    pub remote: Option<String>,
}

/// `ID` or `ID@REVISION`.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub template: TemplateId,
    pub revision: Option<RevisionId>,
}

impl std::str::FromStr for Target {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Ok(match text.split_once('@') {
            Some((template, revision)) => Target { template: template.parse()?, revision: Some(revision.parse()?) },
            None => Target { template: text.parse()?, revision: None },
        })
    }
}

pub(crate) fn completions(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "template-store", &mut script);
    // A reader that has seen enough is no error.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), &script);
}
