//! The cluster key: 32 random bytes that make a machine a member of the trust domain.
//!
//! The file holds exactly the 32 raw bytes and is readable by its owner only. Everything else is derived from it
//! with HKDF-SHA256 (salt `quire cluster key v1`): the CA key with which every node issues its own certificate
//! (info `ca ed25519 seed`), and the cluster id that is written into every file (info `cluster id`).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use ring::rand::SecureRandom;

use crate::KeyError;

const KEY_BYTES: usize = 32;

/// The secret shared by the nodes of one cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey([u8; KEY_BYTES]);

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterKey(redacted)")
    }
}

fn fail(path: &Path, reason: impl Into<String>, way_out: impl Into<String>) -> KeyError {
    KeyError { path: path.to_owned(), reason: reason.into(), way_out: way_out.into() }
}

/// Makes a file of mode 0600, durably. It has another name until it is complete; who has the name already keeps it.
fn store(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}.tmp", std::process::id()));
    let unfinished = Path::new(&unfinished);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(unfinished)?;
    // Unlike a rename, a link replaces nothing.
    let stored =
        write(&mut file).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(unfinished, path));
    let removed = fs::remove_file(unfinished);
    stored.and(removed)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

impl ClusterKey {
    /// A key from raw bytes.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        ClusterKey(bytes)
    }

    /// Reads a key file. Refuses one that isn't exactly 32 bytes or that others than its owner may access.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let path = path.as_ref();
        let way_out = "give --cluster-key the file that the other nodes use";
        let mut file = File::open(path).map_err(|e| fail(path, e.to_string(), way_out))?;
        let meta = file.metadata().map_err(|e| fail(path, e.to_string(), way_out))?;
        if !meta.is_file() {
            return Err(fail(path, "not a regular file", way_out));
        }
        if meta.mode() & 0o077 != 0 {
            let mode = meta.mode() & 0o7777;
            return Err(fail(
                path,
                format!("its mode {mode:04o} lets others than its owner at it"),
                format!("run: chmod 600 {}", path.display()),
            ));
        }
        let mut bytes = Vec::with_capacity(KEY_BYTES + 1);
        let read = (&mut file).take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|e| fail(path, e.to_string(), way_out))?;
        let key = <[u8; KEY_BYTES]>::try_from(bytes.as_slice());
        let key = key.map_err(|_| {
            fail(path, format!("{} bytes long, not {KEY_BYTES} raw bytes", meta.len()), way_out)
        })?;
        Ok(ClusterKey(key))
    }

    /// Makes a new key file (mode 0600), durable when this returns. Never overwrites, and never leaves a part of a key:
    /// the file has its name only once it is whole.
    pub fn generate(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let path = path.as_ref();
        let mut key = [0; KEY_BYTES];
        let random = ring::rand::SystemRandom::new().fill(&mut key);
        random.map_err(|_| fail(path, "the system has no random numbers", "try again"))?;
        let way_out = "choose a path in an existing directory with room, where no file of that name is";
        store(path, |file| file.write_all(&key)).map_err(|e| fail(path, e.to_string(), way_out))?;
        Ok(ClusterKey(key))
    }

    /// The cluster's id: 16 bytes derived from the key, not secret.
    pub fn cluster_id(&self) -> [u8; 16] {
        self.derive(b"cluster id")
    }

    /// The seed of the CA's Ed25519 key.
    pub(crate) fn ca_seed(&self) -> [u8; 32] {
        self.derive(b"ca ed25519 seed")
    }

    /// The key of a node's QUIC stateless resets; the same after a restart.
    pub(crate) fn reset_key(&self, node: u64) -> [u8; 32] {
        let mut info = b"quic reset key ".to_vec();
        info.extend_from_slice(&node.to_le_bytes());
        self.derive(&info)
    }

    fn derive<const N: usize>(&self, info: &[u8]) -> [u8; N] {
        struct Len(usize);
        impl ring::hkdf::KeyType for Len {
            fn len(&self) -> usize {
                self.0
            }
        }
        let salt = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, b"quire cluster key v1");
        let prk = salt.extract(&self.0);
        let mut out = [0; N];
        // HKDF-SHA256 yields up to 255 * 32 bytes, so neither step can fail for 16 or 32.
        const { assert!(N <= 64) };
        let filled = prk.expand(&[info], Len(N)).and_then(|okm| okm.fill(&mut out));
        debug_assert!(filled.is_ok());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn generate_then_load() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = ClusterKey::generate(&path).unwrap();
        assert_eq!(key, ClusterKey::load(&path).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(ClusterKey::generate(&path).is_err(), "must not overwrite");
        assert_eq!(key, ClusterKey::load(&path).unwrap());
        assert_eq!(format!("{key:?}"), "ClusterKey(redacted)");
        assert_ne!(key.cluster_id(), [0; 16]);
        assert_ne!(key.cluster_id()[..], key.ca_seed()[..16]);
    }

    /// On a full disk there was a file with a part of a key, or none of it, under the name of the key.
    #[test]
    fn a_key_that_could_not_be_written_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let full = store(&path, |file| {
            file.write_all(&[7; KEY_BYTES / 2])?;
            assert!(!path.exists(), "a part of a key has the name of the key");
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let key = ClusterKey::generate(&path).unwrap();
        assert!(ClusterKey::generate(&path).is_err(), "must not overwrite");
        assert_eq!(key, ClusterKey::load(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn loose_mode_and_wrong_length_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        ClusterKey::generate(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let e = ClusterKey::load(&path).unwrap_err().to_string();
        assert!(e.contains("0640") && e.contains("chmod 600"), "{e}");
        for len in [0, 31, 33, 64] {
            std::fs::write(&path, vec![7; len]).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let e = ClusterKey::load(&path).unwrap_err().to_string();
            assert!(e.contains(&format!("{len} bytes")), "{e}");
        }
    }
}
