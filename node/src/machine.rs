//! The state machine: takes committed entries from Raft and hands each to its database's own queue, so that
//! no database waits for another. Keeps the manifest.
//!
//! `apply` only queues. What is *durable* is another matter: the manifest names a position up to which all
//! databases have everything in their files; after a restart, entries from there on come again, and each
//! database leaves out what it has.

use crate::command::Command;
use crate::db::DbError;
use crate::db::database::{Context, Work};
use crate::db::registry::Registry;
use crate::manifest::{Manifest, ManifestError};
use quire_raft::{AppliedState, Committed, LogPosition, Payload, StateMachine};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tracing::{error, info};

/// The state machine can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The manifest can't be used.
    #[error("{}: {error}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        error: ManifestError,
    },
    /// A database can't be opened.
    #[error(transparent)]
    Database(#[from] DbError),
}

#[derive(Debug, Default)]
struct State {
    manifest: Manifest,
    /// The last entry taken.
    taken: Option<LogPosition>,
    /// Memberships since the manifest's position, each with its index.
    memberships: Vec<(u64, Vec<u8>)>,
}

/// The node's state machine.
#[derive(Debug)]
pub struct Machine {
    manifest_path: PathBuf,
    registry: Arc<Registry>,
    context: Arc<Context>,
    state: Mutex<State>,
    /// One writer of the manifest at a time; entries are taken meanwhile.
    storing: Mutex<()>,
    taken: watch::Sender<Option<u64>>,
}

impl Machine {
    /// Opens all databases of the manifest.
    pub fn open(
        directory: &Path,
        registry: Arc<Registry>,
        context: Arc<Context>,
    ) -> Result<Machine, MachineError> {
        let manifest_path = directory.join("manifest");
        let manifest = Manifest::load(&manifest_path)
            .map_err(|error| MachineError::Manifest { path: manifest_path.clone(), error })?;
        for (id, page_size, name) in &manifest.databases {
            registry.open(*id, name, *page_size)?;
        }
        let state = State { taken: manifest.position, manifest, memberships: Vec::new() };
        let taken = watch::Sender::new(state.taken.map(|p| p.index));
        Ok(Machine {
            manifest_path,
            registry,
            context,
            state: Mutex::new(state),
            storing: Mutex::default(),
            taken,
        })
    }

    /// The index of the last entry that was taken, as it moves.
    pub fn taken(&self) -> watch::Receiver<Option<u64>> {
        self.taken.subscribe()
    }

    fn take(&self, state: &mut State, entry: Committed) -> Result<(), DbError> {
        let Committed { position, payload } = entry;
        if self.context.leadership.saw_term(position.term) {
            for database in self.registry.all() {
                database.enqueue(Work::NewTerm(position.term));
            }
        }
        match payload {
            Payload::Blank => {}
            Payload::Membership(bytes) => state.memberships.push((position.index, bytes.to_vec())),
            Payload::Command(bytes) => match Command::decode(&bytes) {
                Ok(Command::Transaction { head, body }) => {
                    if let Some(database) = self.registry.get(head.database) {
                        database.take(position, head, body);
                    }
                }
                Ok(Command::Part { head, body }) => {
                    if let Some(database) = self.registry.get(head.database) {
                        database.take_part(position, &head, body);
                    }
                }
                Ok(Command::Void { database, transaction: id }) => {
                    if let Some(database) = self.registry.get(database) {
                        database.enqueue(Work::Void { index: position.index, id });
                    }
                }
                Ok(Command::CreateDatabase { name, page_size }) => {
                    if !self.registry.create(position, &name, page_size)? {
                        info!(database = name, "exists already");
                    }
                }
                Ok(Command::Barrier { .. }) => {}
                Ok(Command::Verify { files, .. }) => {
                    for database in self.registry.all() {
                        database.enqueue(Work::Verify { index: position.index, files });
                    }
                }
                Err(error) => {
                    let path = PathBuf::from(format!("log entry {position}"));
                    return Err(DbError::Format { path, error });
                }
            },
        }
        state.taken = Some(position);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the manifest forward to what all databases have in their files.
    pub fn store_manifest(&self) -> io::Result<()> {
        let _one = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = {
            let state = self.state();
            match self.next_manifest(&state) {
                Some(manifest) if manifest != state.manifest => manifest,
                _ => return Ok(()),
            }
        };
        manifest.store(&self.manifest_path)?;
        let mut state = self.state();
        // The newest membership at or below the position is in the manifest now; older ones are of no use.
        let index = manifest.position.map_or(0, |position| position.index);
        state.memberships.retain(|(at, _)| *at > index);
        state.manifest = manifest;
        Ok(())
    }

    /// What the manifest may say now; `None` if it has nothing new to say.
    fn next_manifest(&self, state: &State) -> Option<Manifest> {
        let mut position = state.taken?;
        let databases = self.registry.all();
        for database in &databases {
            let (durable, is_dirty) = database.durable();
            if is_dirty && durable.index < position.index {
                position = durable;
            }
        }
        if Some(position) < state.manifest.position {
            return None;
        }
        let membership = state.memberships.iter().rev().find(|(at, _)| *at <= position.index);
        let membership = membership.map_or(&state.manifest.membership, |(_, bytes)| bytes);
        Some(Manifest {
            position: Some(position),
            membership: membership.clone(),
            databases: databases.iter().map(|db| (db.id, db.page_size, db.name.clone())).collect(),
        })
    }
}

impl StateMachine for Machine {
    fn applied(&self) -> io::Result<AppliedState> {
        let state = self.state();
        let manifest = &state.manifest;
        let membership = (!manifest.membership.is_empty()).then(|| manifest.membership.clone().into());
        Ok(AppliedState { position: manifest.position, membership })
    }

    fn apply(&self, batch: Vec<Committed>) -> io::Result<()> {
        let mut state = self.state();
        for entry in batch {
            let position = entry.position;
            self.take(&mut state, entry).map_err(|why| {
                error!(%position, "can't apply: {why}");
                io::Error::other(why.to_string())
            })?;
        }
        self.taken.send_replace(state.taken.map(|p| p.index));
        Ok(())
    }
}
