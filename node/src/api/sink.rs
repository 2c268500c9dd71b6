//! An answer whose body is made as it is sent, by a thread that blocks. What is sent stays in memory for a few pieces
//! only; a client that reads too slowly, or not at all, ends it: whoever makes the body may hold a read transaction,
//! for which the WAL grows. However steadily it reads, no answer takes longer than [`LONGEST`].

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use std::io::{self, Write};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// Bytes that are handed on at once.
const PIECE: usize = 256 << 10;
/// Pieces between the thread and the network.
const BACKLOG: usize = 2;
/// A client must take so many bytes per second, on average and after its time of grace.
const MIN_RATE: u64 = 64 << 10;
/// The time of grace, if the client doesn't ask for another one.
pub(super) const GRACE: Duration = Duration::from_secs(60);
/// The longest that it may ask for.
pub(super) const MAX_GRACE: Duration = Duration::from_secs(600);

/// No answer takes longer, however steadily it is read.
pub(super) const LONGEST: Duration = Duration::from_secs(6 * 60 * 60);

enum Frame {
    Piece(Bytes),
    Failed(String),
    /// All is there. A body that stops without this is cut off, and the client must see that.
    End,
}

/// Where the thread writes.
pub(super) struct Sink {
    frames: mpsc::Sender<Frame>,
    runtime: Handle,
    buffer: BytesMut,
    began: Instant,
    grace: Duration,
    sent: u64,
}

/// A body and its source. To be called on the runtime that sends it.
pub(super) fn sink(grace: Duration) -> (Sink, Body) {
    let (frames, ready) = mpsc::channel(BACKLOG);
    let buffer = BytesMut::with_capacity(PIECE);
    let sink = Sink { frames, runtime: Handle::current(), buffer, began: Instant::now(), grace, sent: 0 };
    let body = futures_util::stream::unfold(Some(ready), |ready| async {
        let mut ready = ready?;
        match ready.recv().await {
            Some(Frame::Piece(piece)) => Some((Ok(piece), Some(ready))),
            Some(Frame::End) => None,
            Some(Frame::Failed(why)) => Some((Err(io::Error::other(why)), None)),
            None => Some((Err(io::Error::other("the answer was not completed")), None)),
        }
    });
    (sink, Body::from_stream(body))
}

/// When the next piece must have been taken.
fn deadline(began: Instant, now: Instant, grace: Duration, sent: u64) -> Instant {
    let average = began + grace + Duration::from_secs(sent / MIN_RATE);
    // However fast it was before, no piece may take longer than the grace.
    average.min(now + grace).min(began + LONGEST)
}

impl Sink {
    fn send(&self, frame: Frame) -> io::Result<()> {
        let late = |why| Err(io::Error::new(io::ErrorKind::TimedOut, why));
        let now = Instant::now();
        if now >= self.began + LONGEST {
            return late("the client has read for too long");
        }
        let deadline = deadline(self.began, now, self.grace, self.sent);
        match self.runtime.block_on(timeout_at(deadline, self.frames.send(frame))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone")),
            Err(_) => late("the client reads too slowly"),
        }
    }

    fn hand_on(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(PIECE)).freeze();
        let bytes = piece.len() as u64;
        self.send(Frame::Piece(piece))?;
        self.sent += bytes;
        Ok(())
    }

    /// All was written.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.hand_on()?;
        // A body whose length was announced is not asked for anything beyond it.
        match self.send(Frame::End) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    /// The answer can't be completed.
    pub(super) fn fail(self, why: &str) {
        // Where the client doesn't read, the sender that is dropped tells the same.
        let _ = self.frames.try_send(Frame::Failed(why.to_owned()));
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= PIECE {
            self.hand_on()?;
        }
        let n = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;

    #[test]
    fn a_slow_client_has_an_end() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        // At the beginning, the grace; on average, the rate; for a piece, the grace; in all, the longest.
        assert_eq!(deadline(began, began, GRACE, 0), at(60));
        assert_eq!(deadline(began, at(100), GRACE, 50 * MIN_RATE), at(110));
        assert_eq!(deadline(began, at(100), GRACE, 5000 * MIN_RATE), at(160));
        let end = began + LONGEST;
        assert_eq!(deadline(began, end - Duration::from_secs(1), MAX_GRACE, u64::MAX), end);
    }

    #[tokio::test]
    async fn an_answer_that_lasts_too_long_is_cut_off() {
        let (mut sink, body) = sink(GRACE);
        // A machine that is up for less can't tell.
        let Some(began) = sink.began.checked_sub(LONGEST) else { return };
        sink.began = began;
        let sending = tokio::task::spawn_blocking(move || {
            sink.write_all(b"x")?;
            sink.end()
        });
        let why = sending.await.unwrap().unwrap_err();
        assert!(why.to_string().contains("too long"), "{why}");
        let mut pieces = body.into_data_stream();
        assert!(
            pieces.next().await.is_some_and(|piece| piece.is_err()),
            "the client must see that it is cut off"
        );
    }
}
