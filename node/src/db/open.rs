//! Opening a database: its locks, what a crash has left of its WAL, and what a check of its file comes to.

use super::DbError;
use super::applier::Wal;
use super::context::{Context, first_token};
use super::database::{Database, Files, State};
use super::incoming::Incoming;
use super::install::{install_into_file, take_over};
use super::lag::{Behind, behind_path};
use super::parts::{Large, Stager};
use super::side_file::{Contents, RING_LEN, Record, SideFile};
use super::{checkpoint, scrub};
use crate::command::DbId;
use crate::core::head::Head;
use crate::core::lease::LeaseTable;
use crate::core::recovery::{self, Plan};
use crate::core::rule::CommitRule;
use quire_vfs::format::PageSize;
use quire_vfs::format::transaction::TxnId;
use quire_vfs::format::wal_index::{self, WalIndex};
use quire_vfs::gate::lock::GateLock;
use quire_vfs::holder::{Holder, IndexLock};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

impl Database {
    /// Opens a database whose files exist: holds it, and makes of its WAL what [`recovery`] says. Of one that `was_closed`
    /// in this life of the node it is known that it had none.
    pub fn open(
        context: Arc<Context>,
        path: &Path,
        id: DbId,
        name: &str,
        page_size: PageSize,
        was_closed: bool,
    ) -> Result<Database, DbError> {
        let gate_lock = GateLock::open(path, true).map_err(DbError::io(path, "opening the gate file"))?;
        // SAFETY: the functions are those of the SQLite that is linked into this program.
        let holder = unsafe { Holder::open(&super::sql::api(), path)? };
        hold(&holder)?;
        let (mut side, contents) = SideFile::open(path, id, page_size)?;
        let Contents { mut durable, records, mut hashes } = contents;
        // One that can't be read was perhaps promised: the database is served only once it has it again.
        let (incoming, mut fenced) = match Incoming::find(path, id, page_size) {
            Ok(incoming) => (incoming, None),
            Err(error) => (None, Some(error.to_string())),
        };
        let is_behind = behind_path(path).exists();
        let attached = holder.others_attached()?;
        #[cfg(test)]
        let attached = attached || context.sim.is_attached(path);
        let header = wal_index::recover_header(holder.region(0)?);
        let frames = header.map_or(0, |header| header.max_frame.0);
        if was_closed && attached && frames > 0 {
            let why =
                format!("a process without the quire VFS has written {frames} pages to its WAL; end it");
            fenced = fenced.or(Some(why));
        }
        let publications: Vec<_> = records.iter().map(|r| r.publication).collect();
        let plan = recovery::plan(attached, header.as_ref(), durable.position.index, &publications);
        if plan == Plan::Rebuild {
            #[cfg(test)]
            let is_left_out = crate::sim::is_broken(crate::sim::Rule::Void);
            #[cfg(not(test))]
            let is_left_out = false;
            if !is_left_out {
                side.void(&records)?;
            }
            // Whoever has the file of the old WAL open would go on reading that: there must be nobody, nor may one come.
            if holder.exclude_readers()? {
                if !holder.others_attached()? {
                    Wal::put_away(path)?;
                }
                holder.admit_readers();
            }
        }
        let mut wal = Wal::open(path, page_size)?;
        // Where no checkpoint was at work, nobody but the node can have changed the file.
        let same = durable.target > durable.position.index
            || checkpoint::stamp(&holder, page_size)? == durable.stamp;
        if !same {
            warn!(database = name, "its file was changed while the node was down; reading all of it");
            fenced = fenced.or(scrub::first_difference(&holder, &hashes)?);
        }
        // One that was sealed, but never installed, may be stale: then the file has moved past its base.
        let mut incoming = incoming.filter(|incoming| {
            let (base, index) = (incoming.target.base, incoming.target.position.index);
            let beside = durable.target > base && durable.target < index;
            durable.position.index == index || (durable.position.index <= base && !beside)
        });
        let stager = Arc::new(Stager::new(path, context.runtime.clone(), context.unstaged.clone()));
        let published = match plan {
            Plan::Rebuild => {
                // A checkpoint was cut short: the file may hold pages of entries that are yet to come again, so
                // that even a stock reader must wait for them.
                let behind = durable.target > durable.position.index;
                if (behind || incoming.is_some()) && !holder.exclude_readers()? {
                    warn!(database = name, "a stock reader is there while the database is rebuilt");
                }
                holder.lock(IndexLock::Recover)?;
                if let Some(incoming) = incoming.take() {
                    durable = install_into_file(&holder, &mut side, &mut wal, &durable, &incoming)?;
                    hashes = incoming.hashes;
                    if durable.target == durable.position.index {
                        holder.admit_readers();
                    }
                }
                wal.reset(&holder, durable.pages)?;
                holder.unlock(IndexLock::Recover);
                durable.position.index
            }
            Plan::Resume { published } => published,
        };
        if is_behind {
            let why =
                "entries were not kept for it while an app stood still; its state comes from another node";
            fenced = fenced.or(Some(why.into()));
        }
        info!(
            database = name,
            durable = durable.position.index,
            target = durable.target,
            published,
            ?plan,
            "opened"
        );
        // What is on record is committed, and may have been read: nothing older is served. (Where the WAL
        // stays, an app that has yet to publish the newest record is asking for it, so none waits for it.)
        let newest = publications.iter().map(|p| p.index).max().unwrap_or(0);
        let void = publications.iter().filter(|p| p.is_void()).map(|p| p.index).max().unwrap_or(0);
        let served = if plan == Plan::Rebuild { newest } else { published.max(void) };
        // Apps were attached: have WAL and index the state that came from another node?
        let has_state = incoming.as_ref().is_some_and(|incoming| {
            let index = incoming.target.position.index;
            let of_this_wal: Vec<_> = records.iter().filter(|r| !r.publication.is_void()).collect();
            let is_it = |r: &&Record| r.publication.index == index && r.txn == TxnId::default();
            let is_on_record = of_this_wal.iter().any(is_it);
            let publications: Vec<_> = of_this_wal.iter().map(|r| r.publication).collect();
            recovery::has_state(published, index, is_on_record, &publications, RING_LEN as usize)
        });
        let recent = match plan {
            Plan::Rebuild => VecDeque::new(),
            Plan::Resume { published } => {
                records.into_iter().filter(|r| r.publication.index <= published).collect()
            }
        };
        let state = State {
            rule: CommitRule::new(durable.position.index),
            position: durable.position,
            hashes,
            dirty: BTreeSet::new(),
            published,
            consistent_from: served.max(durable.target).max(published),
            queue: VecDeque::new(),
            queued_bytes: 0,
            is_long: false,
            stuck: None,
            behind: is_behind.then_some(Behind { last: 0, is_recorded: true }),
            running: false,
            head: Head::new(durable.position.index),
            lease: LeaseTable::new(first_token(), context.lease_timeout),
            asked: HashMap::new(),
            linger_timer: None,
            air: None,
            next_ticket: first_token(),
            grants: BTreeMap::new(),
            arrived: None,
            held: None,
            pending: None,
            publishing: None,
            large: Large::default(),
            recent,
            durable,
            fenced,
            verifications: VecDeque::new(),
            checkpoint_asked: false,
            closed_at: None,
            long_wal: 0,
            hold: None,
            held_bytes: 0,
            installed: None,
            transfer: None,
            scrub: side.scrub_mark(),
        };
        let mut state = state;
        if let Some(incoming) = incoming {
            if has_state {
                take_over(&mut state, &incoming);
            } else if durable.position.index == incoming.target.position.index {
                state.fenced = Some("a repair was cut short".into());
            }
        }
        let index = state.position.index;
        Ok(Database {
            id,
            name: name.to_owned(),
            page_size,
            context,
            holder,
            gate_lock,
            state: Mutex::new(state),
            changed: Condvar::new(),
            files: Mutex::new(Files { wal, side }),
            stager,
            progress: watch::Sender::new(index),
            dropped: AtomicBool::new(false),
            is_touched: AtomicBool::new(false),
            checkpointing: Mutex::new(()),
            asking: tokio::sync::Semaphore::new(crate::forward::MAX_ASKING_FOR_ONE),
            transfers: Arc::default(),
        })
    }
}

/// Takes the locks that nobody else may have. A stock writer may be in the middle of a transaction that it
/// began before the node came up; it gets some time to end it.
fn hold(holder: &Holder) -> Result<(), DbError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let deadline = Instant::now() + PATIENCE;
    for lock in [IndexLock::Write, IndexLock::Checkpoint] {
        while !holder.try_lock(lock)? {
            if Instant::now() >= deadline {
                holder.lock(lock)?;
                break;
            }
            warn!(database = %holder.path().display(), ?lock, "another process holds a lock of the node's");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}
