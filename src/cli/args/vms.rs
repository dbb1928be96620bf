//! The words of calls about what VMs start from: instances and snapshots.

use camino::Utf8PathBuf;
use clap::Subcommand;
use template_store::{DriveId, InvalidName, Owner, Platform};

use super::Target;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Instance {
    #[command(subcommand)]
    pub command: Option<InstanceCommand>,
    #[command(flatten)]
    pub make: Option<MakeInstance>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum InstanceCommand {
    /// Remove an instance
    Rm {
        /// The instance's directory
        dir: Utf8PathBuf,
        /// Remove one whose disks are open for writing as well
        #[arg(long)]
        force: bool,
    },
    /// List the instances that are on the store's file system
    List,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MakeInstance {
    /// ID (its current revision) or ID@REVISION; of templates that are called rm or list, ID@REVISION
    pub target: Target,
    /// The directory that is to be made; the one that holds it must exist
    pub dest: Utf8PathBuf,
    /// Refuse to copy where files can't share blocks
    #[arg(long)]
    pub require_reflink: bool,
    /// Give all files to this user and group, such as 1000:1000; the store's files stay as they are
    #[arg(long, value_name = "UID:GID", value_parser = owner)]
    pub owner: Option<Owner>,
    /// The size of an empty data disk [default: what the template's definition says]
    #[arg(long, value_name = "MIB")]
    pub extra_disk: Option<u32>,
    /// Begin with the memory and the disks of the revision's snapshot
    #[arg(long, conflicts_with = "extra_disk")]
    pub snapshot: bool,
}

fn owner(text: &str) -> Result<Owner, String> {
    let numbers = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    let (uid, gid) = numbers.ok_or("use two numbers, such as 1000:1000")?;
    Ok(Owner { uid, gid })
}

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Attach a snapshot to a revision; one that it has is replaced
    Attach(AttachSnapshot),
    /// Show the snapshot of a revision
    Show {
        /// ID (its current revision) or ID@REVISION
        target: Target,
    },
    /// Say whether a VM of this host can go on from the snapshot of a revision, or every reason why not
    Check {
        /// ID (its current revision) or ID@REVISION
        target: Target,
        #[command(flatten)]
        host: HostArgs,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct AttachSnapshot {
    /// ID (its current revision) or ID@REVISION
    pub target: Target,
    /// The VM's state, as the VMM wrote it
    #[arg(long, value_name = "FILE")]
    pub vmstate: Utf8PathBuf,
    /// The guest's whole memory, as the VMM wrote it
    #[arg(long, value_name = "FILE")]
    pub mem: Utf8PathBuf,
    /// The file of a drive as of the pause; each drive that the VM writes to must be given
    #[arg(long = "drive", value_name = "ID=FILE", value_parser = drive_and::<Utf8PathBuf>)]
    pub drives: Vec<(DriveId, Utf8PathBuf)>,
    /// When it was taken [default: now]
    #[arg(long, value_name = "T")]
    pub created_at: Option<jiff::Timestamp>,
    /// Note this machine's architecture, kernel and CPU as what it was taken on
    #[arg(long)]
    pub taken_here: bool,
    #[command(flatten)]
    pub host: HostArgs,
}

/// What a VM has and runs on.
#[derive(Debug, clap::Args)]
pub(crate) struct HostArgs {
    /// The kernel's command line [default: that of the revision]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub boot_args: Option<String>,
    /// Virtual CPUs [default: those of the revision]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub vcpus: Option<u8>,
    /// Memory in MiB [default: that of the revision]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    pub mem_mib: Option<u32>,
    /// The VMM, such as firecracker
    #[arg(long, value_name = "NAME")]
    pub vmm: Option<String>,
    /// Its version
    #[arg(long, value_name = "V")]
    pub vmm_version: Option<String>,
    /// The version of the format of the VM's state
    #[arg(long, value_name = "V")]
    pub snapshot_version: Option<String>,
    /// The host's CPU
    #[arg(long, value_name = "M")]
    pub cpu_model: Option<String>,
    /// The CPU template
    #[arg(long, value_name = "T")]
    pub cpu_template: Option<String>,
    /// The host's kernel
    #[arg(long, value_name = "V")]
    pub host_kernel: Option<String>,
    /// The host's architecture
    #[arg(long, value_name = "A")]
    pub arch: Option<String>,
    /// Where the VM has a drive
    #[arg(long = "drive-path", value_name = "ID=PATH", value_parser = drive_and::<String>)]
    pub drive_paths: Vec<(DriveId, String)>,
}

impl HostArgs {
    /// What was said, and for the rest what `known` has.
    pub fn platform(&self, known: Platform) -> Platform {
        let or = |said: &Option<String>, known: Option<String>| said.clone().or(known);
        Platform {
            vmm: or(&self.vmm, known.vmm),
            vmm_version: or(&self.vmm_version, known.vmm_version),
            snapshot_version: or(&self.snapshot_version, known.snapshot_version),
            cpu_model: or(&self.cpu_model, known.cpu_model),
            cpu_template: or(&self.cpu_template, known.cpu_template),
            host_kernel: or(&self.host_kernel, known.host_kernel),
            architecture: or(&self.arch, known.architecture),
        }
    }
}

/// `ID=…`: a drive, and something of it.
fn drive_and<T: From<String>>(text: &str) -> Result<(DriveId, T), String> {
    let (id, rest) = text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form ID=…"))?;
    if rest.is_empty() {
        return Err(format!("{text:?} says nothing after the ="));
    }
    Ok((id.parse().map_err(|error: InvalidName| error.to_string())?, rest.to_owned().into()))
}
