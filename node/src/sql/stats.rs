//! What the writers of this node count.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the latency histogram, in microseconds.
pub const LATENCY_BOUNDS: [u64; 14] =
    [250, 500, 1000, 2000, 3000, 5000, 8000, 12_000, 20_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000];
/// Upper bounds of the histogram of batch sizes, in requests.
pub const BATCH_BOUNDS: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/// A histogram with fixed bounds.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: [u64; N],
    counts: [AtomicU64; N],
    above: AtomicU64,
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    const fn new(bounds: [u64; N]) -> Self {
        Histogram {
            bounds,
            counts: [const { AtomicU64::new(0) }; N],
            above: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    /// Adds a value.
    pub fn add(&self, value: u64) {
        let place = self.bounds.iter().zip(&self.counts).find(|(bound, _)| value <= **bound);
        place.map_or(&self.above, |(_, count)| count).fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// Bounds with the number of values up to each, the number of all values, and their sum.
    pub fn snapshot(&self) -> (Vec<(u64, u64)>, u64, u64) {
        let mut total = 0;
        let buckets = self.bounds.iter().zip(&self.counts).map(|(bound, count)| {
            total += count.load(Relaxed);
            (*bound, total)
        });
        let buckets = buckets.collect();
        (buckets, total + self.above.load(Relaxed), self.sum.load(Relaxed))
    }
}

/// Counters of a node's writers.
#[derive(Debug)]
pub struct Stats {
    /// Microseconds of a transaction, from its first statement to its outcome.
    pub commit_micros: Histogram<14>,
    /// Requests in a transaction.
    pub batch: Histogram<10>,
    /// Transactions that changed nothing.
    pub empty: AtomicU64,
    /// Transactions whose outcome was unknown.
    pub unknown: AtomicU64,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            commit_micros: Histogram::new(LATENCY_BOUNDS),
            batch: Histogram::new(BATCH_BOUNDS),
            empty: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        }
    }
}

impl Stats {
    /// A transaction of so many requests has been committed.
    pub fn committed(&self, requests: usize, changed: bool, time: Duration) {
        if !changed {
            self.empty.fetch_add(1, Relaxed);
            return;
        }
        self.commit_micros.add(time.as_micros() as u64);
        self.batch.add(requests as u64);
    }

    /// The outcome of a transaction is unknown.
    pub fn unknown(&self) {
        self.unknown.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let histogram = Histogram::new([1, 2, 4]);
        [0, 1, 2, 3, 9].into_iter().for_each(|value| histogram.add(value));
        assert_eq!(histogram.snapshot(), (vec![(1, 2), (2, 3), (4, 4)], 5, 15));
    }
}
