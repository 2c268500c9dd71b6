//! Chaos: real nodes and real apps, faults of every kind at the same time, and the proof that what was promised holds.
//!
//! One seed gives the schedule of faults ([`plan`]) and what each client does ([`work`]). The nodes ([`nodes`]) live in
//! a network of our own ([`net`], [`links`]), on disks and by clocks that obey a preloaded library ([`disk`]). The
//! clients ([`clients`], [`web`]) use the VFS and HTTP together and record what they did ([`history`]); the nemesis
//! ([`nemesis`]) does the harm; [`run`] ends with all healed, and has the history checked ([`check`]).
//!
//! How to run it for long: docs/chaos.md.

pub mod check;
pub mod clients;
pub mod disk;
pub mod history;
pub mod links;
pub mod nemesis;
pub mod net;
pub mod nodes;
pub mod plan;
pub mod run;
pub mod tun;
pub mod web;
pub mod work;
