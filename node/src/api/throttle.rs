//! Puts off who gives wrong passwords. Sans-io: the time is an argument.
//!
//! Each pair of an address and a name has an allowance of failures that grows back with time; so has each address, for
//! all names together. Where one is used up, nothing is checked until it has grown back by one: a guess is not even told
//! whether it was right. Others at the same address, and the same user elsewhere, are not held up by a pair's failures.
//!
//! An address is an IPv4 address or an IPv6 network of 64 bits. Memory is bounded: when there are too many entries, those
//! that are whole again go, and then all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Failures of one user at one address before he is put off, and how soon one more is allowed.
const OF_USER: Allowance = Allowance { burst: 10, each: Duration::from_secs(1) };
/// Failures at one address.
const AT_ADDRESS: Allowance = Allowance { burst: 100, each: Duration::from_millis(100) };
/// Entries.
const MAX_ENTRIES: usize = 16_384;

#[derive(Clone, Copy, Debug)]
struct Allowance {
    burst: u32,
    each: Duration,
}

/// A name's digest; `None` stands for all at an address.
type Key = (u64, Option<[u8; 32]>);

/// Who has failed of late.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// When each is whole again.
    whole: HashMap<Key, Instant>,
}

fn network(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u64::from(u32::from(v4)),
        // The first 64 bits; none that is in use is as small as an IPv4 address.
        IpAddr::V6(v6) => (u128::from(v6) >> 64) as u64,
    }
}

impl Throttle {
    /// After how many seconds to come again, if whoever says that he is `who` is put off.
    pub(crate) fn put_off(&self, from: IpAddr, who: [u8; 32], now: Instant) -> Option<u64> {
        let network = network(from);
        [((network, Some(who)), OF_USER), ((network, None), AT_ADDRESS)]
            .into_iter()
            .filter_map(|(key, allowance)| {
                let used = self.whole.get(&key)?.saturating_duration_since(now);
                let over = (used + allowance.each).checked_sub(allowance.each * allowance.burst)?;
                (!over.is_zero()).then_some(over.as_millis().div_ceil(1000) as u64)
            })
            .max()
    }

    /// A wrong password.
    pub(crate) fn failed(&mut self, from: IpAddr, who: [u8; 32], now: Instant) {
        if self.whole.len() >= MAX_ENTRIES {
            self.whole.retain(|_, whole| *whole > now);
        }
        if self.whole.len() >= MAX_ENTRIES {
            self.whole.clear();
        }
        let network = network(from);
        for (key, allowance) in [((network, Some(who)), OF_USER), ((network, None), AT_ADDRESS)] {
            let whole = self.whole.entry(key).or_insert(now);
            // Failures that were under way when it was used up count no further than that.
            let most = now + allowance.each * allowance.burst;
            *whole = ((*whole).max(now) + allowance.each).min(most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_user_is_put_off_where_he_fails_and_nowhere_else() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let (bob, ann) = ([1; 32], [2; 32]);
        for n in 0..OF_USER.burst {
            assert_eq!(throttle.put_off(HERE, bob, start), None, "failure {n}");
            throttle.failed(HERE, bob, start);
        }
        assert_eq!(throttle.put_off(HERE, bob, start), Some(1));
        assert_eq!(throttle.put_off(HERE, ann, start), None);
        assert_eq!(throttle.put_off("10.0.0.1".parse().unwrap(), bob, start), None);
        let later = start + OF_USER.each;
        assert_eq!(throttle.put_off(HERE, bob, later), None, "one more");
        throttle.failed(HERE, bob, later);
        assert_eq!(throttle.put_off(HERE, bob, later), Some(1));
        let whole = later + OF_USER.each * OF_USER.burst;
        for _ in 0..OF_USER.burst {
            assert_eq!(throttle.put_off(HERE, bob, whole), None);
            throttle.failed(HERE, bob, whole);
        }
    }

    #[test]
    fn an_address_that_tries_many_names_is_put_off() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        let from = |n: u32| format!("2001:db8:0:1::{n:x}").parse::<IpAddr>().unwrap();
        for n in 0..AT_ADDRESS.burst {
            assert_eq!(throttle.put_off(from(n), [n as u8; 32], now), None);
            throttle.failed(from(n), [n as u8; 32], now);
        }
        assert_eq!(throttle.put_off(from(7777), [255; 32], now), Some(1), "the network counts");
        assert_eq!(throttle.put_off("2001:db8:0:2::1".parse().unwrap(), [255; 32], now), None);
        let mapped = "::ffff:127.0.0.1".parse().unwrap();
        (0..OF_USER.burst).for_each(|_| throttle.failed(mapped, [9; 32], now));
        assert!(throttle.put_off(HERE, [9; 32], now).is_some(), "one machine");
    }

    #[test]
    fn memory_is_bounded() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..2 * MAX_ENTRIES as u32 {
            throttle.failed(IpAddr::V4(n.into()), [0; 32], now);
        }
        assert!(throttle.whole.len() <= MAX_ENTRIES + 2);
    }
}
