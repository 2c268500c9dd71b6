//! Large transactions in a session: each part is proposed, and answered once the database has taken it from the
//! log. So at most one part of a session is in memory, and a slow cluster slows its app.
//!
//! A transaction takes effect only by its Commit. Whatever goes wrong with a part is therefore a definite refusal,
//! even where it is unknown whether that part is in the log.

use super::session::{Session, SessionError};
use crate::command::TRANSACTION_PREFIX;
use crate::db::database::Database;
use crate::db::gate::Route;
use crate::forward::{self, Fate};
use crate::peers::{self, PeerRequest};
use bytes::{Bytes, BytesMut};
use quire_vfs::format::transaction::{HEADER_SIZE, Piece, TxnId};
use quire_vfs::gate::proto::{self, COMMIT_PREFIX, Outcome, Response};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, warn};

/// For the leader to be told of a large transaction without an end. Without that, the next one ends it.
const FORGET: Duration = Duration::from_secs(5);

impl Session {
    /// Takes a Part message to the log.
    pub(super) async fn part(
        &mut self,
        database: &Arc<Database>,
        token: u64,
        mut message: BytesMut,
    ) -> Result<Response, SessionError> {
        if message.len() < COMMIT_PREFIX + HEADER_SIZE {
            return Err(SessionError::Order("a Part without a part of a transaction"));
        }
        let limits = self.node.limits();
        let (id, sequence, begun) = {
            let txn = proto::commit_transaction(&message)?;
            let Piece::Part { sequence } = txn.piece() else {
                return Err(SessionError::Order("a Part with something else than a part"));
            };
            (txn.id(), sequence, database.begin_part(self.id, token, &txn, limits.max_transaction))
        };
        let refused = |why| Ok(Response::Outcome(Outcome::Refused(why)));
        let (head, route, mut taken) = match begun {
            Ok(begun) => begun,
            Err(why) => return refused(why),
        };
        self.unfinished = Some(id);
        const { assert!(COMMIT_PREFIX == TRANSACTION_PREFIX) };
        head.write_over(&mut message);
        let mut work = Box::pin(self.propose_part(database, route, id, message.freeze()));
        let deadline = Instant::now() + limits.commit_deadline;
        let mut working = true;
        let result = loop {
            tokio::select! {
                biased;
                result = &mut taken => break result,
                () = &mut work, if working => working = false,
                () = tokio::time::sleep_until(deadline) => {
                    break Ok(Err("the commit deadline passed before this part was in the log".into()));
                }
            }
        };
        if working {
            // The proposal goes on whatever becomes of the app; until it is known, no other writer is let in.
            self.node.spawn(work);
        }
        match result {
            Ok(Ok(())) => Ok(Response::Taken { sequence }),
            Ok(Err(why)) => refused(why),
            Err(_) => refused("it was not proposed: the leader is changing".into()),
        }
    }

    fn propose_part(
        &self,
        database: &Arc<Database>,
        route: Route,
        id: TxnId,
        command: Bytes,
    ) -> impl Future<Output = ()> + use<> {
        let (database, node) = (database.clone(), self.node.clone());
        async move {
            match forward::propose(&node, &database, route, id, command).await {
                Fate::Decided => {}
                Fate::Unknown(reason) => {
                    warn!(database = database.name, transaction = %id, "fate of a part unknown: {reason}");
                    forward::conclude(&node, &database, id, Some(route.token)).await;
                }
                Fate::NotProposed(why) => {
                    debug!(database = database.name, transaction = %id, "part not proposed: {why}");
                    database.abort_part(id, &why);
                }
            }
        }
    }

    /// The app has let go of its lease, or is gone: if it leaves a large transaction behind that it did not
    /// commit, has all nodes forget what they have of it. They do so by themselves when the leader changes, and
    /// with the next transaction.
    pub(super) fn forget_unfinished(&mut self, database: &Arc<Database>) {
        let Some(transaction) = self.unfinished.take() else { return };
        let (node, database) = (self.node.clone(), database.clone());
        tokio::spawn(async move {
            let request = PeerRequest::Void { database: database.id.0, transaction: transaction.0 };
            if let Err(error) = peers::ask_leader(&node, request, FORGET).await {
                debug!(database = database.name, %transaction, "its end was not logged: {error}");
            }
        });
    }
}
