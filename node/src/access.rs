//! Who may touch a node's files: its own user, and, with `--socket-group`, the members of a group, who may
//! then open the databases. Files are born with the right mode (by the umask), since SQLite makes some too.

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, chown};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Rights can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is no such group.
    #[error("--socket-group {0}: there is no such group on this machine")]
    Group(String),
}

/// The group that may open databases, if any.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    group: Option<Gid>,
}

impl Access {
    /// Looks the group up, and sets this process's umask: from here on, files are for the user alone, or for
    /// the user and the group.
    pub fn new(group: Option<&str>) -> Result<Access, AccessError> {
        let group = match group {
            None => None,
            Some(name) => {
                let found = Group::from_name(name)
                    .map_err(|errno| AccessError::Io { path: "/etc/group".into(), error: errno.into() })?;
                Some(found.ok_or_else(|| AccessError::Group(name.to_owned()))?.gid)
            }
        };
        umask(if group.is_some() { Mode::S_IRWXO } else { Mode::S_IRWXG | Mode::S_IRWXO });
        Ok(Access { group })
    }

    /// Opens the way to the databases for the group: it may pass through `data_dir`, and files that are made
    /// in `db_dir` will be its own.
    pub fn share(&self, data_dir: &Path, db_dir: &Path) -> Result<(), AccessError> {
        let Some(gid) = self.group else { return Ok(()) };
        set_mode(data_dir, 0o711)?;
        chown(db_dir, None, Some(gid)).map_err(io_error(db_dir))?;
        set_mode(db_dir, 0o2770)
    }

    /// Gives a socket its owner's mode, or the group's.
    pub fn share_socket(&self, socket: &Path) -> Result<(), AccessError> {
        if let Some(gid) = self.group {
            chown(socket, None, Some(gid)).map_err(io_error(socket))?;
        }
        set_mode(socket, if self.group.is_some() { 0o660 } else { 0o600 })
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), AccessError> {
    let done = std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    done.map_err(|error| AccessError::Io { path: path.to_owned(), error })
}

fn io_error(path: &Path) -> impl FnOnce(nix::errno::Errno) -> AccessError {
    let path = path.to_owned();
    move |errno| AccessError::Io { path, error: errno.into() }
}
