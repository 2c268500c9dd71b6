//! A request on its way to the leader: one message over the authenticated connections between the nodes, and one back.
//!
//! ```text
//! request   magic 0x10 · kind u8 · text u8 · timeout u32, in ms · length u32 of the query · query · body
//!           magic 0x11 · the same, and before the query a number u64
//! answer    status u16, 0 if the node doesn't lead, 1 if the outcome is unknown to it · retry u8 · body
//! question  magic 0x12 · transaction [u8;16] · for each request: number u64 · length u32, or 0xffffffff · results
//! consent   magic 0x12 · for each request that is no longer waited for: number u64
//! ```
//! Numbers are little-endian. The query is that of the client's URL; what it says of time-outs is overruled. The leader
//! puts its question to the node that sent a request with a number ([`super::consent`]).

use super::request::Kind;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use quire_vfs::format::transaction::TxnId;
use std::time::Duration;

/// Neither JSON nor what [`crate::forward`] sends begins with one of these bytes.
const PLAIN: u8 = 0x10;
const NUMBERED: u8 = 0x11;
const QUESTION: u8 = 0x12;
/// The length of results that are left out.
const NONE: u32 = u32::MAX;

/// Whether a message of another node is a request.
pub(crate) fn is_request(bytes: &[u8]) -> bool {
    matches!(bytes, [PLAIN | NUMBERED, ..])
}

/// Whether it is a request with a number, which earlier versions don't know.
pub(crate) fn is_numbered(bytes: &[u8]) -> bool {
    bytes.first() == Some(&NUMBERED)
}

/// Whether it is a question.
pub(crate) fn is_question(bytes: &[u8]) -> bool {
    bytes.first() == Some(&QUESTION)
}

/// A request for the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where it came in.
    pub kind: Kind,
    /// The body is plain SQL.
    pub text: bool,
    /// The time that is left.
    pub timeout: Duration,
    /// What the sender knows it by, if it is to be asked before it is done.
    pub number: Option<u64>,
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
    /// It may have been done. Only of a request with a number.
    Unknown(String),
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
        let mut out = BytesMut::with_capacity(19 + self.query.len() + self.body.len());
        out.put_u8(if self.number.is_some() { NUMBERED } else { PLAIN });
        out.put_u8(self.kind as u8);
        out.put_u8(self.text.into());
        out.put_u32_le(u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX));
        out.put_u32_le(u32::try_from(self.query.len()).unwrap_or(u32::MAX));
        if let Some(number) = self.number {
            out.put_u64_le(number);
        }
        out.put_slice(self.query.as_bytes());
        out.put_slice(&self.body);
        out.freeze()
    }

    /// From bytes; `None` if they make no sense.
    pub fn decode(bytes: &Bytes) -> Option<Forward> {
        let (head, rest) = bytes.split_at_checked(11)?;
        let (its_number, start) = match head[0] {
            PLAIN => (None, 11),
            NUMBERED => (Some(u64::from_le_bytes(*rest.first_chunk()?)), 19),
            _ => return None,
        };
        let number = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
        let kind = match head[1] {
            0 => Kind::Execute,
            1 => Kind::Query,
            2 => Kind::Request,
            _ => return None,
        };
        let (timeout, length) = (number(3)?, number(7)? as usize);
        let end = length.checked_add(start).filter(|&end| end <= bytes.len())?;
        Some(Forward {
            kind,
            text: head[2] != 0,
            timeout: Duration::from_millis(timeout.into()),
            number: its_number,
            query: std::str::from_utf8(&bytes[start..end]).ok()?.to_owned(),
            body: bytes.slice(end..),
        })
    }
}

impl Answer {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        let (status, retry, body) = match self {
            Answer::NotLeader(why) => (0, false, why.as_bytes()),
            Answer::Unknown(why) => (1, false, why.as_bytes()),
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
            1 => Some(Answer::Unknown(String::from_utf8_lossy(&body).into_owned())),
            100..=999 => Some(Answer::Response { status, retry: head[2] != 0, body }),
            _ => None,
        }
    }
}

/// What the leader asks a node before it proposes a transaction with requests of that node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The transaction.
    pub id: TxnId,
    /// The requests, by their numbers, and what each is answered if it commits, unless that is too much.
    pub requests: Vec<(u64, Option<Bytes>)>,
}

impl Question {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        let size = |(_, results): &(u64, Option<Bytes>)| 12 + results.as_ref().map_or(0, Bytes::len);
        let mut out = BytesMut::with_capacity(17 + self.requests.iter().map(size).sum::<usize>());
        out.put_u8(QUESTION);
        out.put_slice(&self.id.0);
        for (number, results) in &self.requests {
            out.put_u64_le(*number);
            out.put_u32_le(results.as_ref().map_or(NONE, |results| results.len() as u32));
            out.put_slice(results.as_deref().unwrap_or_default());
        }
        out.freeze()
    }

    /// From bytes; `None` if they make no sense.
    pub fn decode(bytes: &Bytes) -> Option<Question> {
        let mut rest = bytes.clone();
        let [QUESTION, id @ ..] = *rest.first_chunk::<17>()? else { return None };
        rest.advance(17);
        let mut requests = Vec::new();
        while !rest.is_empty() {
            let number = rest.try_get_u64_le().ok()?;
            let results = match rest.try_get_u32_le().ok()? {
                NONE => None,
                length if length as usize <= rest.len() => Some(rest.split_to(length as usize)),
                _ => return None,
            };
            requests.push((number, results));
        }
        Some(Question { id: TxnId(id), requests })
    }
}

/// The answer to a question: these requests are no longer waited for.
pub(crate) fn encode_consent(without: &[u64]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + 8 * without.len());
    out.put_u8(QUESTION);
    without.iter().for_each(|number| out.put_u64_le(*number));
    out.freeze()
}

/// From bytes; `None` if they make no sense.
pub(crate) fn decode_consent(bytes: &[u8]) -> Option<Vec<u64>> {
    let (&QUESTION, numbers) = bytes.split_first()? else { return None };
    let (numbers, []) = numbers.as_chunks::<8>() else { return None };
    Some(numbers.iter().map(|number| u64::from_le_bytes(*number)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_there_and_back() {
        let results = Some(Bytes::from_static(b"{}"));
        for requests in [vec![], vec![(7, results.clone())], vec![(7, None), (u64::MAX, results)]] {
            let question = Question { id: TxnId([9; 16]), requests };
            let bytes = question.encode();
            assert!(is_question(&bytes) && !is_request(&bytes));
            assert_eq!(Question::decode(&bytes), Some(question));
            for end in (0..bytes.len()).filter(|end| *end < 17) {
                assert_eq!(Question::decode(&bytes.slice(..end)), None);
            }
        }
        let cut =
            Question { id: TxnId([9; 16]), requests: vec![(7, Some(Bytes::from_static(b"{}")))] }.encode();
        (18..cut.len()).for_each(|end| assert_eq!(Question::decode(&cut.slice(..end)), None, "{end}"));
        for without in [&[][..], &[1], &[1, u64::MAX]] {
            assert_eq!(decode_consent(&encode_consent(without)).as_deref(), Some(without));
        }
        for bad in [&b""[..], b"\x11", b"\x12\x00", b"{\"Refused\":\"\"}"] {
            assert_eq!(decode_consent(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn there_and_back() {
        for (kind, number) in [(Kind::Execute, None), (Kind::Query, Some(7)), (Kind::Request, Some(u64::MAX))]
        {
            let forward = Forward {
                kind,
                text: true,
                timeout: Duration::from_millis(1500),
                number,
                query: "pretty&db=x".into(),
                body: Bytes::from_static(b"SELECT 1"),
            };
            assert_eq!(Forward::decode(&forward.encode()), Some(forward));
        }
        let answer = Answer::Response { status: 503, retry: true, body: Bytes::from_static(b"x") };
        for answer in [answer, Answer::NotLeader("why".into()), Answer::Unknown("why".into())] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
    }

    #[test]
    fn what_makes_no_sense() {
        for bytes in [
            &b""[..],
            b"\x10",
            b"\x10\x00\x00\0\0\0\0\xff\xff\xff\xff",
            b"\x10\x07\0\0\0\0\0\0\0\0\0",
            b"\x11\x00\x00\0\0\0\0\0\0\0\0\0",
            b"\x0f\x00\0\0\0\0\0\0\0\0\0",
        ] {
            assert_eq!(Forward::decode(&Bytes::copy_from_slice(bytes)), None, "{bytes:?}");
        }
        for bytes in [&b""[..], b"\x01", b"\x02\x00\x00"] {
            assert_eq!(Answer::decode(&Bytes::copy_from_slice(bytes)), None, "{bytes:?}");
        }
    }
}
