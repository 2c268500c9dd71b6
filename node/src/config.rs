//! A node's configuration, validated. What a user may write stands in [`crate::args`].

use crate::args::NodeArgs;
use crate::db::registry::Keep;
use quire_vfs::gate::proto::PART_BYTES;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A configuration that a node can be started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything that the node keeps.
    pub data_dir: PathBuf,
    /// Its id.
    pub node_id: u64,
    /// Where HTTP listens.
    pub http_addr: SocketAddr,
    /// Where Raft listens (QUIC over UDP).
    pub raft_addr: SocketAddr,
    /// Where others reach its HTTP.
    pub http_adv_addr: String,
    /// Where others reach its Raft.
    pub raft_adv_addr: String,
    /// Raft addresses of nodes to join or to bootstrap with.
    pub join: Vec<String>,
    /// Start a new cluster once that many nodes have met.
    pub bootstrap_expect: Option<usize>,
    /// Join without a vote.
    pub non_voter: bool,
    /// How long one attempt to join waits for the node to catch up.
    pub catch_up: Duration,
    /// The cluster key's file, if not `DIR/cluster.key`.
    pub cluster_key: Option<PathBuf>,
    /// A group that may use the gate's socket.
    pub socket_group: Option<String>,
    /// Raft's heartbeat.
    pub heartbeat: Duration,
    /// Raft's shortest election timeout; the longest is twice that.
    pub election_timeout: Duration,
    /// Size of a log segment, in bytes.
    pub segment_bytes: u64,
    /// Bounds on a transaction.
    pub limits: Limits,
    /// A WAL with so many bytes of pages is checkpointed.
    pub checkpoint_bytes: u64,
    /// Bytes of entries that wait in each database while an app keeps this node from applying them, and of all together
    /// while no app does.
    pub queue_bytes: usize,
    /// How many databases are kept open that nobody uses, and for how long.
    pub keep: Keep,
    /// Bytes of log that a purge leaves.
    pub log_retain_bytes: u64,
    /// How long a writer may hold the lease without progress while others wait.
    pub lease_timeout: Duration,
    /// Bytes that are scrubbed in a second; 0: none.
    pub scrub_bytes_per_second: u64,
    /// Pause between two scrubs of all of a database.
    pub scrub_pause: Duration,
    /// Threads that serve HTTP.
    pub http_threads: usize,
    /// Who may use HTTP.
    pub auth: Option<PathBuf>,
    /// Certificate and key for HTTPS.
    pub https: Option<(PathBuf, PathBuf)>,
    /// Whether the connections of the HTTP API enforce foreign keys.
    pub foreign_keys: bool,
}

/// Bounds on one transaction.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long an app may wait for an outcome.
    pub commit_deadline: Duration,
    /// Bytes of the pages of the largest transaction.
    pub max_transaction: u64,
    /// Bytes of pages in one message of an app, and so in one entry of the log.
    pub part_bytes: u32,
}

/// A configuration that can't work.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag that must be there is not.
    #[error("{0} is missing; give it as a flag, in the configuration file or in the environment")]
    Missing(&'static str),
    /// A value that can't be used.
    #[error("{flag}: {reason}")]
    Value {
        /// The flag.
        flag: &'static str,
        /// What is wrong, and what to do.
        reason: String,
    },
}

impl Config {
    /// The scheme of URLs of this cluster's HTTP.
    pub fn http_scheme(&self) -> &'static str {
        if self.https.is_some() { "https" } else { "http" }
    }

    /// Validates what the user gave.
    pub fn new(args: NodeArgs) -> Result<Config, ConfigError> {
        let bad = |flag, reason: String| Err(ConfigError::Value { flag, reason });
        let data_dir = args.data_dir.ok_or(ConfigError::Missing("--data-dir"))?;
        let node_id = args.node_id.ok_or(ConfigError::Missing("--node-id"))?;
        if node_id == 0 {
            return bad("--node-id", "0 is no node id; ids begin at 1".into());
        }
        let http_addr = args.http_addr.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 4001)));
        let raft_addr = args.raft_addr.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 4002)));
        let advertised = |flag, given: Option<String>, bound: SocketAddr| match given {
            Some(text) => match text.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text),
                _ => Err(ConfigError::Value { flag, reason: format!("{text:?} is not HOST:PORT") }),
            },
            None if bound.ip().is_unspecified() => Err(ConfigError::Value {
                flag,
                reason: format!("needed, since others can't connect to {bound}"),
            }),
            None => Ok(bound.to_string()),
        };
        let http_adv_addr = advertised("--http-adv-addr", args.http_adv_addr, http_addr)?;
        let raft_adv_addr = advertised("--raft-adv-addr", args.raft_adv_addr, raft_addr)?;
        if args.bootstrap_expect == Some(0) {
            return bad("--bootstrap-expect", "a cluster has at least one node".into());
        }
        if args.bootstrap_expect.is_some_and(|n| n > 1) && args.join.is_empty() {
            return bad(
                "--bootstrap-expect",
                "needs --join with the Raft addresses of the other nodes".into(),
            );
        }
        if let Some(expect) = args.bootstrap_expect.filter(|n| *n > 1) {
            // Otherwise two halves of the list could each start a cluster.
            let listed = args.join.iter().collect::<std::collections::BTreeSet<_>>().len();
            if listed > expect {
                return bad(
                    "--bootstrap-expect",
                    format!(
                        "is {expect}, but --join names {listed} addresses; name the {expect} nodes that start the \
                         cluster, and let the others join it without --bootstrap-expect"
                    ),
                );
            }
            if args.non_voter {
                return bad("--non-voter", "the nodes that start a cluster vote; use --join alone".into());
            }
        }
        let heartbeat = Duration::from_millis(args.heartbeat_ms.unwrap_or(100));
        let election_timeout = Duration::from_millis(args.election_timeout_ms.unwrap_or(500));
        if heartbeat.is_zero() || election_timeout < 3 * heartbeat {
            return bad("--election-timeout-ms", "must be at least three heartbeats".into());
        }
        let segment_mib = args.log_segment_mib.unwrap_or(16);
        if !(1..=1024).contains(&segment_mib) {
            return bad("--log-segment-mib", format!("{segment_mib} is not from 1 to 1024"));
        }
        let deadline = args.commit_timeout_ms.unwrap_or(10_000);
        if !(100..=600_000).contains(&deadline) {
            return bad("--commit-timeout-ms", format!("{deadline} is not from 100 to 600000"));
        }
        let lease_timeout = args.lease_timeout_ms.unwrap_or(10_000);
        if !(100..=3_600_000).contains(&lease_timeout) {
            return bad("--lease-timeout-ms", format!("{lease_timeout} is not from 100 to 3600000"));
        }
        let log_retain_mib = args.log_retain_mib.unwrap_or(64);
        if log_retain_mib > 1 << 20 {
            return bad("--log-retain-mib", format!("{log_retain_mib} is above 1048576"));
        }
        let scrub_rate_mib = args.scrub_rate_mib.unwrap_or(4);
        if scrub_rate_mib > 4096 {
            return bad("--scrub-rate-mib", format!("{scrub_rate_mib} is above 4096"));
        }
        let checkpoint_mib = args.checkpoint_mib.unwrap_or(16);
        if !(1..=65_536).contains(&checkpoint_mib) {
            return bad("--checkpoint-mib", format!("{checkpoint_mib} is not from 1 to 65536"));
        }
        let most = args.max_open_databases.unwrap_or(256);
        if !(1..=65_536).contains(&most) {
            return bad("--max-open-databases", format!("{most} is not from 1 to 65536"));
        }
        let idle = args.idle_timeout_ms.unwrap_or(300_000);
        if !(100..=86_400_000).contains(&idle) {
            return bad("--idle-timeout-ms", format!("{idle} is not from 100 to 86400000"));
        }
        let max_transaction = match args.max_transaction_mib.unwrap_or(0) {
            0 => u64::MAX,
            mib => mib.saturating_mul(1 << 20),
        };
        let part_kib = args.part_kib.unwrap_or(PART_BYTES >> 10);
        if !(1..=32_768).contains(&part_kib) {
            return bad("--part-kib", format!("{part_kib} is not from 1 to 32768"));
        }
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let http_threads = args.http_threads.unwrap_or(processors.div_ceil(2));
        if !(1..=1024).contains(&http_threads) {
            return bad("--http-threads", format!("{http_threads} is not from 1 to 1024"));
        }
        let https = match (args.http_cert, args.http_key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return bad("--http-cert", "certificate and key (--http-key) go together".into()),
        };
        let commit_deadline = Duration::from_millis(deadline);
        Ok(Config {
            data_dir,
            node_id,
            http_addr,
            raft_addr,
            http_adv_addr,
            raft_adv_addr,
            join: args.join,
            bootstrap_expect: args.bootstrap_expect,
            non_voter: args.non_voter,
            catch_up: Duration::from_millis(args.catch_up_ms.unwrap_or(60_000)),
            cluster_key: args.cluster_key,
            socket_group: args.socket_group,
            heartbeat,
            election_timeout,
            segment_bytes: segment_mib << 20,
            limits: Limits { commit_deadline, max_transaction, part_bytes: part_kib << 10 },
            checkpoint_bytes: checkpoint_mib << 20,
            queue_bytes: args.queue_mib.unwrap_or(64).clamp(1, 4096) << 20,
            keep: Keep { most, idle: Duration::from_millis(idle) },
            lease_timeout: Duration::from_millis(lease_timeout),
            log_retain_bytes: log_retain_mib << 20,
            scrub_bytes_per_second: scrub_rate_mib << 20,
            scrub_pause: Duration::from_secs(args.scrub_pause_s.unwrap_or(3600).into()),
            http_threads,
            auth: args.auth,
            https,
            foreign_keys: args.foreign_keys,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut NodeArgs)) -> Option<String> {
        let mut args = NodeArgs { data_dir: Some("d".into()), node_id: Some(1), ..NodeArgs::default() };
        change(&mut args);
        Config::new(args).err().map(|error| error.to_string())
    }

    #[test]
    fn who_starts_a_cluster() {
        let join = |addresses: &[&str]| addresses.iter().map(|&a| a.to_owned()).collect::<Vec<_>>();
        let expect = |n, addresses: &[&str]| {
            let join = join(addresses);
            refusal(|args| (args.bootstrap_expect, args.join) = (Some(n), join))
        };
        assert_eq!(expect(3, &["a:1", "b:1", "c:1"]), None);
        assert_eq!(expect(3, &["b:1", "c:1"]), None);
        assert_eq!(expect(3, &["a:1", "b:1", "c:1", "a:1"]), None, "named twice");
        assert!(expect(3, &[]).is_some_and(|why| why.contains("needs --join")));
        assert!(
            expect(3, &["a:1", "b:1", "c:1", "d:1"]).is_some_and(|why| why.contains("names 4 addresses"))
        );
        let replica = |n| {
            refusal(|args| (args.bootstrap_expect, args.join, args.non_voter) = (n, join(&["a:1"]), true))
        };
        assert!(replica(Some(3)).is_some_and(|why| why.contains("--non-voter")));
        assert_eq!(replica(None), None);
        // A replica that is started again may leave --join out.
        assert_eq!(refusal(|args| args.non_voter = true), None);
    }
}
