//! What a restarted node makes of a database's files.
//!
//! The files are a cache of the log. If no other process has the database open, the WAL and its index are
//! dropped, and the log is read again from the durable index. If some have, the operating system did not
//! crash, so WAL and index are whole and stay: only the question remains which entry they contain.
//!
//! Before a transaction is published, its *publication* (entry, WAL generation, last frame) is recorded in
//! the side file, and marked once it was seen to be published; the next one can't begin before. So at most
//! the newest record is in doubt, and the index's own header settles it.
//!
//! Once the WAL is dropped, what is on record speaks of a WAL that is no more. So before that, all records are made
//! *void*: they still say what was committed, and may have been read, but not what the WAL contains. Otherwise a node
//! that ends again before it has read its log would find them, and a reader that came meanwhile, and take entries for
//! published that are nowhere.

use quire_vfs::format::FrameNo;
use quire_vfs::format::wal::Salts;
use quire_vfs::format::wal_index::IndexHeader;

/// The part of a publication's record that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The entry.
    pub index: u64,
    /// WAL generation.
    pub salts: Salts,
    /// Its last frame.
    pub frame: FrameNo,
    /// It was seen to be published.
    pub seen: bool,
}

impl Publication {
    /// The same entry, of which nothing is said but that it was committed.
    pub fn void(self) -> Publication {
        Publication { salts: Salts::default(), frame: FrameNo(u32::MAX), seen: false, ..self }
    }

    /// Whether it was made so.
    pub fn is_void(&self) -> bool {
        *self == self.void()
    }
}

/// What to do with the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Drop WAL and index; the database file holds the state of the durable index.
    Rebuild,
    /// Keep them: they contain everything up to this entry.
    Resume {
        /// The last entry in them.
        published: u64,
    },
}

/// Chooses. `attached` says whether another process has the database open; `header` is the index's, if
/// valid; `publications` are those on record, in ascending order.
pub fn plan(
    attached: bool,
    header: Option<&IndexHeader>,
    durable: u64,
    publications: &[Publication],
) -> Plan {
    let (true, Some(header)) = (attached, header) else { return Plan::Rebuild };
    let shows = |p: &Publication| header.salts == p.salts && header.max_frame == p.frame;
    let newest = publications.iter().rev().find(|p| p.seen || shows(p));
    Plan::Resume { published: newest.map_or(durable, |p| p.index.max(durable)) }
}

/// Whether the files, which are kept and contain everything up to `published`, have the state of entry `index`, which
/// came from another node. `is_on_record` says whether its publication is among `publications`. Where `ring`
/// publications have come after it, all that are on record, it isn't there any more.
pub fn has_state(
    published: u64,
    index: u64,
    is_on_record: bool,
    publications: &[Publication],
    ring: usize,
) -> bool {
    let overtaken = publications.len() >= ring && publications.iter().all(|p| p.index > index);
    published >= index && (is_on_record || overtaken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(index: u64, generation: u8, frame: u32, seen: bool) -> Publication {
        Publication { index, salts: Salts([generation; 8]), frame: FrameNo(frame), seen }
    }

    fn header(generation: u8, frame: u32) -> IndexHeader {
        IndexHeader { salts: Salts([generation; 8]), max_frame: FrameNo(frame), ..IndexHeader::empty() }
    }

    #[test]
    fn nobody_attached_or_no_index_means_rebuild() {
        let seen = [publication(5, 1, 3, true)];
        assert_eq!(plan(false, Some(&header(1, 3)), 2, &seen), Plan::Rebuild);
        assert_eq!(plan(true, None, 2, &seen), Plan::Rebuild);
    }

    #[test]
    fn void_records_say_nothing_of_the_wal() {
        let void = [publication(5, 1, 3, true).void(), publication(6, 1, 7, true).void()];
        assert!(void[0].is_void() && !publication(5, 1, 3, true).is_void());
        let resume = |published| Plan::Resume { published };
        // The WAL was dropped; a reader came, and the node ended again.
        assert_eq!(
            plan(true, Some(&IndexHeader::empty()), 2, &void),
            resume(2),
            "before it published anything"
        );
        let mut records = vec![void[0], void[1], publication(5, 2, 3, false)];
        assert_eq!(
            plan(true, Some(&IndexHeader::empty()), 2, &records),
            resume(2),
            "before it published that"
        );
        records[2].seen = true;
        assert_eq!(plan(true, Some(&header(2, 3)), 2, &records), resume(5));
    }

    #[test]
    fn the_header_settles_the_newest_record() {
        let records = [publication(5, 1, 3, true), publication(6, 1, 7, false)];
        let resume = |published| Plan::Resume { published };
        assert_eq!(plan(true, Some(&header(1, 3)), 2, &records), resume(5), "not published");
        assert_eq!(plan(true, Some(&header(1, 7)), 2, &records), resume(6), "published, not marked");
        // The next writer started the log anew and got no further.
        assert_eq!(plan(true, Some(&header(2, 0)), 2, &records), resume(5));
        let marked = [records[0], Publication { seen: true, ..records[1] }];
        assert_eq!(plan(true, Some(&header(2, 0)), 2, &marked), resume(6));
        assert_eq!(plan(true, Some(&header(2, 0)), 9, &[]), resume(9), "nothing since the checkpoint");
    }

    #[test]
    fn a_state_of_another_node_is_there_also_when_its_record_is_not() {
        let after: Vec<_> = (6..10).map(|index| publication(index, 1, index as u32, true)).collect();
        assert!(has_state(9, 5, false, &after, 4), "its record was overwritten");
        assert!(!has_state(9, 5, false, &after[1..], 4), "there is room for it, so it never was");
        assert!(!has_state(9, 7, false, &after, 4), "nor here");
        assert!(has_state(9, 7, true, &after, 4));
        assert!(!has_state(6, 7, true, &after, 4), "begun, not published");
    }
}
