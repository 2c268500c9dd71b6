//! What has come of a stream, cut into frames: a u32 length and that many bytes. Sans-io.
//!
//! No more memory is taken than what has come, and [`EAGER`] bytes beyond it, whatever a length says.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes that memory is taken for before the first of them has come.
pub(crate) const EAGER: usize = 1 << 20;
/// Bytes of a frame's length.
const LENGTH: usize = 4;

/// Bytes that have come and were not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Buffer(BytesMut);

impl Buffer {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes still have to come until there are `n`.
    pub(crate) fn missing(&self, n: usize) -> usize {
        n.saturating_sub(self.0.len())
    }

    /// Takes in what has come. `missing` says how much is waited for, this included.
    pub(crate) fn push(&mut self, chunk: &[u8], missing: usize) {
        // One copy, into the buffer that the frame is then cut from.
        self.0.reserve(missing.min(EAGER.max(self.0.len())).max(chunk.len()));
        self.0.extend_from_slice(chunk);
    }

    /// The first `N` bytes, if they are there.
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let head = self.0.first_chunk::<N>().copied()?;
        self.0.advance(N);
        Some(head)
    }

    /// How many bytes must be there until [`Buffer::frame`] has something. The error is a length above `max`.
    pub(crate) fn wanted(&self, max: usize) -> Result<usize, String> {
        let Some(length) = self.0.first_chunk::<LENGTH>() else { return Ok(LENGTH) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > max {
            return Err(format!("frame of {length} bytes exceeds the limit of {max}"));
        }
        Ok(LENGTH + length)
    }

    /// Length of the frame that comes next, if that much of it is there.
    pub(crate) fn length(&self, max: usize) -> Result<Option<usize>, String> {
        Ok(self.wanted(max)?.checked_sub(LENGTH).filter(|_| self.0.len() >= LENGTH))
    }

    /// The next frame, if all of it is there.
    pub(crate) fn frame(&mut self, max: usize) -> Result<Option<Bytes>, String> {
        let wanted = self.wanted(max)?;
        if self.0.len() < wanted || self.0.len() < LENGTH {
            return Ok(None);
        }
        self.0.advance(LENGTH);
        Ok(Some(self.0.split_to(wanted - LENGTH).freeze()))
    }

    /// Bytes that memory was taken for.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whatever_pieces_they_come_in() {
        let stream = [&9u32.to_le_bytes()[..], b"unanimous", &0u32.to_le_bytes(), &2u32.to_le_bytes(), b"ab"];
        let stream = stream.concat();
        for piece in 1..=stream.len() {
            let (mut buffer, mut found) = (Buffer::default(), Vec::new());
            for chunk in stream.chunks(piece) {
                buffer.push(chunk, chunk.len());
                while let Some(frame) = buffer.frame(9).unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, [&b"unanimous"[..], b"", b"ab"], "pieces of {piece}");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn a_length_alone_takes_no_memory_and_one_above_the_limit_is_refused() {
        let mut buffer = Buffer::default();
        buffer.push(&(1u32 << 30).to_le_bytes(), 4);
        assert!(
            buffer.wanted(1 << 20).unwrap_err().contains("1073741824 bytes exceeds the limit of 1048576")
        );
        assert_eq!(buffer.length(1 << 30), Ok(Some(1 << 30)));
        buffer.push(b"x", (1 << 30) - 1);
        assert!(buffer.capacity() <= 2 * EAGER, "{}", buffer.capacity());
        assert_eq!(buffer.frame(1 << 30), Ok(None));
    }
}
