//! Who may touch a node's files: its own user, and, with `--socket-group`, the members of a group, who may
//! then open the databases. Files are born with the right mode (by the umask), since SQLite makes some too. The umask of a
//! node with a group lets the group in, be it that one or the user's own; so what isn't a database's gets its mode by name.

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, chown, geteuid};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
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
    /// Others may write.
    #[error("{}: its mode {mode:04o} lets others than its owner change what is in it; run: chmod {cure} {}", path.display(), path.display())]
    Loose {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What to take away.
        cure: &'static str,
    },
    /// It is somebody else's.
    #[error("{}: it belongs to user {owner}, but this node runs as {user}; run the node as its owner, or: chown -R {user} {}", path.display(), path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who this is.
        user: u32,
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

    /// Makes a directory that is missing, for the node's user alone.
    pub fn make(path: &Path) -> Result<(), AccessError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| AccessError::Io { path: path.to_owned(), error })
    }

    /// Takes from others what they may do with what is the node's own in `data_dir`: earlier versions let the user's group in
    /// where there was a `--socket-group`.
    pub fn close(data_dir: &Path) -> Result<(), AccessError> {
        for name in ["lock", "identity", "manifest", "manifest.new", "raft", "staging"] {
            let path = data_dir.join(name);
            let mode = match std::fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_symlink() => continue,
                Ok(metadata) => metadata.mode() & 0o7777,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(AccessError::Io { path, error }),
            };
            if mode & 0o077 != 0 {
                set_mode(&path, mode & 0o700)?;
            }
        }
        Ok(())
    }

    /// Refuses a directory in which others could put files of theirs in the place of the node's. Whoever may read files
    /// is decided by their own modes.
    pub fn check(path: &Path, group_may_write: bool) -> Result<(), AccessError> {
        let metadata =
            std::fs::metadata(path).map_err(|error| AccessError::Io { path: path.to_owned(), error })?;
        let (mode, owner, user) = (metadata.mode() & 0o7777, metadata.uid(), geteuid().as_raw());
        if owner != user && user != 0 {
            return Err(AccessError::Owner { path: path.to_owned(), owner, user });
        }
        let (loose, cure) = if group_may_write { (0o002, "o-w") } else { (0o022, "go-w") };
        if mode & loose != 0 {
            return Err(AccessError::Loose { path: path.to_owned(), mode, cure });
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_nodes_own_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        let data = dir.path().join("a/b");
        Access::make(&data).unwrap();
        assert_eq!(mode(&data), 0o700);
        // Whatever the umask is, which belongs to the process.
        crate::manifest::replace_file(&data.join("identity"), b"x").unwrap();
        assert_eq!(mode(&data.join("identity")), 0o600);
        assert_eq!(mode(&crate::load::staging(&data).unwrap()), 0o700);
        Access::make(&data.join("raft")).unwrap();
        Access::make(&data.join("db")).unwrap();
        std::fs::write(data.join("manifest"), "x").unwrap();
        let was = [("raft", 0o770), ("manifest", 0o664), ("db", 0o2770)];
        was.iter().for_each(|(name, open)| set_mode(&data.join(name), *open).unwrap());
        Access::close(&data).unwrap();
        assert_eq!(was.map(|(name, _)| mode(&data.join(name))), [0o700, 0o600, 0o2770]);
    }

    #[test]
    fn directories_that_others_may_change_are_refused_with_the_cure() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, alone, shared) in [
            (0o700, true, true),
            (0o755, true, true),
            (0o711, true, true),
            (0o770, false, true),
            (0o2770, false, true),
            (0o777, false, false),
            (0o1777, false, false),
            (0o702, false, false),
        ] {
            set_mode(dir.path(), mode).unwrap();
            for (group, fine) in [(false, alone), (true, shared)] {
                match Access::check(dir.path(), group) {
                    Ok(()) => assert!(fine, "{mode:04o} {group}"),
                    Err(why) => {
                        let why = why.to_string();
                        let cure = if group { "chmod o-w" } else { "chmod go-w" };
                        assert!(!fine && why.contains(&format!("{mode:04o}")) && why.contains(cure), "{why}");
                    }
                }
            }
        }
    }
}
