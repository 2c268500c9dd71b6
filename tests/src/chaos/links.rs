//! What the network between two nodes does to a packet. No sockets and no clock in here: a packet goes in, and
//! after how long it arrives comes out, not at all, once or twice.

use crate::crash::Rng;
use std::collections::BTreeMap;
use std::time::Duration;

/// One direction between two nodes. Shares are in thousandths of the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Nothing arrives.
    pub cut: bool,
    /// Lost packets.
    pub loss: u64,
    /// Packets that arrive twice.
    pub twice: u64,
    /// Packets that others overtake.
    pub late: u64,
    /// How long each takes.
    pub delay: Duration,
    /// Up to how much longer it may take.
    pub jitter: Duration,
}

/// How much later a packet comes that others overtake.
const LATE: Duration = Duration::from_millis(15);

/// All directions that aren't perfect.
#[derive(Debug)]
pub struct Links {
    rules: BTreeMap<(u8, u8), Link>,
    rng: Rng,
}

impl Links {
    /// A perfect network, whose chances come from `seed`.
    pub fn new(seed: u64) -> Links {
        Links { rules: BTreeMap::new(), rng: Rng::seeded(seed) }
    }

    /// Says what a direction is like.
    pub fn set(&mut self, from: u8, to: u8, link: Link) {
        self.rules.insert((from, to), link);
    }

    /// What a direction is like.
    pub fn get(&self, from: u8, to: u8) -> Link {
        self.rules.get(&(from, to)).copied().unwrap_or_default()
    }

    /// Makes the network perfect again.
    pub fn heal(&mut self) {
        self.rules.clear();
    }

    /// After how long the copies of a packet arrive.
    pub fn pass(&mut self, from: u8, to: u8) -> Vec<Duration> {
        let Some(link) = self.rules.get(&(from, to)).copied() else { return vec![Duration::ZERO] };
        if link.cut || self.rng.below(1000) < link.loss {
            return Vec::new();
        }
        let copies = 1 + u64::from(self.rng.below(1000) < link.twice);
        (0..copies)
            .map(|_| {
                let jitter = self.rng.below(link.jitter.as_micros() as u64 + 1);
                let late = if self.rng.below(1000) < link.late { LATE } else { Duration::ZERO };
                link.delay + Duration::from_micros(jitter) + late
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(link: Link) -> Vec<Vec<Duration>> {
        let mut links = Links::new(7);
        links.set(1, 2, link);
        (0..1000).map(|_| links.pass(1, 2)).collect()
    }

    #[test]
    fn a_cut_has_one_direction() {
        let mut links = Links::new(1);
        links.set(1, 2, Link { cut: true, ..Link::default() });
        assert!(links.pass(1, 2).is_empty());
        assert_eq!(links.pass(2, 1), [Duration::ZERO]);
        links.heal();
        assert_eq!(links.pass(1, 2), [Duration::ZERO]);
    }

    #[test]
    fn packets_are_lost_doubled_and_late_as_often_as_was_said() {
        let lossy = arrivals(Link { loss: 200, ..Link::default() });
        let lost = lossy.iter().filter(|copies| copies.is_empty()).count();
        assert!((150..250).contains(&lost), "{lost}");
        let doubled = arrivals(Link { twice: 300, ..Link::default() });
        let twice = doubled.iter().filter(|copies| copies.len() == 2).count();
        assert!((250..350).contains(&twice), "{twice}");
        let reordered = arrivals(Link { late: 100, ..Link::default() });
        let late = reordered.iter().filter(|copies| copies[0] == LATE).count();
        assert!((60..140).contains(&late), "{late}");
    }

    #[test]
    fn delays_keep_within_their_bounds() {
        let (delay, jitter) = (Duration::from_millis(10), Duration::from_millis(5));
        for copies in arrivals(Link { delay, jitter, ..Link::default() }) {
            assert!(copies[0] >= delay && copies[0] <= delay + jitter, "{copies:?}");
        }
    }
}
