//! Bulk streams: frames both ways, for what is too long for a request, on a connection of their own, so that
//! neither heartbeats nor the log queue behind them. QUIC's flow control bounds what is under way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::SendStream;

use super::codec::StreamKind;
use super::frame::{self, FrameReader};
use super::link::Link;
use crate::RequestError;

/// Longest frame of a bulk stream, in bytes.
pub const BULK_FRAME_BYTES: usize = 4 << 20;
/// For the peer to send the next frame, or to take one.
const STALL: Duration = Duration::from_secs(30);

/// A stream of frames between two nodes. Every wait has a deadline: a peer that neither sends nor takes anything for
/// 30 seconds counts as lost.
pub struct Bulk {
    send: SendStream,
    recv: FrameReader,
}

impl std::fmt::Debug for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bulk").finish_non_exhaustive()
    }
}

fn lost(e: impl std::fmt::Display) -> RequestError {
    RequestError::Lost(e.to_string())
}

impl Bulk {
    pub(crate) fn new(send: SendStream, recv: FrameReader) -> Self {
        Bulk { send, recv }
    }

    pub(crate) async fn open(link: &Arc<Link>) -> Result<Self, RequestError> {
        let opened = tokio::time::timeout(STALL, link.open(StreamKind::Bulk)).await;
        let (send, recv) =
            opened.map_err(|_| RequestError::TimedOut(STALL))?.map_err(RequestError::Unreachable)?;
        Ok(Bulk { send, recv })
    }

    /// Sends a frame of at most [`BULK_FRAME_BYTES`] bytes, in chunks; returns once the transport has taken it.
    pub async fn send(&mut self, frame: Vec<Bytes>) -> Result<(), RequestError> {
        let size = frame.iter().map(Bytes::len).sum();
        if size > BULK_FRAME_BYTES {
            return Err(RequestError::TooLarge { size, limit: BULK_FRAME_BYTES });
        }
        let written = tokio::time::timeout(STALL, frame::write(&mut self.send, frame)).await;
        written.map_err(|_| RequestError::TimedOut(STALL))?.map_err(lost)
    }

    /// The next frame; `None` when the peer has finished. May be cancelled and called again.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, RequestError> {
        let next = tokio::time::timeout(STALL, self.recv.next(BULK_FRAME_BYTES)).await;
        next.map_err(|_| RequestError::TimedOut(STALL))?.map_err(lost)
    }

    /// Says that no frame will follow.
    pub fn finish(&mut self) {
        // Fails only if the stream is gone, which the peer finds out by itself.
        let _ = self.send.finish();
    }
}
