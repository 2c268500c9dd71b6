//! A request on its way to the leader: one message over the authenticated connections between the nodes, and one back.
//!
//! ```text
//! request   magic 0x02 · kind u8 · text u8 · timeout u32, in ms · length u32 of the query · query · body
//! answer    status u16, 0 if the node doesn't lead · retry u8 · body
//! ```
//! Numbers are little-endian. The query is that of the client's URL; what it says of time-outs is overruled.

use super::request::Kind;
use bytes::{BufMut, Bytes, BytesMut};
use std::time::Duration;

/// Neither JSON nor what [`crate::forward`] sends begins with this byte.
pub const MAGIC: u8 = 0x10;

/// A request for the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where it came in.
    pub kind: Kind,
    /// The body is plain SQL.
    pub text: bool,
    /// The time that is left.
    pub timeout: Duration,
    /// The parameters.
    pub query: String,
    /// The body.
    pub body: Bytes,
}

/// What the leader made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It isn't the leader; nothing was done.
    NotLeader(String),
    /// For the client.
    Response {
        /// HTTP status.
        status: u16,
        /// The client may try again.
        retry: bool,
        /// Body: JSON with status 200, else text.
        body: Bytes,
    },
}

impl Forward {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(11 + self.query.len() + self.body.len());
        out.put_u8(MAGIC);
        out.put_u8(self.kind as u8);
        out.put_u8(self.text.into());
        out.put_u32_le(u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX));
        out.put_u32_le(u32::try_from(self.query.len()).unwrap_or(u32::MAX));
        out.put_slice(self.query.as_bytes());
        out.put_slice(&self.body);
        out.freeze()
    }

    /// From bytes; `None` if they make no sense.
    pub fn decode(bytes: &Bytes) -> Option<Forward> {
        let (head, _) = bytes.split_at_checked(11)?;
        let number = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
        let kind = match head[1] {
            0 => Kind::Execute,
            1 => Kind::Query,
            2 => Kind::Request,
            _ => return None,
        };
        let (timeout, length) = (number(3)?, number(7)? as usize);
        let end = length.checked_add(11).filter(|&end| end <= bytes.len())?;
        Some(Forward {
            kind,
            text: head[2] != 0,
            timeout: Duration::from_millis(timeout.into()),
            query: std::str::from_utf8(&bytes[11..end]).ok()?.to_owned(),
            body: bytes.slice(end..),
        })
        .filter(|_| head[0] == MAGIC)
    }
}

impl Answer {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        let (status, retry, body) = match self {
            Answer::NotLeader(why) => (0, false, why.as_bytes()),
            Answer::Response { status, retry, body } => (*status, *retry, body.as_ref()),
        };
        let mut out = BytesMut::with_capacity(3 + body.len());
        out.put_u16_le(status);
        out.put_u8(retry.into());
        out.put_slice(body);
        out.freeze()
    }

    /// From bytes; `None` if they make no sense.
    pub fn decode(bytes: &Bytes) -> Option<Answer> {
        let head = bytes.first_chunk::<3>()?;
        let status = u16::from_le_bytes([head[0], head[1]]);
        let body = bytes.slice(3..);
        match status {
            0 => Some(Answer::NotLeader(String::from_utf8_lossy(&body).into_owned())),
            100..=999 => Some(Answer::Response { status, retry: head[2] != 0, body }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for kind in [Kind::Execute, Kind::Query, Kind::Request] {
            let forward = Forward {
                kind,
                text: true,
                timeout: Duration::from_millis(1500),
                query: "pretty&db=x".into(),
                body: Bytes::from_static(b"SELECT 1"),
            };
            assert_eq!(Forward::decode(&forward.encode()), Some(forward));
        }
        let answer = Answer::Response { status: 503, retry: true, body: Bytes::from_static(b"x") };
        for answer in [answer, Answer::NotLeader("why".into())] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
    }

    #[test]
    fn what_makes_no_sense() {
        for bytes in
            [&b""[..], b"\x02", b"\x02\x00\x00\0\0\0\0\xff\xff\xff\xff", b"\x02\x07\0\0\0\0\0\0\0\0\0"]
        {
            assert_eq!(Forward::decode(&Bytes::copy_from_slice(bytes)), None, "{bytes:?}");
        }
        for bytes in [&b""[..], b"\x01", b"\x01\x00\x00"] {
            assert_eq!(Answer::decode(&Bytes::copy_from_slice(bytes)), None, "{bytes:?}");
        }
    }
}
