//! `quire bench http`: one-row inserts over HTTP, from C clients at the same time, each of which sends its next request
//! when it has the answer to the last; in turns with commits of the same insert to plain SQLite with
//! `synchronous=FULL` on this machine. It drives any server that speaks rqlite's API.
//!
//! The clients are connections of one thread, which waits for all of them with `poll(2)`: a benchmark that shares its
//! machine with the servers shouldn't take more of it than it must.

use super::bench::percentile;
use super::bench_stream::{Stream, Target};
use super::client::authorization;
use super::local::LocalCluster;
use crate::args::BenchHttpArgs;
use anyhow::{Context as _, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rusqlite::Connection;
use serde_json::json;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const TABLE: &str = "quire_bench";
/// What a row holds.
const BODY: &str =
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123";
/// A server that is silent for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(30);
/// An answer to a one-row insert is never longer.
const MAX_ANSWER: usize = 64 << 10;
/// Before a measurement.
const WARM_UP: Duration = Duration::from_millis(300);

struct Turn {
    per_second: f64,
    latencies: Vec<Duration>,
}

/// Runs the benchmark, on the server at `--url` or on a temporary cluster.
pub fn run(args: &BenchHttpArgs) -> anyhow::Result<ExitCode> {
    let dir = tempfile::Builder::new().prefix("quire-bench-").tempdir_in(".")?;
    let mut cluster = None;
    let target = match &args.url {
        Some(url) => Target::new(url, args.cacert.as_deref(), args.insecure)?,
        None => {
            let mut local = LocalCluster::new(&std::env::current_exe()?, dir.path(), args.nodes.into())?;
            local.start()?;
            let leader = local.wait_leader(Duration::from_secs(20))?;
            let target = Target::new(&local.node(leader)?.http, None, false)?;
            cluster = Some(local);
            target
        }
    };
    let server = Server { target, user: args.user.as_deref().map(authorization) };
    let create = format!("CREATE TABLE IF NOT EXISTS {TABLE}(id INTEGER PRIMARY KEY, body TEXT)");
    let insert = format!("INSERT INTO {TABLE}(body) VALUES(?)");
    let mut client = Client::connect(&server)?;
    client.once(&server.post(&json!([create]).to_string()))?;
    let plain = Connection::open(dir.path().join("plain.db"))?;
    plain.pragma_update(None, "journal_mode", "wal")?;
    plain.pragma_update(None, "synchronous", "full")?;
    plain.execute_batch(&create)?;

    let length = Duration::from_secs(args.seconds);
    let request = server.post(&json!([[insert, BODY]]).to_string());
    commits(&plain, &insert, WARM_UP)?;
    let mut report = Vec::new();
    for clients in args.concurrency.iter().map(|&clients| usize::from(clients)) {
        requests(&server, &request, clients, WARM_UP)?;
        let mut ratios = Vec::new();
        let mut rows = Vec::new();
        for _ in 0..args.turns {
            let (a, b) = (commits(&plain, &insert, length)?, requests(&server, &request, clients, length)?);
            let ratio = b.per_second / a.per_second;
            let at = |q| percentile(&b.latencies, q);
            if !args.json {
                println!(
                    "C {clients:>3}   plain FULL {:>6.0}/s   HTTP {:>6.0}/s   ratio {ratio:.2}   p50 {:?} p95 {:?} p99 {:?}",
                    a.per_second,
                    b.per_second,
                    at(0.5),
                    at(0.95),
                    at(0.99),
                );
            }
            ratios.push(ratio);
            let micros = |q| at(q).as_micros() as u64;
            rows.push(json!({
                "plain_per_second": a.per_second, "http_per_second": b.per_second, "ratio": ratio,
                "p50_us": micros(0.5), "p95_us": micros(0.95), "p99_us": micros(0.99), "max_us": micros(1.0),
            }));
        }
        ratios.sort_by(f64::total_cmp);
        let median = ratios.get(ratios.len() / 2).copied().unwrap_or_default();
        if !args.json {
            println!("C {clients:>3}   median ratio {median:.2} (of {} turns)", ratios.len());
        }
        report.push(json!({ "clients": clients, "median_ratio": median, "turns": rows }));
    }
    if args.json {
        println!("{}", json!({ "url": server.target.url(), "runs": report }));
    }
    client.once(&server.post(&json!([format!("DROP TABLE {TABLE}")]).to_string()))?;
    drop(cluster);
    Ok(ExitCode::SUCCESS)
}

fn commits(plain: &Connection, insert: &str, length: Duration) -> anyhow::Result<Turn> {
    let mut statement = plain.prepare(insert)?;
    let began = Instant::now();
    let mut latencies = Vec::new();
    while began.elapsed() < length {
        let start = Instant::now();
        statement.execute([BODY])?;
        latencies.push(start.elapsed());
    }
    Ok(Turn::new(latencies, began.elapsed()))
}

impl Turn {
    fn new(mut latencies: Vec<Duration>, took: Duration) -> Turn {
        latencies.sort_unstable();
        Turn { per_second: latencies.len() as f64 / took.as_secs_f64(), latencies }
    }
}

/// The server, and who asks it.
struct Server {
    target: Target,
    /// The value of the header.
    user: Option<String>,
}

impl Server {
    fn post(&self, body: &str) -> Vec<u8> {
        let (address, length) = (&self.target.address, body.len());
        let user = self.user.as_ref().map(|user| format!("Authorization: {user}\r\n")).unwrap_or_default();
        format!(
            "POST /db/execute HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n{user}\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// So many clients for so long.
fn requests(server: &Server, request: &[u8], clients: usize, length: Duration) -> anyhow::Result<Turn> {
    let mut all = (0..clients).map(|_| Client::connect(server)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut latencies = Vec::new();
    let began = Instant::now();
    for client in &mut all {
        client.send(request)?;
    }
    let mut running = clients;
    while running > 0 {
        let waiting: Vec<usize> = (0..all.len()).filter(|&i| all[i].sent.is_some()).collect();
        let mut fds: Vec<_> =
            waiting.iter().map(|&i| PollFd::new(all[i].stream.as_fd(), PollFlags::POLLIN)).collect();
        if poll(&mut fds, PollTimeout::try_from(SILENCE).unwrap_or(PollTimeout::MAX))? == 0 {
            bail!("{} did not answer for {SILENCE:?}", server.target.url());
        }
        let ready: Vec<usize> =
            fds.iter().zip(&waiting).filter(|(fd, _)| fd.any() == Some(true)).map(|(_, &i)| i).collect();
        for i in ready {
            if let Some(latency) = all[i].receive()? {
                latencies.push(latency);
                if began.elapsed() < length {
                    all[i].send(request)?;
                } else {
                    running -= 1;
                }
            }
        }
    }
    Ok(Turn::new(latencies, began.elapsed()))
}

/// One connection.
struct Client {
    stream: Stream,
    address: String,
    answer: Vec<u8>,
    sent: Option<Instant>,
}

impl Client {
    fn connect(server: &Server) -> anyhow::Result<Client> {
        let stream = server.target.connect(SILENCE)?;
        Ok(Client { stream, address: server.target.url(), answer: Vec::new(), sent: None })
    }

    fn send(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.sent = Some(Instant::now());
        self.stream.send(request).with_context(|| self.address.clone())
    }

    /// One request outside a measurement.
    fn once(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.send(request)?;
        while self.receive()?.is_none() {}
        Ok(())
    }

    /// Reads what has come; the latency, if the answer is complete.
    fn receive(&mut self) -> anyhow::Result<Option<Duration>> {
        match self.stream.receive(&mut self.answer) {
            Ok(true) => {}
            Ok(false) => bail!("{} closed the connection", self.address),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.address.clone()),
        }
        if self.answer.len() > MAX_ANSWER {
            bail!("{} sends more than an answer to an insert", self.address);
        }
        if !is_complete(&self.answer)? {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&self.answer);
        if text.starts_with("HTTP/1.1 401") {
            bail!("{} wants a user who may do that; give one with --user NAME:PASSWORD", self.address);
        }
        if !text.starts_with("HTTP/1.1 200") || text.contains("\"error\"") {
            bail!("{} answered: {text}", self.address);
        }
        self.answer.clear();
        Ok(self.sent.take().map(|sent| sent.elapsed()))
    }
}

/// Whether a response with a length, or in chunks, is all there.
fn is_complete(answer: &[u8]) -> anyhow::Result<bool> {
    const END: &[u8] = b"\r\n\r\n";
    let Some(at) = answer.windows(END.len()).position(|window| window == END) else { return Ok(false) };
    let (head, body) = answer.split_at(at + END.len());
    let head = String::from_utf8_lossy(head).to_lowercase();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if header("transfer-encoding:") == Some("chunked") {
        return Ok(body.ends_with(b"0\r\n\r\n"));
    }
    let length: usize = header("content-length:").context("an answer without a length")?.parse()?;
    Ok(body.len() >= length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_where_they_end() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert!((0..whole.len()).all(|n| !is_complete(&whole[..n]).unwrap()));
        assert!(is_complete(whole).unwrap());
        assert!(
            is_complete(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
                .unwrap()
        );
        assert!(is_complete(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
