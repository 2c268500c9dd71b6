//! `quire demo`: three nodes on loopback, a stock SQLite app that takes orders, a killed leader, and a
//! verified end. Needs no root and leaves nothing behind.

use super::app::App;
use super::local::{LocalCluster, find_extension};
use super::verify;
use crate::args::DemoArgs;
use anyhow::{Context as _, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const REDRAW: Duration = Duration::from_millis(150);

const SCHEMA: &[&str] = &[
    "CREATE TABLE product(id INTEGER PRIMARY KEY, name TEXT, stock INTEGER NOT NULL)",
    "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 50) \
     INSERT INTO product SELECT i, 'product ' || i, 1000000 FROM n",
    "CREATE TABLE orders(id INTEGER PRIMARY KEY, customer TEXT, placed TEXT DEFAULT CURRENT_TIMESTAMP)",
    "CREATE TABLE line(id INTEGER PRIMARY KEY, order_id INTEGER REFERENCES orders, product_id INTEGER, \
     quantity INTEGER)",
    // Nothing of this could be replicated as statements: random() and the time differ everywhere.
    "CREATE TRIGGER fill_order AFTER INSERT ON orders BEGIN \
     INSERT INTO line(order_id, product_id, quantity) VALUES \
     (new.id, 1 + abs(random()) % 50, 1 + abs(random()) % 9), \
     (new.id, 1 + abs(random()) % 50, 1 + abs(random()) % 9); END",
    "CREATE TRIGGER take_stock AFTER INSERT ON line BEGIN \
     UPDATE product SET stock = stock - new.quantity WHERE id = new.product_id; END",
];

/// Runs the demo. Fails, and says where, if anything is not as it should be.
pub fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let extension = find_extension(args.extension.as_deref())?;
    let dir = tempfile::Builder::new().prefix("quire-demo-").tempdir()?;
    let result = Demo::new(dir.path(), &extension, args).and_then(|mut demo| demo.play());
    if args.keep {
        println!("kept: {}", dir.keep().display());
    }
    result.map(|()| ExitCode::SUCCESS)
}

struct Demo<'a> {
    cluster: LocalCluster,
    extension: &'a Path,
    orders: u32,
    board: Board,
    began: Instant,
}

impl<'a> Demo<'a> {
    fn new(dir: &Path, extension: &'a Path, args: &DemoArgs) -> anyhow::Result<Demo<'a>> {
        let cluster = LocalCluster::new(&std::env::current_exe()?, dir, 3)?;
        let board = Board::new(&cluster, args.orders.max(2));
        Ok(Demo { cluster, extension, orders: args.orders.max(2), board, began: Instant::now() })
    }

    fn say(&self, text: &str) {
        self.board.say(&format!("[{:>6.2}s] {text}", self.began.elapsed().as_secs_f64()));
    }

    fn play(&mut self) -> anyhow::Result<()> {
        self.say("starting three nodes on loopback");
        self.cluster.start().context("starting the cluster")?;
        let first = self.cluster.wait_leader(PATIENCE)?;
        self.say(&format!("the cluster is up, node {first} leads"));

        let mut app = self.app(first)?;
        self.say(&format!("the app is {}; it opens {}", app.kind(), app.connection()));
        for sql in SCHEMA {
            app.execute(sql).context("creating the schema")?;
        }
        let half = self.orders / 2;
        let writing = Instant::now();
        for n in 1..=half {
            self.order(&mut app, n)?;
        }
        let rate = f64::from(half) / writing.elapsed().as_secs_f64();
        self.say(&format!("{half} orders committed on a majority, {rate:.0} per second"));

        self.say(&format!("killing the leader, node {first} (SIGKILL)"));
        let killed = Instant::now();
        self.cluster.kill(first)?;
        drop(app);
        let second = self.cluster.wait_leader(PATIENCE).context("waiting for a new leader")?;
        let elected = killed.elapsed();
        let mut app = self.app(second)?;
        self.order(&mut app, half + 1).context("the first order after the failover")?;
        let failover = killed.elapsed();
        self.say(&format!(
            "node {second} leads after {:.2}s; the app, moved there, has its next order committed after {:.2}s",
            elected.as_secs_f64(),
            failover.as_secs_f64()
        ));
        let writing = Instant::now();
        for n in half + 2..=self.orders {
            self.order(&mut app, n)?;
        }
        let rate = f64::from(self.orders - half - 1) / writing.elapsed().as_secs_f64();
        self.say(&format!(
            "{} more orders on two of three nodes, {rate:.0} per second",
            self.orders - half - 1
        ));

        self.say(&format!("bringing node {first} back"));
        let back = Instant::now();
        self.cluster.start_node(first)?;
        self.cluster.wait_applied("shop", PATIENCE).context("waiting for the node to catch up")?;
        self.board.draw(&self.cluster, self.orders);
        self.say(&format!("node {first} has caught up after {:.2}s", back.elapsed().as_secs_f64()));
        drop(app);

        self.prove()?;
        self.board.finish();
        println!(
            "failover {:.2}s; all {} acknowledged orders are on all nodes",
            failover.as_secs_f64(),
            self.orders
        );
        Ok(())
    }

    fn app(&self, node: u64) -> anyhow::Result<App> {
        App::start(self.extension, &self.cluster.node(node)?.database("shop"))
    }

    /// One order is one transaction: the app says that it is committed, and so it must stay.
    fn order(&mut self, app: &mut App, n: u32) -> anyhow::Result<()> {
        app.execute(&format!("INSERT INTO orders(id, customer) VALUES ({n}, 'customer {}')", n % 17))
            .with_context(|| format!("order {n}"))?;
        self.board.draw(&self.cluster, n);
        Ok(())
    }

    /// All nodes hold the same bytes, and in them every order that was acknowledged.
    fn prove(&self) -> anyhow::Result<()> {
        let leader = self.cluster.wait_leader(PATIENCE)?;
        let report = verify::verify(&self.cluster.node(leader)?.http, true, false, PATIENCE)?;
        if !report.identical {
            bail!("the nodes differ: {}", report.faults.join("; "));
        }
        for (id, found) in report.databases.get("shop").into_iter().flatten() {
            let sha256 = found["sha256"].as_str().unwrap_or_default();
            self.say(&format!(
                "node {id}: checksum {}, sha256 {sha256}",
                found["checksum"].as_str().unwrap_or_default()
            ));
        }
        for node in &self.cluster.nodes {
            // Stock SQLite, without the extension, reads the replica's file.
            let reader =
                Connection::open_with_flags(node.database("shop"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            let (orders, check): (u32, String) = reader.query_row(
                "SELECT (SELECT count(*) FROM orders), (SELECT * FROM pragma_integrity_check)",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            if orders != self.orders || check != "ok" {
                bail!("node {}: {orders} of {} orders, integrity {check}", node.id, self.orders);
            }
        }
        self.say("identical on all nodes, byte for byte; integrity_check is ok");
        Ok(())
    }
}

/// The live table: a line for each node, and the app's progress. Lines only where there is no terminal.
struct Board {
    all: MultiProgress,
    nodes: Vec<ProgressBar>,
    orders: ProgressBar,
    drawn: Option<Instant>,
    visible: bool,
}

impl Board {
    fn new(cluster: &LocalCluster, orders: u32) -> Board {
        let all = MultiProgress::new();
        let visible = !all.is_hidden();
        let plain = ProgressStyle::with_template("  {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let nodes =
            cluster.nodes.iter().map(|_| all.add(ProgressBar::new(1).with_style(plain.clone()))).collect();
        let style = ProgressStyle::with_template("  orders {bar:40} {pos}/{len}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let orders = all.add(ProgressBar::new(orders.into()).with_style(style));
        Board { all, nodes, orders, drawn: None, visible }
    }

    fn say(&self, text: &str) {
        if self.visible {
            let _ = self.all.println(text);
        } else {
            println!("{text}");
        }
    }

    fn draw(&mut self, cluster: &LocalCluster, orders: u32) {
        if !self.visible || self.drawn.is_some_and(|at| at.elapsed() < REDRAW) {
            return;
        }
        self.drawn = Some(Instant::now());
        self.orders.set_position(orders.into());
        for (node, bar) in cluster.nodes.iter().zip(&self.nodes) {
            bar.set_message(describe(node.id, node.status()));
        }
    }

    fn finish(&self) {
        let _ = self.all.clear();
    }
}

fn describe(id: u64, status: Option<Value>) -> String {
    let Some(status) = status else { return format!("node {id}  down") };
    let store = &status["store"];
    let state = store["raft"]["state"].as_str().unwrap_or("-");
    let shop = store["databases"].as_array().into_iter().flatten().find(|db| db["name"] == "shop");
    let checksum = shop.and_then(|db| db["checksum"].as_str()).unwrap_or("-");
    let index = shop.map_or(Value::Null, |db| db["index"].clone());
    format!("node {id}  {state:<9} term {:<3} index {index:<7} checksum {checksum}", store["raft"]["term"])
}
