//! `DIR/recovered`: which members were given up when the cluster was recovered (`recover.rs`).
//!
//! Text, replaced as a whole (`recovered.new` is written, synced and renamed):
//! ```text
//! quire recovered, version 1
//! entry TERM LEADER INDEX without ID ID ...      one line for each recovery
//! crc32 XXXXXXXX                                 of everything before this line, hexadecimal
//! ```

use std::collections::BTreeSet;

use crate::log::segment::Fault;
use crate::{LogPosition, NodeId};

const HEAD: &str = "quire recovered, version ";
const VERSION: u32 = 1;

/// One recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The entry that it appended; without that in the log, it was never completed.
    pub(crate) at: LogPosition,
    /// Whom it gave up.
    pub(crate) without: BTreeSet<NodeId>,
}

/// The file's text.
pub(crate) fn encode(lines: &[Line]) -> String {
    let mut text = format!("{HEAD}{VERSION}\n");
    for Line { at, without } in lines {
        text += &format!("entry {} {} {} without", at.term, at.leader, at.index);
        without.iter().for_each(|id| text += &format!(" {id}"));
        text.push('\n');
    }
    let crc = crc32fast::hash(text.as_bytes());
    text + &format!("crc32 {crc:08x}\n")
}

/// What the file says.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Line>, Fault> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Fault::damaged(error.valid_up_to() as u64, "this is no text"))?;
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    let version = first.strip_prefix(HEAD).and_then(|version| version.parse().ok());
    match version {
        Some(VERSION) => {}
        Some(other) => {
            return Err(Fault { offset: 0, ..Fault::version("file of recoveries", other, VERSION) });
        }
        None => return Err(Fault::damaged(0, format!("the first line is not \"{HEAD}{VERSION}\""))),
    }
    let lines = rest
        .lines()
        .take_while(|line| !line.starts_with("crc32 "))
        .map(|text| line(text).ok_or_else(|| text.to_owned()))
        .collect::<Result<Vec<_>, _>>();
    // As it was written, and in no other way; that includes the checksum.
    match lines {
        Ok(lines) if encode(&lines) == text => Ok(lines),
        Ok(_) => Err(Fault::damaged(0, "crc32 does not match")),
        Err(line) => Err(Fault::damaged(0, format!("a line makes no sense: {line:?}"))),
    }
}

fn line(text: &str) -> Option<Line> {
    let (at, without) = text.strip_prefix("entry ")?.split_once(" without")?;
    let at: Vec<u64> = at.split(' ').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let [term, leader, index] = at[..] else { return None };
    let without = without.split_whitespace().map(|id| id.parse().ok()).collect::<Option<_>>()?;
    Some(Line { at: LogPosition { term, leader, index }, without })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_reads_back_and_every_changed_byte_shows() {
        let at = |index| LogPosition { term: 7, leader: 1, index };
        let lines = vec![
            Line { at: at(41), without: BTreeSet::from([2, 3]) },
            Line { at: at(97), without: BTreeSet::from([4]) },
        ];
        let text = encode(&lines).into_bytes();
        assert_eq!(decode(&text), Ok(lines));
        assert_eq!(decode(encode(&[]).as_bytes()), Ok(Vec::new()));
        for i in 0..text.len() {
            let mut bytes = text.clone();
            bytes[i] ^= 1;
            assert!(decode(&bytes).is_err(), "byte {i}");
            assert!(decode(&text[..i]).is_err(), "cut at {i}");
        }
    }

    /// It was called damaged, with the advice to remove the member.
    #[test]
    fn a_newer_version_names_itself_and_the_way_out() {
        let text = encode(&[]).replace("version 1", "version 2");
        let fault = decode(text.as_bytes()).unwrap_err();
        assert!(
            fault.foreign
                && fault.reason.contains("has version 2, this build of Quire reads version 1: a newer")
        );
    }
}
