//! The words of calls about remotes.

use clap::Subcommand;
use template_store::{RemoteName, RemoteSettings, TemplateId};

use super::{Activation, Target};

/// Which remote is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct RemoteOf {
    /// The name of a remote, a URL, or a directory [default: the only remote that there is]
    #[arg(long = "remote", value_name = "REMOTE")]
    pub remote: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Push {
    /// ID (its current revision) or ID@REVISION
    pub target: Target,
    #[command(flatten)]
    pub remote: RemoteOf,
    /// Push only while REV is current at the remote; `none` for nothing [default: nothing, or a revision that this store has]
    #[arg(long, value_name = "REV", conflicts_with = "no_activate")]
    pub expect: Option<String>,
    /// Leave what is current at the remote as it is
    #[arg(long)]
    pub no_activate: bool,
    /// Push the snapshot of the revision as well
    #[arg(long)]
    pub with_snapshot: bool,
    /// Send all files again: what the remote has is damaged
    #[arg(long)]
    pub resend: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Pull {
    /// ID (what is current at the remote) or ID@REVISION
    pub target: Target,
    #[command(flatten)]
    pub remote: RemoteOf,
    /// The remote is a registry of mvm: files with a list of SHA-256 sums
    #[arg(long, conflicts_with = "with_snapshot")]
    pub mvm_registry: bool,
    /// Fetch the snapshot of the revision as well, if the remote has one
    #[arg(long)]
    pub with_snapshot: bool,
    #[command(flatten)]
    pub activation: Activation,
}

/// A remote as a cache of builds.
#[derive(Debug, clap::Args)]
pub(crate) struct AsCache {
    /// Ask this remote (a name, a URL, or a directory) for what is not here
    #[arg(long, value_name = "REMOTE")]
    pub remote: Option<String>,
    /// Fail when the remote can't be asked, in place of doing without it
    #[arg(long, requires = "remote")]
    pub remote_required: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Remote {
    /// Add a remote
    Add(AddRemote),
    /// Forget a remote; what it holds stays
    Rm {
        /// Its name
        name: RemoteName,
    },
    /// List the remotes
    List,
    /// Find out whether a remote keeps two who push at once apart
    Check {
        /// The name of a remote, a URL, or a directory [default: the only remote that there is]
        remote: Option<String>,
    },
    /// List what a remote has
    Ls {
        /// The name of a remote, a URL, or a directory [default: the only remote that there is]
        remote: Option<String>,
        /// Only this template
        #[arg(long, value_name = "ID")]
        template: Option<TemplateId>,
    },
    /// Look whether all that a remote lists is there
    Verify {
        /// The name of a remote, a URL, or a directory [default: the only remote that there is]
        remote: Option<String>,
        /// Fetch and hash every file as well
        #[arg(long)]
        data: bool,
    },
}

/// Credentials come from the environment and the files of each cloud, such as AWS_ACCESS_KEY_ID,
/// GOOGLE_APPLICATION_CREDENTIALS or AZURE_STORAGE_ACCOUNT_KEY.
#[derive(Debug, clap::Args)]
pub(crate) struct AddRemote {
    /// Its name
    pub name: RemoteName,
    /// s3://bucket/prefix, gs://…, az://…, https://… (to read only), or a directory
    pub url: String,
    /// The server that speaks S3, if it is not Amazon's: https://host:port
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// The region of the bucket
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
    /// Reach the server without encryption, if its URL says http://
    #[arg(long)]
    pub allow_http: bool,
    /// Nobody else ever pushes there: do without the conditions that keep two apart
    #[arg(long)]
    pub single_writer: bool,
}

impl AddRemote {
    pub fn settings(&self) -> RemoteSettings {
        RemoteSettings::at(&self.url)
            .endpoint(self.endpoint.clone())
            .region(self.region.clone())
            .allow_http(self.allow_http)
            .single_writer(self.single_writer)
    }
}
