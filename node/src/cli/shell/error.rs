//! Why a statement or a command has failed, and what that means for what comes next.

use std::io;

/// A failure.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// What the server says of a statement, or what is wrong with a command.
    #[error("{0}")]
    Said(String),
    /// Ctrl-C.
    #[error("interrupted{0}")]
    Interrupted(&'static str),
    /// Results can't be written.
    #[error("writing the results: {0}")]
    Output(io::Error),
}

impl Error {
    pub(super) fn said(text: impl Into<String>) -> Error {
        Error::Said(text.into())
    }

    /// Nobody reads the results any more.
    pub(super) fn is_closed_output(&self) -> bool {
        matches!(self, Error::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Output(error)
    }
}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Error {
        Error::Said(format!("{error:#}"))
    }
}
