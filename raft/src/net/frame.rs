//! Length-prefixed frames on a QUIC stream.

use bytes::Bytes;
use quinn::{RecvStream, SendStream};

use super::buffer::{Buffer, EAGER};

/// A frame or stream broke the rules, or the stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// The peer doesn't speak the protocol.
    #[error("{0}")]
    Malformed(String),
    /// The stream or its connection is gone.
    #[error("{0}")]
    Gone(String),
}

impl From<crate::encode::Malformed> for FrameError {
    fn from(m: crate::encode::Malformed) -> Self {
        FrameError::Malformed(m.to_string())
    }
}

/// Reads frames. All methods may be cancelled and called again without losing anything.
pub(crate) struct FrameReader {
    stream: RecvStream,
    buffer: Buffer,
}

impl FrameReader {
    pub(crate) fn new(stream: RecvStream) -> Self {
        FrameReader { stream, buffer: Buffer::default() }
    }

    /// Makes sure that `n` bytes are buffered; false if the stream ended before the first of them.
    async fn fill(&mut self, n: usize) -> Result<bool, FrameError> {
        loop {
            let missing = self.buffer.missing(n);
            if missing == 0 {
                return Ok(true);
            }
            match self.stream.read_chunk(missing.max(EAGER), true).await {
                Ok(Some(chunk)) => self.buffer.push(&chunk.bytes, missing),
                Ok(None) if self.buffer.is_empty() => return Ok(false),
                Ok(None) => return Err(FrameError::Gone("stream ended within a frame".into())),
                Err(e) => return Err(FrameError::Gone(e.to_string())),
            }
        }
    }

    /// A fixed number of bytes, as at the start of a stream.
    pub(crate) async fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let ended = || FrameError::Gone("stream ended".into());
        if !self.fill(N).await? {
            return Err(ended());
        }
        self.buffer.take().ok_or_else(ended)
    }

    /// Length of the next frame, without consuming it; `None` at the end of the stream.
    pub(crate) async fn length(&mut self, max: usize) -> Result<Option<usize>, FrameError> {
        if !self.fill(4).await? {
            return Ok(None);
        }
        self.buffer.length(max).map_err(FrameError::Malformed)
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) async fn next(&mut self, max: usize) -> Result<Option<Bytes>, FrameError> {
        let Some(len) = self.length(max).await? else { return Ok(None) };
        self.fill(4 + len).await?;
        self.buffer.frame(max).map_err(FrameError::Malformed)
    }

    /// The next frame, which must be there.
    pub(crate) async fn one(&mut self, max: usize) -> Result<Bytes, FrameError> {
        self.next(max).await?.ok_or_else(|| FrameError::Gone("stream ended without an answer".into()))
    }
}

/// The chunks of a frame: its length, then its body.
pub(crate) fn framed(mut body: Vec<Bytes>) -> Vec<Bytes> {
    let len: usize = body.iter().map(Bytes::len).sum();
    body.insert(0, Bytes::copy_from_slice(&(len as u32).to_le_bytes()));
    body
}

/// Writes a frame of few, small chunks.
pub(crate) async fn write(stream: &mut SendStream, body: Vec<Bytes>) -> Result<(), FrameError> {
    let mut chunks = framed(body);
    stream.write_all_chunks(&mut chunks).await.map_err(|e| FrameError::Gone(e.to_string()))
}
