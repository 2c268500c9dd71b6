//! The database checksum: XOR over all pages of `hash64(page number ‖ page)`.
//!
//! The hash is XXH3-64 of the page with the page number as its seed. Because XOR can be undone, a commit
//! costs as much as the pages that it writes: the old hash of each page leaves the sum, the new one enters
//! it. The [`PageHashes`] array remembers the hash of every page for that.
//!
//! A page that exists (is inside the database) but was never written is all zeros and counts as such; so
//! does the lock-byte page. A page that was cut off leaves the sum, and comes back as zeros.

use super::{PageNo, PageSize};
use std::fmt;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The checksum of a whole database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DbChecksum(pub u64);

impl fmt::Display for DbChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The hash of one page at its place.
pub fn page_hash(page: PageNo, data: &[u8]) -> u64 {
    xxh3_64_with_seed(data, u64::from(page.0))
}

/// The hash of each page of a database, and their XOR.
#[derive(Clone, Debug)]
pub struct PageHashes {
    page_size: PageSize,
    hashes: Vec<u64>,
    sum: u64,
}

/// What a transaction changes in a [`PageHashes`]: computed before it is proposed, applied once it has
/// committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashDelta {
    new_len: u32,
    /// Page number and new hash, ascending.
    pages: Vec<(PageNo, u64)>,
}

impl PageHashes {
    /// An empty database of that page size.
    pub fn new(page_size: PageSize) -> PageHashes {
        PageHashes { page_size, hashes: Vec::new(), sum: 0 }
    }

    /// From a stored array.
    pub fn from_hashes(page_size: PageSize, hashes: Vec<u64>) -> PageHashes {
        let sum = hashes.iter().fold(0, |sum, hash| sum ^ hash);
        PageHashes { page_size, hashes, sum }
    }

    /// Checksum of the whole database.
    pub fn checksum(&self) -> DbChecksum {
        DbChecksum(self.sum)
    }

    /// Number of pages.
    pub fn len(&self) -> u32 {
        self.hashes.len() as u32
    }

    /// Whether there are no pages.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The pages' size.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The hash of a page, if the database has it.
    pub fn get(&self, page: PageNo) -> Option<u64> {
        self.hashes.get((page.0 as usize).checked_sub(1)?).copied()
    }

    /// All hashes in page order.
    pub fn as_slice(&self) -> &[u64] {
        &self.hashes
    }

    /// Hashes a transaction's pages, which come in ascending order. Pages past `new_len` do not count.
    pub fn delta<'a>(new_len: u32, pages: impl IntoIterator<Item = (PageNo, &'a [u8])>) -> HashDelta {
        let pages =
            pages.into_iter().filter(|(no, _)| no.0 <= new_len).map(|(no, data)| (no, page_hash(no, data)));
        HashDelta { new_len, pages: pages.collect() }
    }

    /// The checksum that the database will have after `delta`.
    pub fn checksum_after(&self, delta: &HashDelta) -> DbChecksum {
        let mut sum = self.sum;
        for hash in self.hashes.iter().skip(delta.new_len as usize) {
            sum ^= hash;
        }
        // Pages by which it grows and that are not written: none, as a rule.
        let mut zero = ZeroPage::new(self.page_size);
        let mut next = self.len() + 1;
        for &(page, hash) in &delta.pages {
            sum ^= hash;
            match self.get(page) {
                Some(old) => sum ^= old,
                None => {
                    (next..page.0).for_each(|gap| sum ^= zero.hash(PageNo(gap)));
                    next = page.0 + 1;
                }
            }
        }
        (next..=delta.new_len).for_each(|gap| sum ^= zero.hash(PageNo(gap)));
        DbChecksum(sum)
    }

    /// Makes the change and returns the checksum after it.
    pub fn apply(&mut self, delta: &HashDelta) -> DbChecksum {
        let new_len = delta.new_len as usize;
        for hash in self.hashes.iter().skip(new_len) {
            self.sum ^= hash;
        }
        self.hashes.truncate(new_len);
        let mut zero = ZeroPage::new(self.page_size);
        for &(page, hash) in &delta.pages {
            let at = page.0 as usize - 1;
            if let Some(slot) = self.hashes.get_mut(at) {
                self.sum ^= *slot ^ hash;
                *slot = hash;
                continue;
            }
            self.grow(at, &mut zero);
            self.sum ^= hash;
            self.hashes.push(hash);
        }
        self.grow(new_len, &mut zero);
        self.checksum()
    }

    /// Adds pages of zeros until there are `len`.
    fn grow(&mut self, len: usize, zero: &mut ZeroPage) {
        while self.hashes.len() < len {
            let hash = zero.hash(PageNo(self.hashes.len() as u32 + 1));
            self.sum ^= hash;
            self.hashes.push(hash);
        }
    }
}

impl HashDelta {
    /// From hashes that were made before; ascending, and none beyond `new_len`.
    pub fn from_hashes(new_len: u32, pages: Vec<(PageNo, u64)>) -> HashDelta {
        debug_assert!(pages.is_sorted_by(|a, b| a.0 < b.0) && pages.last().is_none_or(|p| p.0.0 <= new_len));
        HashDelta { new_len, pages }
    }

    /// Number of pages in the database after it.
    pub fn new_len(&self) -> u32 {
        self.new_len
    }

    /// The pages that it writes, ascending.
    pub fn pages(&self) -> impl ExactSizeIterator<Item = PageNo> + '_ {
        self.pages.iter().map(|&(page, _)| page)
    }
}

/// Hashes of zero pages, with the page of zeros made once and only if it is needed.
struct ZeroPage {
    size: PageSize,
    zeros: Vec<u8>,
}

impl ZeroPage {
    fn new(size: PageSize) -> ZeroPage {
        ZeroPage { size, zeros: Vec::new() }
    }

    fn hash(&mut self, page: PageNo) -> u64 {
        self.zeros.resize(self.size.bytes(), 0);
        page_hash(page, &self.zeros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn from_scratch(size: PageSize, pages: &[Vec<u8>]) -> DbChecksum {
        let sums = pages.iter().enumerate().map(|(i, data)| {
            assert_eq!(data.len(), size.bytes());
            page_hash(PageNo(i as u32 + 1), data)
        });
        DbChecksum(sums.fold(0, |a, b| a ^ b))
    }

    proptest! {
        #[test]
        fn incremental_equals_from_scratch(
            steps in proptest::collection::vec(
                (1u32..20, proptest::collection::btree_map(1u32..20, any::<u8>(), 0..6)), 1..20),
        ) {
            let size = PageSize::new(512).unwrap();
            let mut model: Vec<Vec<u8>> = vec![];
            let mut hashes = PageHashes::new(size);
            for (len, writes) in steps {
                model.resize(len as usize, vec![0; 512]);
                let pages: Vec<_> = writes.iter().map(|(&no, &b)| (PageNo(no), vec![b; 512])).collect();
                for (no, data) in &pages {
                    if no.0 <= len {
                        model[no.0 as usize - 1] = data.clone();
                    }
                }
                let delta = PageHashes::delta(len, pages.iter().map(|(no, d)| (*no, d.as_slice())));
                let foretold = hashes.checksum_after(&delta);
                prop_assert_eq!(hashes.apply(&delta), foretold);
                prop_assert_eq!(foretold, from_scratch(size, &model));
            }
            let stored = PageHashes::from_hashes(size, hashes.as_slice().to_vec());
            prop_assert_eq!(stored.checksum(), hashes.checksum());
        }
    }
}
