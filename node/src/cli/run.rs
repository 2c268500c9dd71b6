//! `quire node`: runs a node until a signal or a fatal error ends it.

use crate::api::auth::Auth;
use crate::api::server::Tls;
use crate::args::NodeArgs;
use crate::config::Config;
use crate::gate::server;
use crate::node::{Node, NodeError};
use crate::sql::THREAD as HTTP_THREAD;
use crate::sql::service::Service;
use crate::{api, args};
use anyhow::Context as _;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

/// A task of the node that panicked would be missing without anybody noticing: replication to one member, say, or
/// a database's worker. The node is made to be killed at any time, so it ends. A request of HTTP only fails.
fn die_of_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        if std::thread::current().name() != Some(HTTP_THREAD) {
            error!("a bug: {info}; the node ends, and can be started again");
            std::process::abort();
        }
    }));
}

/// Runs a node.
pub fn node(args: NodeArgs) -> anyhow::Result<ExitCode> {
    let args = match &args.config {
        None => args,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let file: args::NodeArgs = toml::from_str(&text).with_context(|| path.display().to_string())?;
            args.or(file)
        }
    };
    let config = Config::new(args)?;
    die_of_panics();
    // Two runtimes, so that no flood of HTTP requests can keep a heartbeat waiting. Raft and the gate have one
    // thread: what a commit hands from task to task then needs no wake-up (docs/decisions/0010).
    let raft = Builder::new_current_thread().enable_all().build()?;
    let http = Builder::new_multi_thread()
        .worker_threads(config.http_threads)
        .thread_name(HTTP_THREAD)
        .enable_all()
        .build()?;
    let auth = config.auth.as_deref().map(Auth::load).transpose()?.map(Arc::new);
    let tls = config.https.as_ref().map(|(cert, key)| Tls::load(cert, key)).transpose()?.map(Arc::new);
    let code = raft.block_on(async {
        let node = Node::start(config).await?;
        let listener = {
            let _guard = http.enter();
            let address = node.config().http_addr;
            let bound = std::net::TcpListener::bind(address);
            let bound = bound.with_context(|| format!("can't listen for HTTP on {address}"))?;
            bound.set_nonblocking(true)?;
            node.attach_sql(Service::start(&node, node.config().foreign_keys)?);
            TcpListener::from_std(bound)?
        };
        let address = node.config().http_addr;
        if auth.is_none() && !address.ip().is_loopback() {
            warn!("HTTP on {address} has no users: whoever reaches it can read and write; see --auth");
        }
        let router = api::router(node.clone(), auth.clone());
        http.spawn(api::server::serve(listener, router, tls.clone()));
        http.spawn(api::server::watch(auth, tls));
        info!(node = node.id(), http = %node.config().http_addr, raft = %node.config().raft_addr, "started");
        serve(node).await
    });
    http.shutdown_background();
    raft.shutdown_background();
    code
}

async fn serve(node: Arc<Node>) -> anyhow::Result<ExitCode> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let socket = node.socket_path();
    let socket = server::bind(&socket, node.access()).map_err(NodeError::from)?;
    let gate = tokio::spawn(server::serve(socket, node.clone()));
    let mut entering = Box::pin(node.enter_cluster());
    let mut entered = false;
    let raft = node.raft().clone();
    let result = loop {
        tokio::select! {
            result = &mut entering, if !entered => match result {
                Ok(()) => entered = true,
                Err(error) => break Err(error.into()),
            },
            why = raft.stopped() => break Err(NodeError::Stopped(why).into()),
            _ = term.recv() => break Ok(ExitCode::SUCCESS),
            _ = int.recv() => break Ok(ExitCode::SUCCESS),
        }
    };
    gate.abort();
    node.stop().await;
    result
}
