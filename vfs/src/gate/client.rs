//! The blocking client of the gate's protocol, as the VFS uses it inside an app.
//!
//! Every wait has a deadline, also against a node that is stopped or swapped out. Writing never raises
//! SIGPIPE in the app. A connection that broke, timed out or came along through a `fork(2)` is dropped and
//! made anew at the next need; a commit whose connection broke is resolved over the new one.

use super::fork::Private;
use super::lock::GateLock;
use super::proto::{
    self, Hello, NodeStatus, Outcome, ReadGoal, Refusal, RefusalCode, Request, Response, WalTarget,
};
use super::{DatabaseInfo, Gate, Grant};
use crate::fault;
use crate::format::transaction::TxnId;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long an open may take: the node may have to wait for an election to create the database.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// How long a writer queues at the gate before SQLite's busy handler has its say.
const ACQUIRE_WAIT: Duration = Duration::from_millis(100);
/// How much longer than promised the node may take before it counts as hung.
const GRACE: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Why talking to a node failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("{}", unconnected(path, error))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The connection broke, or the deadline passed.
    #[error("the node at {} did not answer: {error}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The node said something else than the protocol allows.
    #[error("the node at {} does not speak this VFS's protocol: {reason}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// The node refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The gate lock can't be had.
    #[error("can't use the gate file of {}: {error}", path.display())]
    Lock {
        /// The database file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

fn unconnected(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "this user may not talk to the node at {path}: {error}; run the app as the node's user, or as a member of \
             the group that its --socket-group names"
        ),
        _ => format!("no node answers at {path}: {error}; start it with `quire node`, or check the path"),
    }
}

/// A connected socket with deadlines.
#[derive(Debug)]
struct Wire {
    fd: Private,
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "deadline passed")
}

impl Wire {
    fn connect(path: &Path, deadline: Instant) -> io::Result<Wire> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let address = UnixAddr::new(path)?;
        loop {
            let fd = Private::new(|| Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?))?;
            match connect(fd.as_fd().as_raw_fd(), &address) {
                Ok(()) => return Ok(Wire { fd }),
                // EAGAIN: the queue of connections is full, as before a stopped process.
                Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < deadline => sleep(RETRY_PAUSE),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn wait(&self, flags: PollFlags, deadline: Instant) -> io::Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(timed_out());
            }
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.fd.as_fd(), flags)], timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn send(&self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            match send(self.fd.as_fd().as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, deadline)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// The next message, without its length.
    fn recv(&self, deadline: Instant) -> io::Result<Vec<u8>> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let mut message = vec![0; 4 + proto::MAX_RESPONSE];
        let mut have = 0;
        let end = loop {
            if let Some(prefix) = message[..have].first_chunk::<4>() {
                let len = proto::message_length(*prefix, proto::MAX_RESPONSE)
                    .map_err(|e| invalid(e.to_string()))?;
                if have > 4 + len {
                    return Err(invalid("the node said more than it was asked".into()));
                }
                if have == 4 + len {
                    break 4 + len;
                }
            }
            // An answer takes its time: to ask for it first would be in vain.
            self.wait(PollFlags::POLLIN, deadline)?;
            match recv(self.fd.as_fd().as_raw_fd(), &mut message[have..], MsgFlags::empty()) {
                Ok(0) => {
                    let why = "the node closed the connection";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
                }
                Ok(n) => have += n,
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        message.truncate(end);
        message.drain(..4);
        Ok(message)
    }
}

/// The gate of one database, over the node's socket.
#[derive(Debug)]
pub struct SocketGate {
    socket: PathBuf,
    database: PathBuf,
    hello: Hello,
    info: DatabaseInfo,
    wire: Option<Wire>,
    lock: Option<GateLock>,
    pid: u32,
    /// Device and inode of the database file when it was opened.
    identity: Option<(u64, u64)>,
}

impl SocketGate {
    /// Connects, says hello, and learns what the node says of the database. `database` is the file.
    pub fn open(socket: PathBuf, database: PathBuf, hello: Hello) -> Result<SocketGate, ClientError> {
        let deadline = Instant::now() + OPEN_DEADLINE;
        let (wire, info) = greet(&socket, &hello, deadline)?;
        let pid = hello.pid;
        // After the node has answered, and before SQLite opens the file: see `wire`.
        let identity = identity(&database);
        let hello = Hello { create: false, ..hello };
        Ok(SocketGate { socket, database, hello, info, wire: Some(wire), lock: None, pid, identity })
    }

    /// The connection, made anew if it was lost or belongs to the process that this one was forked from.
    fn wire(&mut self, deadline: Instant) -> Result<&Wire, ClientError> {
        let pid = std::process::id();
        if pid != self.pid {
            // They are of no use here (`super::fork`).
            self.wire = None;
            self.lock = None;
            self.pid = pid;
            self.hello.pid = pid;
        }
        match &mut self.wire {
            Some(wire) => Ok(wire),
            empty => {
                let (wire, info) = greet(&self.socket, &self.hello, deadline)?;
                // SQLite still has the file that it opened. Where another one stands in its place, the database was
                // dropped and created anew: pages of the one must not get into the other.
                if self.identity != identity(&self.database) {
                    let why = format!("{} was dropped, and is another database now; close it", info.name);
                    return Err(Refusal::new(RefusalCode::NotFound, why).into());
                }
                self.info = info;
                Ok(empty.insert(wire))
            }
        }
    }

    fn ask(&mut self, message: &[u8], deadline: Instant) -> Result<Response, ClientError> {
        let socket = self.socket.clone();
        let wire = self.wire(deadline)?;
        let result = exchange(wire, &socket, message, deadline);
        if matches!(result, Err(ClientError::Io { .. } | ClientError::Protocol { .. })) {
            self.wire = None;
        }
        result
    }

    /// Asks for something that doesn't depend on the connection: if that broke, the node may have been restarted
    /// since it was last used, and nothing was asked of the new one yet.
    fn ask_anew(&mut self, message: &[u8], patience: Duration) -> Result<Response, ClientError> {
        let was_connected = self.wire.is_some();
        let deadline = Instant::now() + patience;
        match self.ask(message, deadline) {
            Err(ClientError::Io { error, .. })
                if was_connected && error.kind() != io::ErrorKind::TimedOut && self.wire.is_none() =>
            {
                self.ask(message, deadline)
            }
            answer => answer,
        }
    }

    fn lock(&mut self) -> Result<bool, ClientError> {
        let err = |error| ClientError::Lock { path: self.database.clone(), error };
        let lock = match &mut self.lock {
            Some(lock) => lock,
            empty => empty.insert(GateLock::open(&self.database, false).map_err(err)?),
        };
        lock.try_lock().map_err(err)
    }

    fn try_acquire(&mut self) -> Result<Grant, ClientError> {
        let wait_ms = ACQUIRE_WAIT.as_millis() as u32;
        let message = Request::Acquire { wait_ms }.encode();
        let grant = match self.ask_anew(&message, ACQUIRE_WAIT + GRACE)? {
            Response::Granted { token, base, pages } => Grant { token, base, pages },
            Response::Refused(refusal) => return Err(refusal.into()),
            other => return Err(self.protocol(format!("{other:?} in answer to Acquire"))),
        };
        match self.lock() {
            Ok(true) => Ok(grant),
            Ok(false) => {
                self.release(grant, false);
                Err(Refusal::new(RefusalCode::Busy, "another process still holds the gate file").into())
            }
            Err(error) => {
                self.release(grant, false);
                Err(error)
            }
        }
    }

    /// The lease went with the connection under which it was granted.
    fn still_connected(&self) -> Result<(), String> {
        match &self.wire {
            Some(_) if self.pid == std::process::id() => Ok(()),
            _ => Err("the connection to the node was lost during the transaction".into()),
        }
    }

    fn protocol(&mut self, reason: String) -> ClientError {
        self.wire = None;
        ClientError::Protocol { path: self.socket.clone(), reason }
    }

    /// Asks for the outcome until it is had or the deadline passes: the connection broke in between.
    fn resolve(&mut self, message: &[u8], why: ClientError, deadline: Instant) -> Outcome {
        let mut why = why;
        loop {
            sleep(RETRY_PAUSE.min(deadline.saturating_duration_since(Instant::now())));
            if Instant::now() >= deadline {
                return Outcome::Unknown(why.to_string());
            }
            match self.ask(message, deadline) {
                Ok(Response::Outcome(outcome)) => return outcome,
                Ok(Response::Refused(refusal)) => why = refusal.into(),
                Ok(other) => why = self.protocol(format!("{other:?} in answer to Resolve")),
                Err(error) => why = error,
            }
        }
    }
}

/// Device and inode of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn exchange(wire: &Wire, socket: &Path, message: &[u8], deadline: Instant) -> Result<Response, ClientError> {
    let io = |error| ClientError::Io { path: socket.to_owned(), error };
    let protocol = |reason: String| ClientError::Protocol { path: socket.to_owned(), reason };
    wire.send(message, deadline).map_err(io)?;
    match message[4] {
        3 => fault::point("commit.sent"),
        6 => fault::point("part.sent"),
        _ => {}
    }
    let body = wire.recv(deadline).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => protocol(error.to_string()),
        _ => io(error),
    })?;
    Response::decode(&body).map_err(|e| protocol(e.to_string()))
}

fn greet(socket: &Path, hello: &Hello, deadline: Instant) -> Result<(Wire, DatabaseInfo), ClientError> {
    let wire = Wire::connect(socket, deadline)
        .map_err(|error| ClientError::Connect { path: socket.to_owned(), error })?;
    let answer = exchange(&wire, socket, &Request::Hello(hello.clone()).encode(), deadline)?;
    match answer {
        Response::Welcome {
            page_size,
            node_id,
            commit_deadline_ms,
            max_transaction,
            wal_limit,
            part_bytes,
        } => {
            let info = DatabaseInfo {
                name: hello.name.clone(),
                node_id,
                page_size,
                commit_deadline: Duration::from_millis(commit_deadline_ms.into()),
                max_transaction,
                part_bytes,
                wal_limit,
            };
            Ok((wire, info))
        }
        Response::Refused(refusal) => Err(refusal.into()),
        other => {
            let reason = format!("{other:?} in answer to Hello");
            Err(ClientError::Protocol { path: socket.to_owned(), reason })
        }
    }
}

impl ClientError {
    /// What the node said, or that it said nothing of use.
    fn into_refusal(self) -> Refusal {
        match self {
            ClientError::Refused(refusal) => refusal,
            other => Refusal::new(RefusalCode::Unavailable, other.to_string()),
        }
    }
}

impl Gate for SocketGate {
    fn info(&self) -> &DatabaseInfo {
        &self.info
    }

    fn acquire(&mut self) -> Result<Grant, Refusal> {
        self.try_acquire().map_err(ClientError::into_refusal)
    }

    fn part(&mut self, grant: &Grant, message: Vec<u8>) -> Result<(), String> {
        self.still_connected()?;
        // Each part has the deadline of a commit, so that a large transaction takes as long as it makes progress.
        let deadline = Instant::now() + self.info.commit_deadline + GRACE;
        let message = proto::finish_part(message, grant.token);
        match self.ask(&message, deadline) {
            Ok(Response::Taken { .. }) => Ok(()),
            Ok(Response::Outcome(Outcome::Refused(why) | Outcome::Unknown(why))) => Err(why),
            Ok(other) => Err(self.protocol(format!("{other:?} in answer to Part")).to_string()),
            // Whether this part is in the log or not: without the Commit that closes it, it has no effect.
            Err(error) => Err(error.to_string()),
        }
    }

    fn commit(&mut self, grant: &Grant, id: TxnId, target: WalTarget, message: Vec<u8>) -> Outcome {
        let deadline = Instant::now() + self.info.commit_deadline;
        if let Err(why) = self.still_connected() {
            return Outcome::Refused(why);
        }
        let message = proto::finish_commit(message, grant.token, &target);
        // The node answers "unknown" at its own deadline; leave it the time to say so.
        let error = match self.ask(&message, deadline + GRACE) {
            Ok(Response::Outcome(outcome)) => return outcome,
            Ok(Response::Refused(refusal)) => return Outcome::Refused(refusal.message),
            Ok(other) => self.protocol(format!("{other:?} in answer to Commit")),
            Err(error) => error,
        };
        drop(message);
        let question = Request::Resolve { base: grant.base, target, id }.encode();
        self.resolve(&question, error, deadline)
    }

    fn is_replaced(&self) -> bool {
        identity(&self.database) != self.identity
    }

    fn release(&mut self, grant: Grant, linger: bool) {
        if self.pid != std::process::id() {
            return; // A fork's copy; lock, lease and connection are the parent's.
        }
        if let Some(lock) = &self.lock
            && lock.unlock().is_err()
        {
            self.lock = None; // Closing the file unlocks it too.
        }
        fault::point("release.unlocked");
        let message = Request::Release { token: grant.token, linger }.encode();
        if let Some(wire) = &self.wire
            && wire.send(&message, Instant::now() + GRACE).is_err()
        {
            self.wire = None; // The node takes the end of the connection for a release.
        }
    }
    fn read(&mut self, goal: ReadGoal, wait: Duration) -> Result<(u64, Duration), Refusal> {
        let wait_ms = wait.as_millis().try_into().unwrap_or(u32::MAX);
        let answer = self.ask_anew(&Request::Read { goal, wait_ms }.encode(), wait + GRACE);
        match answer.map_err(ClientError::into_refusal)? {
            Response::Reached { index, age_ms } => Ok((index, Duration::from_millis(age_ms.into()))),
            Response::Refused(refusal) => Err(refusal),
            other => Err(self.protocol(format!("{other:?} in answer to Read")).into_refusal()),
        }
    }

    fn status(&mut self) -> Result<NodeStatus, Refusal> {
        match self.ask_anew(&Request::Status.encode(), GRACE).map_err(ClientError::into_refusal)? {
            Response::Status(status) => Ok(status),
            Response::Refused(refusal) => Err(refusal),
            other => Err(self.protocol(format!("{other:?} in answer to Status")).into_refusal()),
        }
    }
}
