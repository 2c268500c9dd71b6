//! Apps: what SQLite and the VFS do for one, in their order, on the node's real files and with the real messages of the
//! gate. At each step an app may die, or stand still for a while.
//!
//! What they write is a ledger: page 2 counts the transactions, the pages from 7 on list their ids, so that the whole
//! history of a database stands in it. Pages 3 to 6 are filled with noise.

use super::judge::{Attempt, Judge};
use super::world::{COMMIT_DEADLINE, World, note};
use crate::clock;
use crate::db::sql;
use quire_vfs::format::append::Appender;
use quire_vfs::format::transaction::{Piece, TxnId, encode_piece};
use quire_vfs::format::wal::{FRAME_HEADER_SIZE, Salts, frame_offset};
use quire_vfs::format::wal_index::{self, IndexHeader, WalIndex};
use quire_vfs::format::{FrameNo, PageNo, PageSize};
use quire_vfs::gate::lock::GateLock;
use quire_vfs::gate::proto::{self, Hello, MAX_RESPONSE, Outcome, RefusalCode, Request, Response, WalTarget};
use quire_vfs::holder::{Holder, IndexLock};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{sleep, timeout};

pub(crate) const PAGE: u32 = 512;
const COUNT: PageNo = PageNo(2);
const NOISE: std::ops::Range<u32> = 3..7;
const LEDGER: u32 = 7;
const PER_PAGE: u64 = PAGE as u64 / 8;
/// How long it queues for the lease.
const WAIT: Duration = Duration::from_millis(1500);
/// How much later than that, or than the commit's deadline, an answer may come.
const GRACE: Duration = Duration::from_secs(2);
/// For an open.
const OPEN: Duration = Duration::from_secs(16);

/// Why an app goes no further.
#[derive(Debug)]
enum End {
    /// It has died.
    Died,
    /// Its connection broke.
    Cut,
    /// The node refused.
    Refused(RefusalCode),
}

/// One app, which is started again whenever it dies.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) world: Arc<World>,
    pub(crate) judge: Arc<Judge>,
    pub(crate) node: u64,
    pub(crate) slot: u64,
    pub(crate) name: &'static str,
}

/// A reader without the VFS, which needs no node: it has a database open now and then.
pub(crate) async fn read(world: Arc<World>, judge: Arc<Judge>, node: u64) {
    while !judge.is_over() {
        sleep(world.rng(|rng| rng.millis(5, 800))).await;
        let name = if world.rng(|rng| rng.chance(500)) { super::MAIN } else { super::OTHER };
        let path = world.database_path(node, name);
        let size = PageSize::new(PAGE).unwrap();
        let Some(files) = path.exists().then(|| Files::open(&world, path, size)).flatten() else { continue };
        let time = world.rng(|rng| rng.millis(50, 1500));
        tokio::select! {
            biased;
            () = world.power_cut(node) => {}
            () = sleep(time) => {}
        }
        drop(files);
    }
}

/// Asks nodes what became of transactions, as `/outcome` does.
pub(crate) async fn ask(world: Arc<World>, judge: Arc<Judge>) {
    while !judge.is_over() {
        sleep(world.rng(|rng| rng.millis(2, 200))).await;
        let (which, node, with_base) = world.rng(|rng| (rng.next(), rng.next(), rng.chance(500)));
        let nodes = world.live_nodes();
        let live = nodes.get(node as usize % nodes.len().max(1)).and_then(|id| world.live(*id));
        let (Some(attempt), Some(live)) = (judge.some_attempt(which), live) else { continue };
        let (node, database) = (live.node.clone(), live.node.registry().id_of(attempt.name));
        drop(live);
        if database.is_none() {
            continue;
        }
        let base = with_base.then_some(attempt.base);
        let (world, judge) = (world.clone(), judge.clone());
        node.clone().spawn(async move {
            let said = crate::api::outcome::find(&node, database, attempt.id, base).await;
            note!(world, "node {} says of {}: {}", node.id(), attempt.id, said["outcome"]);
            // Without a base, it speaks of the entries from there on.
            let since = said["databases"][0]["since"].as_u64();
            match said["outcome"].as_str() {
                Some("committed") => judge.answered(attempt.id, node.id(), said["index"].as_u64()),
                Some("refused") => judge.answered(attempt.id, node.id(), None),
                Some("not in the log")
                    if with_base || since.is_some_and(|since| since <= attempt.base + 1) =>
                {
                    judge.answered(attempt.id, node.id(), None);
                }
                _ => {}
            }
        });
    }
}

/// Its open files.
struct Files {
    world: Arc<World>,
    path: PathBuf,
    size: PageSize,
    holder: Holder,
    wal: File,
    lock: GateLock,
    inode: u64,
}

impl Drop for Files {
    fn drop(&mut self) {
        self.world.attach(&self.path, false);
    }
}

/// Reads a ledger: the ids in it.
pub(crate) fn ledger(mut read: impl FnMut(PageNo) -> Vec<u8>, pages: u32) -> Vec<u64> {
    if pages < LEDGER {
        return Vec::new();
    }
    let word = |page: &[u8], n: u64| u64::from_le_bytes(page[n as usize * 8..][..8].try_into().unwrap());
    // No more than there can be: the page may be anything.
    let count = word(&read(COUNT), 0).min(u64::from(pages.saturating_sub(LEDGER - 1)) * PER_PAGE);
    let mut ids = Vec::new();
    let mut page = Vec::new();
    for n in 0..count {
        if n % PER_PAGE == 0 {
            page = read(PageNo(LEDGER + (n / PER_PAGE) as u32));
        }
        ids.push(word(&page, n % PER_PAGE));
    }
    ids
}

impl Files {
    fn open(world: &Arc<World>, path: PathBuf, size: PageSize) -> Option<Files> {
        // SAFETY: the functions are those of the SQLite that is linked into this program.
        let holder = unsafe { Holder::open(&sql::api(), &path) }.ok()?;
        let wal = OpenOptions::new().read(true).write(true).open(crate::db::applier::wal_path(&path)).ok()?;
        let lock = GateLock::open(&path, false).ok()?;
        let inode = std::fs::metadata(&path).ok()?.ino();
        world.attach(&path, true);
        Some(Files { world: world.clone(), path, size, holder, wal, lock, inode })
    }

    /// Another database has taken its place.
    fn is_replaced(&self) -> bool {
        std::fs::metadata(&self.path).map_or(true, |found| found.ino() != self.inode)
    }

    fn read(&self, page: PageNo, max: FrameNo) -> Vec<u8> {
        let mut out = vec![0; self.size.bytes()];
        match wal_index::find(&self.holder, page, max).unwrap() {
            Some(frame) => {
                let at = frame_offset(frame, self.size) + FRAME_HEADER_SIZE as u64;
                self.wal.read_exact_at(&mut out, at).unwrap();
            }
            None => self.holder.read_page(page, self.size, &mut out).unwrap(),
        }
        out
    }
}

/// A transaction, as SQLite has it ready.
struct Ready {
    id: TxnId,
    pages: Vec<(PageNo, Vec<u8>)>,
    db_size: u32,
    frames: Vec<(u64, Vec<u8>)>,
    first: FrameNo,
    header: IndexHeader,
}

impl App {
    /// Lives and dies until the judge wants no more.
    pub(crate) async fn run(self) {
        while !self.judge.is_over() {
            let lived = tokio::select! {
                biased;
                () = self.world.power_cut(self.node) => Err(End::Died),
                lived = self.live() => lived,
            };
            match lived {
                Ok(()) => {}
                Err(End::Died) => note!(self.world, "app {}.{} dies", self.node, self.slot),
                Err(_) => {}
            }
            let pause = self.world.rng(|rng| rng.millis(20, 300));
            sleep(pause).await;
        }
    }

    async fn live(&self) -> Result<(), End> {
        let Some(stream) = self.greet().await? else { return Ok(()) };
        let mut stream = Some(stream);
        let path = self.world.database_path(self.node, self.name);
        let size = PageSize::new(PAGE).unwrap();
        let Some(files) = Files::open(&self.world, path, size) else { return Ok(()) };
        let mut attempts = 0;
        while !self.judge.is_over() {
            if stream.is_none() {
                stream = self.greet().await.unwrap_or(None);
                if files.is_replaced() {
                    return Ok(());
                }
            }
            let done = match &mut stream {
                Some(open) => self.transact(open, &files).await,
                None => Err(End::Cut),
            };
            attempts = if let Ok(true) = done { 0 } else { attempts + 1 };
            match done {
                Ok(_) => {}
                Err(End::Cut) => stream = None,
                Err(End::Refused(RefusalCode::NotFound)) => return Ok(()),
                Err(End::Refused(_)) => {}
                Err(End::Died) => return Err(End::Died),
            }
            let (busy, pause) = (attempts > 0, attempts.min(10) * 4);
            sleep(self.world.rng(|rng| if busy { rng.millis(1, 2 + pause) } else { rng.millis(5, 400) }))
                .await;
        }
        Ok(())
    }

    /// Something may happen to the app here.
    async fn step(&self) -> Result<(), End> {
        let weather = self.world.weather();
        if self.world.rng(|rng| rng.chance(weather.dies)) {
            return Err(End::Died);
        }
        if self.world.rng(|rng| rng.chance(weather.pauses)) {
            let time = self
                .world
                .rng(|rng| if rng.chance(700) { rng.millis(1, 200) } else { rng.millis(200, 3000) });
            note!(self.world, "app {}.{} stands still for {time:?}", self.node, self.slot);
            sleep(time).await;
        }
        Ok(())
    }

    async fn greet(&self) -> Result<Option<DuplexStream>, End> {
        let Some(mut stream) = self.world.connect(self.node) else { return Ok(None) };
        let path = self.world.database_path(self.node, self.name);
        let Some(directory) = path.parent().and_then(|dir| std::fs::metadata(dir).ok()) else {
            return Ok(None);
        };
        let hello = Hello {
            create: false,
            read_only: false,
            pid: 1,
            page_size: None,
            directory: (directory.dev(), directory.ino()),
            name: self.name.into(),
        };
        match self.ask(&mut stream, &Request::Hello(hello).encode(), OPEN, "open").await? {
            Response::Welcome { .. } => Ok(Some(stream)),
            Response::Refused(refusal) => Err(End::Refused(refusal.code)),
            other => self.odd("Hello", &other),
        }
    }

    fn odd<T>(&self, what: &str, answer: &Response) -> Result<T, End> {
        self.world.fail(format!("{answer:?} in answer to {what}"));
        Err(End::Died)
    }

    async fn ask(
        &self,
        stream: &mut DuplexStream,
        message: &[u8],
        patience: Duration,
        what: &str,
    ) -> Result<Response, End> {
        stream.write_all(message).await.map_err(|_| End::Cut)?;
        self.answer(stream, patience, what).await
    }

    /// The answer; one that doesn't come within its time is a violation.
    async fn answer(
        &self,
        stream: &mut DuplexStream,
        patience: Duration,
        what: &str,
    ) -> Result<Response, End> {
        let read = async {
            let mut prefix = [0; 4];
            stream.read_exact(&mut prefix).await?;
            let len = proto::message_length(prefix, MAX_RESPONSE).map_err(std::io::Error::other)?;
            let mut body = vec![0; len];
            stream.read_exact(&mut body).await?;
            std::io::Result::Ok(body)
        };
        match timeout(patience, read).await {
            Ok(Ok(body)) => Ok(Response::decode(&body).expect("an answer that makes sense")),
            Ok(Err(_)) => Err(End::Cut),
            Err(_) => {
                let (node, slot) = (self.node, self.slot);
                self.world.fail(format!("app {node}.{slot} hangs: no answer to {what} within {patience:?}"));
                Err(End::Cut)
            }
        }
    }

    async fn release(
        &self,
        stream: &mut DuplexStream,
        files: &Files,
        token: u64,
        linger: bool,
    ) -> Result<(), End> {
        files.lock.unlock().unwrap();
        self.step().await?;
        let message = Request::Release { token, linger }.encode();
        stream.write_all(&message).await.map_err(|_| End::Cut)
    }

    /// One transaction. True if it committed.
    async fn transact(&self, stream: &mut DuplexStream, files: &Files) -> Result<bool, End> {
        let region0 = files.holder.region(0).unwrap();
        let snapshot = wal_index::raw_header(region0);
        let acquire = Request::Acquire { wait_ms: WAIT.as_millis() as u32 }.encode();
        let (token, base, pages) = match self.ask(stream, &acquire, WAIT + GRACE, "Acquire").await? {
            Response::Granted { token, base, pages } => (token, base, pages),
            Response::Refused(refusal) => return Err(End::Refused(refusal.code)),
            other => return self.odd("Acquire", &other),
        };
        self.step().await?;
        if !files.lock.try_lock().unwrap() && !super::is_broken(super::Rule::GateLock) {
            self.release(stream, files, token, false).await?;
            return Ok(false);
        }
        let Some(header) = wal_index::read_header(region0) else {
            self.release(stream, files, token, false).await?;
            return Ok(false);
        };
        // SQLite says BUSY_SNAPSHOT, and tries again from the beginning.
        if wal_index::raw_header(region0) != snapshot {
            self.release(stream, files, token, true).await?;
            return Ok(false);
        }
        if header.pages != pages && header.max_frame.0 > 0 {
            self.world.fail(format!("granted on {pages} pages, the wal-index has {}", header.pages));
        }
        let ready = self.prepare(files, header, pages);
        let target = WalTarget { salts: ready.header.salts, frame: ready.header.max_frame };
        let (last, others) = ready.frames.split_last().expect("a commit frame");
        for (offset, bytes) in others {
            files.wal.write_all_at(bytes, *offset).unwrap();
        }
        self.step().await?;
        let attempt = Attempt {
            id: ready.id,
            token,
            base,
            name: self.name,
            app: (self.node, self.slot),
            began: clock::now(),
        };
        self.judge.begin(attempt);
        let outcome = self.commit(stream, files, &ready, token, base, target).await?;
        note!(self.world, "app {}.{}: {} {outcome:?}", self.node, self.slot, ready.id);
        self.judge.end(ready.id, &outcome, (self.node, self.slot, self.name));
        self.step().await?;
        let committed = matches!(outcome, Outcome::Committed(_));
        if committed {
            files.wal.write_all_at(&last.1, last.0).unwrap();
            self.step().await?;
            wal_index::sweep(&files.holder, FrameNo(ready.first.0 - 1)).unwrap();
            for (frame, (page, _)) in (ready.first.0..).zip(&ready.pages) {
                wal_index::append(&files.holder, FrameNo(frame), *page).unwrap();
            }
            self.step().await?;
            wal_index::publish(region0, &ready.header);
            self.step().await?;
        }
        self.release(stream, files, token, false).await?;
        Ok(committed)
    }

    /// Sends the transaction and waits for its outcome; over a restart of the node, if need be.
    async fn commit(
        &self,
        stream: &mut DuplexStream,
        files: &Files,
        ready: &Ready,
        token: u64,
        base: u64,
        target: WalTarget,
    ) -> Result<Outcome, End> {
        let mut message = proto::commit_buffer(4096);
        let numbers: Vec<_> = ready.pages.iter().map(|(page, _)| *page).collect();
        encode_piece(&mut message, Piece::Whole, ready.id, files.size, ready.db_size, &numbers, 0);
        ready.pages.iter().for_each(|(_, image)| message.extend_from_slice(image));
        let message = proto::finish_commit(message, token, &target);
        let deadline = clock::now() + COMMIT_DEADLINE;
        if stream.write_all(&message).await.is_ok() {
            self.step().await?;
            match self.answer(stream, COMMIT_DEADLINE + GRACE, "Commit").await {
                Ok(Response::Outcome(outcome)) => return Ok(outcome),
                Ok(other) => return self.odd("Commit", &other),
                Err(End::Cut) => {}
                Err(end) => return Err(end),
            }
        }
        note!(self.world, "app {}.{}: {} has lost its node", self.node, self.slot, ready.id);
        let question = Request::Resolve { base, target, id: ready.id }.encode();
        loop {
            sleep(Duration::from_millis(50)).await;
            self.step().await?;
            if clock::now() >= deadline || files.is_replaced() {
                return Ok(Outcome::Unknown("its node is gone".into()));
            }
            let Ok(Some(open)) = self.greet().await else { continue };
            if files.is_replaced() {
                return Ok(Outcome::Unknown("another database has taken its place".into()));
            }
            *stream = open;
            match self.ask(stream, &question, COMMIT_DEADLINE + GRACE, "Resolve").await {
                Ok(Response::Outcome(outcome)) => return Ok(outcome),
                Ok(Response::Refused(_)) | Err(End::Cut) => {}
                Ok(other) => return self.odd("Resolve", &other),
                Err(end) => return Err(end),
            }
        }
    }

    /// The next entry of the ledger, as pages and as frames of the WAL.
    fn prepare(&self, files: &Files, header: IndexHeader, pages: u32) -> Ready {
        let read = |page| files.read(page, header.max_frame);
        let known = ledger(read, pages);
        let count = known.len() as u64;
        let (word, noise) = self.world.rng(|rng| (rng.next() | 1, rng.next()));
        let mut id = TxnId::default();
        id.0[..8].copy_from_slice(&word.to_le_bytes());
        id.0[8..].copy_from_slice(&count.to_le_bytes());
        self.judge.saw(self.name, &known, &self.world);

        let entry = PageNo(LEDGER + (count / PER_PAGE) as u32);
        let mut changed = std::collections::BTreeMap::new();
        let is_new = pages < LEDGER;
        let mut counter = if is_new { vec![0; PAGE as usize] } else { read(COUNT) };
        counter[..8].copy_from_slice(&(count + 1).to_le_bytes());
        changed.insert(COUNT, counter);
        for page in NOISE {
            if is_new || noise >> page & 1 == 1 {
                changed.insert(PageNo(page), noise.to_le_bytes().repeat(PAGE as usize / 8));
            }
        }
        let mut list = if entry.0 > pages { vec![0; PAGE as usize] } else { read(entry) };
        list[(count % PER_PAGE) as usize * 8..][..8].copy_from_slice(&word.to_le_bytes());
        changed.insert(entry, list);
        let pages: Vec<_> = changed.into_iter().collect();
        let db_size = header_size(header, pages.last().map_or(0, |(page, _)| page.0), entry.0);

        let mut header = self.restart(files, header);
        let mut fresh = header.salts;
        if header.max_frame.0 == 0 && fresh == Salts::default() {
            fresh = Salts(self.world.rng(|rng| rng.next()).to_le_bytes());
        }
        let (mut appender, wal_header) = Appender::new(header, files.size, fresh, 0);
        if let Some(bytes) = wal_header {
            files.wal.write_all_at(&bytes, 0).unwrap();
        }
        let first = FrameNo(header.max_frame.0 + 1);
        let last = pages.len() - 1;
        let frames = pages.iter().enumerate().map(|(n, (page, image))| {
            let frame = appender.frame(*page, image, if n == last { db_size } else { 0 });
            (frame.offset, [&frame.header[..], image].concat())
        });
        let frames = frames.collect();
        header = appender.finish(db_size);
        Ready { id, pages, db_size, frames, first, header }
    }

    /// Starts the WAL anew if all of it is in the file and nobody reads it (`walRestartLog`).
    fn restart(&self, files: &Files, header: IndexHeader) -> IndexHeader {
        let region0 = files.holder.region(0).unwrap();
        let is_filled = header.max_frame.0 > 0 && wal_index::backfilled(region0) == header.max_frame;
        if !is_filled || !files.holder.try_lock(IndexLock::Readers).unwrap() {
            return header;
        }
        let salts = header.salts.next(self.world.rng(|rng| rng.next()) as u32);
        let restarted = IndexHeader { max_frame: FrameNo(0), salts, ..header };
        wal_index::publish(region0, &restarted);
        wal_index::reset_checkpoint_info(region0, FrameNo(0));
        files.holder.unlock(IndexLock::Readers);
        restarted
    }
}

fn header_size(header: IndexHeader, last: u32, entry: u32) -> u32 {
    header.pages.max(last).max(entry)
}
