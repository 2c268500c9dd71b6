//! The node's end of a connection, registered for reading only.
//!
//! Whenever the app takes a message off the socket, the kernel tells whoever waits for room to write. A node that
//! did would be woken once more after each message that it sends, in the middle of a commit and for nothing. Where
//! there really is no room, a registration of its own waits for it.

use bytes::BytesMut;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// The most that is read at once, in bytes.
const READ: usize = 256 << 10;

/// A connection to an app.
pub(super) struct Wire {
    fd: AsyncFd<OwnedFd>,
}

fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and one and the same, for as long as it lives, and the result has it to itself.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> io::Result<Wire> {
        let fd = OwnedFd::from(stream.into_std()?);
        Ok(Wire { fd: register(fd, Interest::READABLE)? })
    }

    /// Reads what there is into the buffer's free capacity, but for that at least a byte; 0 bytes at the end of the
    /// connection. Nothing is lost when this is given up.
    pub(super) async fn read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            let old = buffer.len();
            let room = (buffer.capacity() - old).clamp(1, READ);
            buffer.resize(old + room, 0);
            let result = recv(self.fd.as_raw_fd(), &mut buffer[old..], MsgFlags::empty());
            buffer.truncate(old + result.unwrap_or(0));
            match result {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(n) => {
                    // A stream that gave less than it was asked for is empty; it saves asking.
                    if n > 0 && n < room {
                        ready.clear_ready();
                    }
                    return Ok(n);
                }
            }
        }
    }

    /// Writes all of it.
    pub(super) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let fd = self.fd.get_ref().try_clone()?;
                    let _ = register(fd, Interest::WRITABLE)?.writable().await?;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}
