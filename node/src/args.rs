//! What a user may write on the command line, in the environment (`QUIRE_*`) and in a TOML file. Raw: what
//! it comes to is decided in [`crate::config`].

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Quire makes SQLite apps highly available: it replicates each committed transaction's pages by Raft.
#[derive(Debug, Parser)]
#[command(name = "quire", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Log filter, such as `info` or `quire_node=debug`.
    #[arg(
        long,
        global = true,
        env = "QUIRE_LOG",
        default_value = "info,openraft=error",
        value_name = "FILTER"
    )]
    pub log: String,
    /// Write log lines as JSON.
    #[arg(long, global = true, env = "QUIRE_LOG_JSON")]
    pub log_json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node.
    Node(Box<NodeArgs>),
    /// Show a three-node cluster at work: a stock SQLite app, a killed leader, a verified end.
    Demo(DemoArgs),
    /// Show a cluster's nodes and databases.
    Status(ClientArgs),
    /// Prove that all nodes hold the same databases.
    Verify(VerifyArgs),
    /// Create, drop, list, import or export databases.
    Db(DbArgs),
    /// Type SQL, at a prompt or in a pipe, on any node.
    #[command(
        long_about = "Type SQL, at a prompt or in a pipe, on a node of Quire or any server with rqlite's API. At a prompt \
        there are history, completion (Tab), statements of several lines, and commands that begin with a dot: .help \
        lists them. BEGIN opens a transaction, which COMMIT ends. When a node dies, the shell goes on at another. Without \
        a terminal it reads statements from standard input, prints results without headings, columns separated by '|', \
        and fails if any statement did.",
        after_help = "Examples:\n  quire shell 10.0.0.1:4001\n  quire shell 10.0.0.1:4001,10.0.0.2:4001 --db shop\n  \
        quire shell 10.0.0.1:4001 'SELECT count(*) FROM orders'\n  quire shell --csv --headers <report.sql >report.csv"
    )]
    Shell(Box<ShellArgs>),
    /// Take a backup of a database, or of all, while everything goes on.
    #[command(
        long_about = "Take a backup of a database, or with --all of each, from any node, while everything goes \
        on. It contains everything that was committed before, and is consistent: the database as it was at one entry \
        of the log. By default it is a SQLite file that can be opened anywhere, with a rollback journal; --fmt sql \
        gives an SQL script. It is written under another name first, so that FILE is never half a backup."
    )]
    Backup(BackupArgs),
    /// Make a database's content what a backup, a SQLite file or an SQL script says.
    #[command(
        long_about = "Make a database's content what a backup, any SQLite file or an SQL script says, in one \
        transaction: apps that have it open see one switch, and if anything fails nothing is changed. A database \
        that does not exist is created. With --all, each FILE.db and FILE.sql of a directory, as quire backup --all \
        leaves it, becomes the database of its name. A database that has content is replaced with --force only."
    )]
    Restore(RestoreArgs),
    /// Look into files without a running node.
    Inspect(InspectArgs),
    /// Measure commits through the VFS against plain SQLite.
    Bench(BenchArgs),
    /// Remove a member from the cluster for good.
    #[command(
        long_about = "Remove a member from the cluster for good, voter or read replica, running or not. \
        A leader that is to go hands the lead over first. It takes a majority of the voters to remove one. \
        The removed node notices, says so in its log and its status, and serves no more writes; stop it. Its id \
        must never be used again: the machine may come back under a new id, with an empty directory and --join."
    )]
    Remove(RemoveArgs),
    /// Show the leader, or have it hand the lead over.
    #[command(
        long_about = "Without --to and --step-down: show which node leads. Otherwise have the leader hand \
        the lead over, to the node named or to the voter that can best take it, and wait until that leads."
    )]
    Leader(LeaderArgs),
    /// Make one stopped survivor the only voter, when the majority is gone for good.
    #[command(
        long_about = "When a majority of the voters is gone for good: make one survivor, which must be \
        stopped, the only voter of its cluster. Without --yes-i-know-what-may-be-lost nothing is changed; it only \
        says what would be done and what may be lost. Afterwards start the node, and let others join under new \
        node ids with empty directories. Look at every survivor first, and recover the one with the greatest last \
        entry. Members that are up again by themselves, or can be repaired, need no recovery."
    )]
    Recover(RecoverArgs),
    /// Print a hash of a password, for the file of --auth. The password is read from standard input.
    Passwd,
    /// Look up what became of a transaction.
    #[command(
        long_about = "Look up what became of a transaction whose outcome an app was not told: an error in COMMIT \
        whose line in SQLite's error log says `outcome of transaction ID on NAME unknown`. Any node may be asked; it \
        remembers the last 4096 transactions of each database, of those that it has read from its log since its start."
    )]
    Tx(TxArgs),
    /// An app of the demo and the tests; not for other use.
    #[command(hide = true)]
    Host(HostArgs),
}

/// Flags of `quire node`. The TOML file has the same names, with `_` for `-`.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeArgs {
    /// Read further settings from a TOML file; flags and environment go first.
    #[arg(long, env = "QUIRE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory for everything that the node keeps.
    #[arg(long, env = "QUIRE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The node's id: a number that no other node has or ever had.
    #[arg(long, env = "QUIRE_NODE_ID", value_name = "N")]
    pub node_id: Option<u64>,
    /// Listen here for HTTP [default: 127.0.0.1:4001].
    #[arg(long, env = "QUIRE_HTTP_ADDR", value_name = "ADDR")]
    pub http_addr: Option<SocketAddr>,
    /// Listen here for other nodes, on UDP [default: 127.0.0.1:4002].
    #[arg(long, env = "QUIRE_RAFT_ADDR", value_name = "ADDR")]
    pub raft_addr: Option<SocketAddr>,
    /// Address of HTTP for others [default: as --http-addr].
    #[arg(long, env = "QUIRE_HTTP_ADV_ADDR", value_name = "HOST:PORT")]
    pub http_adv_addr: Option<String>,
    /// Address for other nodes [default: as --raft-addr].
    #[arg(long, env = "QUIRE_RAFT_ADV_ADDR", value_name = "HOST:PORT")]
    pub raft_adv_addr: Option<String>,
    /// Join the cluster of these nodes; or, with --bootstrap-expect, start one with them.
    #[arg(long, env = "QUIRE_JOIN", value_name = "RAFT_ADDR", value_delimiter = ',')]
    pub join: Vec<String>,
    /// Start a new cluster as soon as this many nodes have met.
    #[arg(long, env = "QUIRE_BOOTSTRAP_EXPECT", value_name = "N")]
    pub bootstrap_expect: Option<usize>,
    /// Join as a read replica that does not vote. It stays one until it is started with --join and without this.
    #[arg(long, env = "QUIRE_NON_VOTER")]
    pub non_voter: bool,
    /// The cluster's key: 32 random bytes, the same on all nodes, mode 0600 [default: DIR/cluster.key].
    #[arg(long, env = "QUIRE_CLUSTER_KEY", value_name = "FILE")]
    pub cluster_key: Option<PathBuf>,
    /// Let members of this group open databases, too.
    #[arg(long, env = "QUIRE_SOCKET_GROUP", value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// How long a COMMIT may wait for its outcome [default: 10000].
    #[arg(long, env = "QUIRE_COMMIT_TIMEOUT_MS", value_name = "MS")]
    pub commit_timeout_ms: Option<u64>,
    /// How long a transaction may stand open while others wait to write; then it gives way, and its COMMIT is
    /// refused [default: 10000].
    #[arg(long, env = "QUIRE_LEASE_TIMEOUT_MS", value_name = "MS")]
    pub lease_timeout_ms: Option<u64>,
    /// Refuse transactions whose pages take more than this; 0 is no limit [default: 0].
    #[arg(long, env = "QUIRE_MAX_TRANSACTION_MIB", value_name = "MIB")]
    pub max_transaction_mib: Option<u64>,
    /// Pages in one message of an app, in KiB; larger transactions are sent in parts. For tests.
    #[arg(long, env = "QUIRE_PART_KIB", value_name = "KIB", hide = true)]
    pub part_kib: Option<u32>,
    /// Interval of the leader's heartbeats [default: 100].
    #[arg(long, env = "QUIRE_HEARTBEAT_MS", value_name = "MS")]
    pub heartbeat_ms: Option<u64>,
    /// Shortest election timeout; the longest is twice that [default: 500].
    #[arg(long, env = "QUIRE_ELECTION_TIMEOUT_MS", value_name = "MS")]
    pub election_timeout_ms: Option<u64>,
    /// Size of a segment of the Raft log [default: 16].
    #[arg(long, env = "QUIRE_LOG_SEGMENT_MIB", value_name = "MIB")]
    pub log_segment_mib: Option<u64>,
    /// Checkpoint a database when its WAL holds this much [default: 16].
    #[arg(long, env = "QUIRE_CHECKPOINT_MIB", value_name = "MIB")]
    pub checkpoint_mib: Option<u64>,
    /// Entries that wait for workers, and of a database while an app on this node stands still, in MiB. For tests.
    #[arg(long, env = "QUIRE_QUEUE_MIB", value_name = "MIB", hide = true)]
    pub queue_mib: Option<usize>,
    /// Keep so many databases open at most, not counting those that are in use [default: 256].
    #[arg(long, env = "QUIRE_MAX_OPEN_DATABASES", value_name = "N")]
    pub max_open_databases: Option<usize>,
    /// Close a database that nobody has used for so long; it is opened again when it is needed [default: 300000].
    #[arg(long, env = "QUIRE_IDLE_TIMEOUT_MS", value_name = "MS")]
    pub idle_timeout_ms: Option<u64>,
    /// Keep at least this much of the Raft log, for members that lag, when it is purged [default: 64].
    #[arg(long, env = "QUIRE_LOG_RETAIN_MIB", value_name = "MIB")]
    pub log_retain_mib: Option<u64>,
    /// Look for damaged pages in the background at this rate, in MiB per second; 0: never [default: 4].
    #[arg(long, env = "QUIRE_SCRUB_RATE_MIB", value_name = "MIB")]
    pub scrub_rate_mib: Option<u64>,
    /// Pause between two such looks at all of a database, in seconds [default: 3600].
    #[arg(long, env = "QUIRE_SCRUB_PAUSE_S", value_name = "S")]
    pub scrub_pause_s: Option<u32>,
    /// Threads that serve HTTP [default: half as many as the machine has processors].
    #[arg(long, env = "QUIRE_HTTP_THREADS", value_name = "N")]
    pub http_threads: Option<usize>,
    /// Let only users of this file use HTTP, as its JSON says [default: everybody].
    #[arg(long, env = "QUIRE_AUTH", value_name = "FILE")]
    pub auth: Option<PathBuf>,
    /// Speak HTTPS with the certificate chain of this file, in PEM; with --http-key.
    #[arg(long, env = "QUIRE_HTTP_CERT", value_name = "FILE", requires = "http_key")]
    pub http_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM.
    #[arg(long, env = "QUIRE_HTTP_KEY", value_name = "FILE", requires = "http_cert")]
    pub http_key: Option<PathBuf>,
    /// Have SQL that comes over HTTP enforce foreign keys.
    #[arg(long, env = "QUIRE_FOREIGN_KEYS")]
    pub foreign_keys: bool,
    /// How long one attempt to join waits for the node to catch up [default: 60000]. For tests.
    #[arg(long, env = "QUIRE_CATCH_UP_MS", value_name = "MS", hide = true)]
    pub catch_up_ms: Option<u64>,
}

impl NodeArgs {
    /// Fills in from `file` what neither flag nor environment gave.
    pub fn or(self, file: NodeArgs) -> NodeArgs {
        NodeArgs {
            config: self.config,
            data_dir: self.data_dir.or(file.data_dir),
            node_id: self.node_id.or(file.node_id),
            http_addr: self.http_addr.or(file.http_addr),
            raft_addr: self.raft_addr.or(file.raft_addr),
            http_adv_addr: self.http_adv_addr.or(file.http_adv_addr),
            raft_adv_addr: self.raft_adv_addr.or(file.raft_adv_addr),
            join: if self.join.is_empty() { file.join } else { self.join },
            bootstrap_expect: self.bootstrap_expect.or(file.bootstrap_expect),
            non_voter: self.non_voter || file.non_voter,
            cluster_key: self.cluster_key.or(file.cluster_key),
            socket_group: self.socket_group.or(file.socket_group),
            commit_timeout_ms: self.commit_timeout_ms.or(file.commit_timeout_ms),
            lease_timeout_ms: self.lease_timeout_ms.or(file.lease_timeout_ms),
            max_transaction_mib: self.max_transaction_mib.or(file.max_transaction_mib),
            part_kib: self.part_kib.or(file.part_kib),
            heartbeat_ms: self.heartbeat_ms.or(file.heartbeat_ms),
            election_timeout_ms: self.election_timeout_ms.or(file.election_timeout_ms),
            log_segment_mib: self.log_segment_mib.or(file.log_segment_mib),
            checkpoint_mib: self.checkpoint_mib.or(file.checkpoint_mib),
            queue_mib: self.queue_mib.or(file.queue_mib),
            max_open_databases: self.max_open_databases.or(file.max_open_databases),
            idle_timeout_ms: self.idle_timeout_ms.or(file.idle_timeout_ms),
            log_retain_mib: self.log_retain_mib.or(file.log_retain_mib),
            scrub_rate_mib: self.scrub_rate_mib.or(file.scrub_rate_mib),
            scrub_pause_s: self.scrub_pause_s.or(file.scrub_pause_s),
            http_threads: self.http_threads.or(file.http_threads),
            auth: self.auth.or(file.auth),
            http_cert: self.http_cert.or(file.http_cert),
            http_key: self.http_key.or(file.http_key),
            foreign_keys: self.foreign_keys || file.foreign_keys,
            catch_up_ms: self.catch_up_ms.or(file.catch_up_ms),
        }
    }
}

/// Flags of every command that asks a running node.
#[derive(Clone, Debug, Args)]
pub struct ClientArgs {
    /// HTTP address of a node; https://HOST:PORT if it speaks HTTPS.
    #[arg(long, env = "QUIRE_HTTP_ADDR", default_value = "127.0.0.1:4001", value_name = "HOST:PORT")]
    pub http_addr: String,
    /// Who asks, if the node lets only its users ask.
    #[arg(long, env = "QUIRE_USER", value_name = "NAME:PASSWORD", hide_env_values = true)]
    pub user: Option<String>,
    /// The CA that vouches for the node's HTTPS, in PEM.
    #[arg(long, env = "QUIRE_CACERT", value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `quire shell`.
#[derive(Clone, Debug, Args)]
pub struct ShellArgs {
    /// HTTP address of a node, or of several, separated by commas; https://HOST:PORT if they speak HTTPS.
    #[arg(value_name = "ADDRESS")]
    pub address: Option<String>,
    /// Run these statements or dot commands, and end. Without ADDRESS, what has a space in it or begins with a dot.
    #[arg(value_name = "SQL")]
    pub sql: Vec<String>,
    /// As ADDRESS.
    #[arg(
        long,
        visible_alias = "http-addr",
        env = "QUIRE_HTTP_ADDR",
        default_value = "127.0.0.1:4001",
        value_name = "URL"
    )]
    pub node: String,
    /// The database.
    #[arg(long, default_value = "main", value_name = "NAME")]
    pub db: String,
    /// Who asks, if the node lets only its users ask. Without a password, that of QUIRE_PASSWORD, or else it is asked
    /// for.
    #[arg(long, env = "QUIRE_USER", value_name = "NAME[:PASSWORD]", hide_env_values = true)]
    pub user: Option<String>,
    /// The CA that vouches for the node's HTTPS, in PEM.
    #[arg(long, env = "QUIRE_CACERT", value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// How results look: list, csv, tabs, json, line, column, table, box, markdown, insert or quote [default: table at a
    /// terminal, else list].
    #[arg(long, value_name = "MODE")]
    pub mode: Option<String>,
    /// As --mode csv.
    #[arg(long, conflicts_with_all = ["mode", "json"])]
    pub csv: bool,
    /// As --mode json.
    #[arg(long, conflicts_with = "mode")]
    pub json: bool,
    /// Print headings also in modes that have none by default.
    #[arg(long)]
    pub headers: bool,
    /// What stands for NULL.
    #[arg(long, value_name = "TEXT")]
    pub nullvalue: Option<String>,
    /// How new reads are: none, weak, linearizable, strong or auto [default: weak].
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<String>,
    /// End at the first error.
    #[arg(long)]
    pub bail: bool,
}

/// Flags of `quire remove`.
#[derive(Clone, Debug, Args)]
pub struct RemoveArgs {
    /// The member's id.
    #[arg(value_name = "NODE_ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub node_id: u64,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Flags of `quire leader`.
#[derive(Clone, Debug, Args)]
pub struct LeaderArgs {
    /// Hand the lead over to this node, a voter.
    #[arg(long, value_name = "NODE_ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub to: Option<u64>,
    /// Hand the lead over to whichever voter can best take it.
    #[arg(long, conflicts_with = "to")]
    pub step_down: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Flags of `quire tx`.
#[derive(Clone, Debug, Args)]
pub struct TxArgs {
    /// The transaction's id, as in the app's log line.
    #[arg(value_name = "ID")]
    pub id: String,
    /// Its database, if it is known.
    #[arg(long, value_name = "NAME")]
    pub db: Option<String>,
    /// The entry that it was written on, as in the app's log line: whether the node remembers all from there on.
    #[arg(long, value_name = "N")]
    pub base: Option<u64>,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Flags of `quire recover`.
#[derive(Clone, Debug, Args)]
pub struct RecoverArgs {
    /// The survivor's data directory.
    #[arg(long, env = "QUIRE_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The survivor's node id; if given, it is checked against the directory's.
    #[arg(long, env = "QUIRE_NODE_ID", value_name = "N")]
    pub node_id: Option<u64>,
    /// Do it.
    #[arg(long)]
    pub yes_i_know_what_may_be_lost: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `quire verify`.
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// Also checkpoint every database on every node, and compare SHA-256 of the files. Writers wait meanwhile.
    #[arg(long)]
    pub files: bool,
    /// Also have every node read all its pages, and repair what is damaged.
    #[arg(long)]
    pub scrub: bool,
    /// How long to wait for the nodes, in seconds.
    #[arg(long, default_value_t = 30, value_name = "S")]
    pub timeout: u64,
}

/// Flags of `quire db`.
#[derive(Clone, Debug, Args)]
pub struct DbArgs {
    #[command(subcommand)]
    pub what: Db,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Db {
    /// Create an empty database on all nodes.
    Create {
        /// Its name.
        name: String,
        /// Size of its pages, a power of two from 512 to 65536 [default: 4096].
        #[arg(long, value_name = "BYTES")]
        page_size: Option<u32>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Drop a database on all nodes, with all that it has.
    #[command(
        long_about = "Drop a database on all nodes, with all that it has. Apps that have it open are refused when they \
        write, and read on what they have until they close it. One of the same name that is created later is another \
        database."
    )]
    Drop {
        /// Its name.
        name: String,
        /// Drop it even if it is not empty.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List the databases.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Make a database of a SQLite file or an SQL script.
    #[command(
        long_about = "Make a database of a SQLite file, in whatever journal mode (its WAL, beside it, is read, too) \
        and with whatever page size, or of an SQL script, of any size, also compressed by gzip. All of it becomes one \
        transaction: apps see one switch, and if anything fails nothing is changed. A file that other processes \
        write meanwhile is read as it is at one moment; one in WAL mode is copied to the temporary directory for that. \
        Into a database that exists, the pages are converted to its page size."
    )]
    Import {
        /// The file.
        file: PathBuf,
        /// The database, created if it doesn't exist.
        #[arg(long, default_value = "main", value_name = "NAME")]
        db: String,
        /// Replace what the database has.
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Write a database to a SQLite file; as quire backup.
    Export(BackupArgs),
}

/// Flags of `quire backup` and `quire db export`.
#[derive(Clone, Debug, Args)]
pub struct BackupArgs {
    /// The file to write.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub file: Option<PathBuf>,
    /// Back up each database to NAME.db (or .sql) in this directory.
    #[arg(long, value_name = "DIR", conflicts_with = "db")]
    pub all: Option<PathBuf>,
    /// The database.
    #[arg(long, default_value = "main", value_name = "NAME")]
    pub db: String,
    /// delete: a SQLite file with a rollback journal; binary: the same in WAL mode, byte for byte the node's
    /// database; sql: a script like that of SQLite's .dump.
    #[arg(long, default_value = "delete", value_parser = ["delete", "binary", "sql"], value_name = "FORM")]
    pub fmt: String,
    /// Only these tables; with --fmt sql.
    #[arg(long, value_delimiter = ',', value_name = "TABLE")]
    pub tables: Vec<String>,
    /// Pack the file, as VACUUM does; takes that much room on the node first.
    #[arg(long)]
    pub vacuum: bool,
    /// Compress by gzip.
    #[arg(long)]
    pub compress: bool,
    /// Take this node's state as it is, also without a leader.
    #[arg(long)]
    pub noleader: bool,
    /// Overwrite files that exist.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Flags of `quire restore`.
#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    /// The backup.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub file: Option<PathBuf>,
    /// Restore each FILE.db and FILE.sql (also .gz) of this directory.
    #[arg(long, value_name = "DIR", conflicts_with = "db")]
    pub all: Option<PathBuf>,
    /// The database, created if it doesn't exist.
    #[arg(long, default_value = "main", value_name = "NAME")]
    pub db: String,
    /// Replace what the database has.
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Flags of `quire inspect`.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    #[command(subcommand)]
    pub what: Inspect,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Inspect {
    /// The frames of a WAL file.
    Wal {
        /// The file, such as `DIR/db/main.db-wal`.
        file: PathBuf,
        /// Print JSON lines.
        #[arg(long)]
        json: bool,
    },
    /// The segments and records of a Raft log, and the vote.
    Log {
        /// The directory, such as `DIR/raft`.
        dir: PathBuf,
        /// Print JSON lines.
        #[arg(long)]
        json: bool,
    },
    /// What a node knows about a database: its side file.
    Db {
        /// The database file, such as `DIR/db/main.db`.
        file: PathBuf,
    },
}

/// Flags of `quire demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Orders that the app writes.
    #[arg(long, default_value_t = 600, value_name = "N")]
    pub orders: u32,
    /// The loadable extension [default: beside this program].
    #[arg(long, env = "QUIRE_EXTENSION", value_name = "FILE")]
    pub extension: Option<PathBuf>,
    /// Keep the data directories and say where they are.
    #[arg(long)]
    pub keep: bool,
}

/// Flags of `quire bench`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: Option<BenchWhat>,
    /// Number of nodes.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub nodes: u32,
    /// Seconds per measurement; plain SQLite and Quire take turns.
    #[arg(long, default_value_t = 2, value_name = "S")]
    pub seconds: u64,
    /// Write on a node that doesn't lead.
    #[arg(long)]
    pub follower: bool,
    /// Turns of each.
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub turns: u32,
    /// The loadable extension [default: beside this program].
    #[arg(long, env = "QUIRE_EXTENSION", value_name = "FILE")]
    pub extension: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum BenchWhat {
    /// Measure one-row inserts over HTTP, on any server with rqlite's API.
    Http(BenchHttpArgs),
    /// Measure writers on a leader and on a follower, both in turn, and of several databases.
    Writers(BenchWritersArgs),
}

/// Flags of `quire bench writers`.
#[derive(Clone, Debug, Args)]
pub struct BenchWritersArgs {
    /// Number of nodes.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=9))]
    pub nodes: u32,
    /// Databases that are written at the same time.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub databases: u32,
    /// Seconds per measurement, of which there are five in a turn.
    #[arg(long, default_value_t = 2, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// Turns.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub turns: u32,
    /// The loadable extension [default: beside this program].
    #[arg(long, env = "QUIRE_EXTENSION", value_name = "FILE")]
    pub extension: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `quire bench http`.
#[derive(Clone, Debug, Args)]
pub struct BenchHttpArgs {
    /// The server, http://HOST:PORT or https://HOST:PORT [default: a temporary cluster].
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Who asks, if the server lets only its users ask.
    #[arg(long, env = "QUIRE_USER", value_name = "NAME:PASSWORD", hide_env_values = true)]
    pub user: Option<String>,
    /// The CA that vouches for the server's HTTPS, in PEM.
    #[arg(long, env = "QUIRE_CACERT", value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Take any certificate, whosever it is.
    #[arg(long)]
    pub insecure: bool,
    /// Number of nodes of the temporary cluster.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub nodes: u32,
    /// How many clients at the same time; several numbers are measured one after the other.
    #[arg(long, default_value = "1,4,16,64", value_delimiter = ',', value_name = "C",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub concurrency: Vec<u16>,
    /// Seconds per measurement; plain SQLite and the server take turns.
    #[arg(long, default_value_t = 2, value_name = "S")]
    pub seconds: u64,
    /// Turns of each.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub turns: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `quire host`.
#[derive(Clone, Debug, Args)]
pub struct HostArgs {
    /// The loadable extension.
    #[arg(long)]
    pub extension: Option<PathBuf>,
    /// The database, as a path or a URI.
    #[arg(long)]
    pub database: String,
    /// What to do, read from standard input line by line if absent.
    #[arg(long)]
    pub run: Option<String>,
}
