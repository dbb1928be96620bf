//! What can go wrong with a remote.

use crate::error::ErrorKind;
use crate::format::FormatError;
use crate::id::{RevisionId, TemplateId};

/// What can go wrong with a remote, said with its name and the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// There is no remote of this name.
    #[error(
        "there is no remote {name}; `template-store remote list` shows those that exist, and `remote add {name} URL` adds one"
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// A remote of this name is there already.
    #[error("there is a remote {name} already, at {url}; remove it first with `template-store remote rm {name}`")]
    Exists {
        /// The name.
        name: String,
        /// Where it is.
        url: String,
    },
    /// The remote can't be opened as it is described.
    #[error("the remote at {url} can't be used: {problem}")]
    BadUrl {
        /// Where it is.
        url: String,
        /// Why, and what to do.
        problem: String,
    },
    /// A call to the server failed.
    #[error("{remote}: cannot {doing} {object}: {problem}")]
    Failed {
        /// Where it is.
        remote: String,
        /// What was tried, as a verb.
        doing: &'static str,
        /// The object.
        object: String,
        /// What the server said, or why there was no answer.
        problem: String,
    },
    /// The server did not let us.
    #[error(
        "{remote}: cannot {doing} {object}: {problem}; credentials come from the environment of the cloud, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    Denied {
        /// Where it is.
        remote: String,
        /// What was tried, as a verb.
        doing: &'static str,
        /// The object.
        object: String,
        /// What the server said.
        problem: String,
    },
    /// The remote does not have it.
    #[error("{remote} has no {what}; `template-store remote ls` shows what it has")]
    NotFound {
        /// Where it is.
        remote: String,
        /// What was asked for.
        what: String,
    },
    /// An object of the remote is not what it should be.
    #[error(
        "{remote}: {object} is damaged: {problem}; push it again from a store that has it, with `template-store push --resend`"
    )]
    Damaged {
        /// Where it is.
        remote: String,
        /// The object.
        object: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A document of the remote that this program can't read.
    #[error("{remote}: {object}: {source}{}", next_step(source))]
    Format {
        /// Where it is.
        remote: String,
        /// The object.
        object: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// Somebody else moved the remote's current revision.
    #[error(
        "{remote}: template {template} was expected to be at {expected}, and is at {found}; nothing was changed there. Pull it, or say `--expect {found}` to put yours in its place"
    )]
    Moved {
        /// Where it is.
        remote: String,
        /// The template.
        template: TemplateId,
        /// What it was to be at.
        expected: String,
        /// What it is at.
        found: String,
    },
    /// The remote has a revision of this id with other contents.
    #[error(
        "{remote} has {template}@{revision} already, with other contents: {path} differs; publish yours under another id, and push that"
    )]
    Differs {
        /// Where it is.
        remote: String,
        /// The template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
        /// The first file that differs.
        path: String,
    },
    /// The server does not honour conditions.
    #[error(
        "{remote}: {problem}, so two who push at once could lose what one of them pushed; if nobody else ever pushes there, say so with `remote add --single-writer`"
    )]
    Unconditional {
        /// Where it is.
        remote: String,
        /// What it did.
        problem: String,
    },
    /// The remote can only be read.
    #[error("{remote} can only be read: it is a plain web server; push to the object store behind it")]
    ReadOnly {
        /// Where it is.
        remote: String,
    },
    /// The remote does not say what it has.
    #[error(
        "{remote} is a plain web server, which does not say what it has; `template-store pull` fetches what you know the name of"
    )]
    Unlisted {
        /// Where it is.
        remote: String,
    },
    /// A revision that can't be pushed.
    #[error("{what} can't be pushed: {problem}")]
    CannotPush {
        /// The revision.
        what: String,
        /// Why, and what to do.
        problem: String,
    },
}

fn next_step(source: &FormatError) -> &'static str {
    match source {
        FormatError::Invalid { .. } => "; push it again from a store that has it, with `template-store push --resend`",
        _ => "",
    }
}

impl RemoteError {
    /// What a caller can do about it.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            RemoteError::Unknown { .. } | RemoteError::NotFound { .. } => ErrorKind::NotFound,
            RemoteError::BadUrl { .. } => ErrorKind::Invalid,
            RemoteError::Damaged { .. } | RemoteError::Format { source: FormatError::Invalid { .. }, .. } => {
                ErrorKind::Damaged
            }
            RemoteError::Exists { .. }
            | RemoteError::Moved { .. }
            | RemoteError::Differs { .. }
            | RemoteError::Unconditional { .. }
            | RemoteError::ReadOnly { .. }
            | RemoteError::Unlisted { .. }
            | RemoteError::CannotPush { .. } => ErrorKind::Refused,
            _ => ErrorKind::Failed,
        }
    }
}
