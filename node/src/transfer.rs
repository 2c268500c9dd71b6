//! Transfer of a database's state from one node to another: the receiver sends the hashes of the pages that it has,
//! the source sends the pages that differ. The frames: `frames.rs`.
//!
//! The source sends from a view ([`crate::db::view`]), so that its writers and readers go on. The receiver stages what
//! comes ([`crate::db::incoming`]): after a break it asks again, with the hashes of what it has by then.

pub(crate) mod frames;

use crate::db::DbError;
use crate::db::database::{Database, Progress};
use crate::db::incoming::{Incoming, Staging, Target};
use crate::db::scrub::forget_dirty;
use crate::db::view::View;
use crate::node::Node;
use bytes::Bytes;
use frames::{Ask, DONE, Offer, decode_pages, encode_hashes, encode_refusal, pages_frame};
use quire_raft::{Bulk, NodeId, RequestError};
use quire_vfs::fault;
use quire_vfs::format::PageNo;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedMutexGuard, mpsc};
use tracing::{debug, info, warn};

/// Hashes in one frame.
const HASHES: usize = 64 << 10;
/// Bytes of pages in one frame, about.
const PAGES: usize = 256 << 10;
/// Frames between the network and the disk.
const BACKLOG: usize = 8;
/// How long a source that lags may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(10);
/// How often progress is worth a line.
const REPORT: Duration = Duration::from_secs(5);

/// A transfer failed; what was received is kept for the next attempt.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The peer can't be reached, or was lost.
    #[error(transparent)]
    Network(#[from] RequestError),
    /// The peer can't give it.
    #[error("node {peer} can't give its state: {why}")]
    Refused {
        /// The peer.
        peer: NodeId,
        /// Why.
        why: String,
    },
    /// The peer doesn't follow the protocol.
    #[error("node {peer} sent a malformed {what}")]
    Malformed {
        /// The peer.
        peer: NodeId,
        /// What.
        what: &'static str,
    },
    /// The files refuse.
    #[error(transparent)]
    Db(#[from] DbError),
    /// This node is shutting down.
    #[error("the node is shutting down")]
    Stopping,
}

/// A state that is complete, and the right to install it: no other transfer begins before this is dropped.
#[derive(Debug)]
pub struct Received {
    /// The state.
    pub incoming: Incoming,
    /// What this node has was read from its files.
    pub read: bool,
    _turn: OwnedMutexGuard<()>,
}

// ---- the source -----------------------------------------------------------------------------------

/// Serves one transfer to another node.
pub async fn serve(node: &Arc<Node>, peer: NodeId, mut stream: Bulk) {
    match give(node, peer, &mut stream).await {
        Ok(()) => {}
        Err(TransferError::Network(error)) => debug!(peer, "transfer: {error}"),
        Err(error) => {
            debug!(peer, "transfer refused: {error}");
            let _ = stream.send(vec![encode_refusal(&error.to_string())]).await;
        }
    }
    stream.finish();
}

async fn give(node: &Arc<Node>, peer: NodeId, stream: &mut Bulk) -> Result<(), TransferError> {
    let refused = |why: String| TransferError::Refused { peer: node.id(), why };
    let lost = || TransferError::Network(RequestError::Lost("the stream ended".into()));
    let ask = Ask::decode(stream.recv().await?.ok_or_else(lost)?).map_err(refused)?;
    let database = node.registry().open(ask.database).await.map_err(refused)?;
    let database = database.ok_or_else(|| refused(format!("it has no database {}", ask.database)))?;
    // Hashes of pages that it doesn't have here are of no use.
    let ours = database.pages() as usize;
    let (mut theirs, mut left) = (Vec::<u64>::new(), ask.hashes as usize);
    while left > 0 {
        let frame = stream.recv().await?.ok_or_else(lost)?;
        if frame.is_empty() || frame.len() % 8 != 0 || frame.len() > 8 * HASHES {
            return Err(refused("the hashes make no sense".into()));
        }
        left = left.saturating_sub(frame.len() / 8);
        let hashes = frame.chunks_exact(8).map(|b| b.first_chunk().map_or(0, |b| u64::from_le_bytes(*b)));
        theirs.extend(hashes.take(ours - theirs.len().min(ours)));
    }
    let caught_up = tokio::time::timeout(CATCH_UP, async {
        node.wait_taken(ask.at_least).await;
        let as_of = node.taken();
        database.settled().await;
        as_of
    });
    let late = |_| refused(format!("it hasn't applied entry {} yet", ask.at_least));
    let as_of = caught_up.await.map_err(late)?.max(ask.at_least);

    let (frames, mut ready) = mpsc::channel(BACKLOG);
    let reading = tokio::task::spawn_blocking(move || {
        if let Some(why) = database.fenced() {
            return Err(TransferError::Refused { peer: 0, why });
        }
        let view = database.wait_view()?;
        if !view.consistent {
            return Err(TransferError::Refused { peer: 0, why: "it is reading its log again".into() });
        }
        read_out(&database, &view, as_of, &theirs, peer, &frames)
    });
    while let Some(frame) = ready.recv().await {
        stream.send(frame).await?;
    }
    match reading.await {
        Ok(Err(TransferError::Refused { why, .. })) => Err(refused(why)),
        Ok(result) => result,
        Err(_) => Err(TransferError::Stopping),
    }
}

/// Reads what differs, and hands it on, frame by frame.
fn read_out(
    database: &Database,
    view: &View,
    as_of: u64,
    theirs: &[u64],
    peer: NodeId,
    frames: &mpsc::Sender<Vec<Bytes>>,
) -> Result<(), TransferError> {
    let size = database.page_size;
    let differs = |page: &PageNo| {
        let at = page.0 as usize - 1;
        theirs.get(at) != view.hashes.get(at)
    };
    let differing: Vec<PageNo> = (1..=view.pages).map(PageNo).filter(differs).collect();
    let offer = Offer {
        page_size: size.get(),
        position: view.position,
        as_of: as_of.max(view.position.index),
        checksum: view.checksum,
        pages: view.pages,
        differing: differing.len() as u32,
    };
    let index = view.position.index;
    info!(
        database = database.name,
        peer,
        index,
        differing = differing.len(),
        pages = view.pages,
        "sending state"
    );
    let lost = |_| TransferError::Network(RequestError::Lost("the receiver is gone".into()));
    frames.blocking_send(vec![offer.encode()]).map_err(lost)?;
    let mut image = vec![0; size.bytes()];
    for pages in differing.chunks((PAGES / size.bytes()).max(1)) {
        let mut frame = pages_frame(pages, size);
        for page in pages {
            if !view.is_sound(*page, &mut image)? {
                database.damaged(*page, index);
                let why = format!("its page {page} is damaged");
                return Err(TransferError::Refused { peer: 0, why });
            }
            frame.extend_from_slice(&image);
        }
        frames.blocking_send(vec![frame.freeze()]).map_err(lost)?;
        fault::point("transfer.sent");
    }
    frames.blocking_send(vec![Bytes::from_static(DONE)]).map_err(lost)
}

// ---- the receiver ---------------------------------------------------------------------------------

/// Gets the state of a database from `peer`, one that contains the entry `at_least`. Where the database is fenced,
/// what this node has is read from its files, and the entries that come from then on wait; else its page hashes are
/// believed.
pub async fn receive(
    node: &Arc<Node>,
    database: &Arc<Database>,
    peer: NodeId,
    at_least: u64,
) -> Result<Received, TransferError> {
    let turn = database.transfers.clone().lock_owned().await;
    let fenced = database.fenced().is_some();
    let ours = database.clone();
    let prepare = move || -> Result<(Staging, Vec<u64>, u64, bool), DbError> {
        ours.settle_installed()?;
        let staging = Staging::open(ours.path(), ours.id, ours.page_size)?;
        let view = match ours.wait_view() {
            Ok(view) => view,
            // Damaged beyond what SQLite can open: all pages are to be sent.
            Err(DbError::Sqlite { error, .. }) if fenced => {
                warn!(database = ours.name, "getting all pages: {error}");
                return Ok((staging, Vec::new(), ours.dealt_with(), true));
            }
            Err(error) => return Err(error),
        };
        let read = fenced || !view.consistent;
        let mut hashes = if read { ours.true_hashes(&view) } else { view.hashes.clone() };
        forget_dirty(&mut hashes, &view.dirty);
        Ok((staging, hashes, view.position.index, read))
    };
    let prepared = tokio::task::spawn_blocking(prepare).await.map_err(|_| TransferError::Stopping)?;
    let (staging, hashes, base, read) = prepared?;
    // Not before all has been read, so that the entries have little time to pile up.
    let at_least = if fenced { at_least.max(database.hold()) } else { at_least };
    let resumed = staging.len();
    let mut have = hashes.clone();
    staging.overlay(&mut have);

    let mut stream = node.raft().open_bulk(peer).await?;
    let ask = Ask { hashes: have.len() as u32, database: database.id, at_least };
    stream.send(vec![ask.encode()]).await?;
    for some in have.chunks(HASHES) {
        stream.send(vec![encode_hashes(some)]).await?;
    }
    let asked = have.len();
    drop(have);
    let malformed = |what| TransferError::Malformed { peer, what };
    let offer = next(&mut stream, peer).await?;
    let offer = Offer::decode(offer).ok_or_else(|| malformed("state"))?;
    let sound = offer.page_size == database.page_size.get() && offer.fits(asked);
    if !sound || offer.as_of < at_least {
        return Err(malformed("state"));
    }
    let total = u64::from(offer.differing);
    info!(
        database = database.name,
        peer,
        index = offer.position.index,
        pages = total,
        resumed,
        "receiving state"
    );
    let result = take(&mut stream, peer, database, staging, (offer.pages, total)).await;
    database.set_transfer(None);
    let staging = result?;
    let target = Target { position: offer.position, as_of: offer.as_of, base, checksum: offer.checksum };
    let seal = tokio::task::spawn_blocking(move || staging.seal(target, offer.pages, hashes));
    let incoming = seal.await.map_err(|_| TransferError::Stopping)??;
    Ok(Received { incoming, read, _turn: turn })
}

/// The next frame that isn't a refusal.
async fn next(stream: &mut Bulk, peer: NodeId) -> Result<Bytes, TransferError> {
    let lost = || TransferError::Network(RequestError::Lost("the stream ended early".into()));
    let frame = stream.recv().await?.ok_or_else(lost)?;
    match frame.first() {
        Some(5) => {
            let why = String::from_utf8_lossy(&frame[1..]).into_owned();
            Err(TransferError::Refused { peer, why })
        }
        Some(_) => Ok(frame),
        None => Err(TransferError::Malformed { peer, what: "frame" }),
    }
}

/// Takes the pages; the disk is written on a thread of its own.
async fn take(
    stream: &mut Bulk,
    peer: NodeId,
    database: &Arc<Database>,
    mut staging: Staging,
    (pages, total): (u32, u64),
) -> Result<Staging, TransferError> {
    let (frames, mut staged) = mpsc::channel::<Bytes>(BACKLOG);
    let ours = database.clone();
    let writing = tokio::task::spawn_blocking(move || {
        let (mut received, mut reported) = (0, Instant::now());
        while let Some(frame) = staged.blocking_recv() {
            let malformed = || TransferError::Malformed { peer, what: "page" };
            for (page, image) in decode_pages(&frame, ours.page_size, pages).ok_or_else(malformed)? {
                if received == total {
                    return Err(malformed());
                }
                staging.stage(page, image)?;
                received += 1;
            }
            fault::point("transfer.staged");
            ours.set_transfer(Some(Progress { received, total }));
            if reported.elapsed() >= REPORT {
                reported = Instant::now();
                info!(database = ours.name, peer, received, total, "receiving state");
            }
        }
        if received == total {
            Ok(staging)
        } else {
            Err(TransferError::Malformed { peer, what: "count of pages" })
        }
    });
    let received = async {
        loop {
            let frame = next(stream, peer).await?;
            match frame[0] {
                3 => {
                    if frames.send(frame).await.is_err() {
                        return Ok(()); // The writer has failed, and says why.
                    }
                }
                4 => return Ok(()),
                _ => return Err(TransferError::Malformed { peer, what: "frame" }),
            }
        }
    };
    let received = received.await;
    drop(frames);
    let staging = writing.await.map_err(|_| TransferError::Stopping)?;
    received.and(staging)
}
