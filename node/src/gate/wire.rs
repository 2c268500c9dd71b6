//! The node's end of a connection, registered for reading only.
//!
//! Whenever the app takes a message off the socket, the kernel tells whoever waits for room to write. A node that
//! did would be woken once more after each message that it sends, in the middle of a commit and for nothing. Where
//! there really is no room, a registration of its own waits for it.

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// The most that is read at once, in bytes.
const READ: usize = 256 << 10;

/// What the app says.
pub(super) struct Reader {
    fd: Arc<AsyncFd<OwnedFd>>,
}

/// What it is told.
pub(super) struct Writer {
    fd: Arc<AsyncFd<OwnedFd>>,
    /// Waits for room; made when there was none.
    room: Option<AsyncFd<OwnedFd>>,
}

/// The two directions of a connection.
pub(super) fn split(stream: UnixStream) -> io::Result<(Reader, Writer)> {
    let fd = Arc::new(register(stream.into_std()?.into(), Interest::READABLE)?);
    Ok((Reader { fd: fd.clone() }, Writer { fd, room: None }))
}

fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and one and the same, for as long as it lives, and the result has it to itself.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.fd.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled_to(buf.remaining().min(READ));
            match recv(self.fd.as_raw_fd(), room, MsgFlags::empty()) {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
                Ok(n) => {
                    // A stream that gave less than it was asked for is empty; it saves asking.
                    if n > 0 && n < room.len() {
                        ready.clear_ready();
                    }
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(n) => return Poll::Ready(Ok(n)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let fd = self.fd.clone();
                    let room = match &mut self.room {
                        Some(room) => room,
                        none => none.insert(register(fd.get_ref().try_clone()?, Interest::WRITABLE)?),
                    };
                    // There was none a moment ago. If there is some by now, the next attempt finds it.
                    ready!(room.poll_write_ready(cx))?.clear_ready();
                }
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_does_not_fit_waits_for_room_and_arrives_whole() {
        let (app, node) = UnixStream::pair().unwrap();
        let (_reader, mut writer) = split(node).unwrap();
        let (mut reader, _writer) = split(app).unwrap();
        let sent: Vec<u8> = (0..4 << 20).map(|i: u32| i.to_le_bytes()[i as usize % 3]).collect();
        let expected = sent.clone();
        let sender = tokio::spawn(async move {
            for part in sent.chunks(100_000) {
                writer.write_all(part).await.unwrap();
            }
        });
        let mut got = Vec::new();
        while got.len() < expected.len() {
            assert_ne!(reader.read_buf(&mut got).await.unwrap(), 0);
            tokio::task::yield_now().await;
        }
        sender.await.unwrap();
        assert!(got == expected);
        drop(_writer);
    }

    #[tokio::test]
    async fn the_end_of_the_connection_is_read_as_such() {
        let (app, node) = UnixStream::pair().unwrap();
        let (mut reader, _writer) = split(node).unwrap();
        drop(app);
        assert_eq!(reader.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
