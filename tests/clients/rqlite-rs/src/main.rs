//! rqlite-rs: an asynchronous client for Rust, which goes on to the next of its hosts when one can't be reached.

use rqlite_rs::prelude::*;
use rqlite_rs::response::RqliteResult;
use std::error::Error;
use std::io::BufRead;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What isn't ridden over within this time ends the program.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(FromRow)]
struct Foo {
    name: String,
}

async fn example(hosts: &[String]) -> Outcome<Vec<String>> {
    let builder = hosts.iter().fold(RqliteClientBuilder::new(), RqliteClientBuilder::known_host);
    let client = builder.build()?;
    client.exec("CREATE TABLE IF NOT EXISTS rs_foo (id INTEGER PRIMARY KEY, name TEXT, age INTEGER)").await?;
    // All or nothing.
    let inserts = vec![
        rqlite_rs::query!("INSERT INTO rs_foo(name, age) VALUES(?, ?)", "fiona", 20),
        rqlite_rs::query!("INSERT INTO rs_foo(name, age) VALUES(?, ?)", "declan", 22),
    ];
    for result in client.transaction(inserts).await? {
        if let RqliteResult::Error(why) = result {
            return Err(why.error.into());
        }
    }
    let rows = client.fetch(rqlite_rs::query!("SELECT name FROM rs_foo WHERE age > ?", 20)?).await?;
    Ok(rows.into_typed::<Foo>()?.into_iter().map(|foo| foo.name).collect())
}

async fn check(client: &RqliteClient, hosts: &[String]) -> Outcome<()> {
    assert!(client.ready().await);
    let leader = client.leader().await?.expect("somebody leads");
    assert_eq!(leader.api_addr, format!("http://{}", hosts[0]));
    println!("checked connect");

    client.exec("CREATE TABLE rs_types (i INTEGER, r REAL, t TEXT, b BLOB, n TEXT, o BOOLEAN)").await?;
    println!("checked ddl");

    assert_eq!(example(hosts).await?, ["declan"]);
    let done = client.exec(rqlite_rs::query!("INSERT INTO rs_foo(name) VALUES(?)", "ann")?).await?;
    assert_eq!((done.last_insert_id(), done.rows_affected()), (Some(3), Some(1)));
    println!("checked parameters");

    let (text, blob) = ("it's 5 o'clock? € 😀", vec![0_u8, 128, 255]);
    let insert = rqlite_rs::query!(
        "INSERT INTO rs_types VALUES(?, ?, ?, ?, ?, ?)",
        i64::MAX,
        -1.5,
        text,
        blob.clone(),
        None::<String>,
        true
    )?;
    client.exec(insert).await?;
    let rows = client.fetch("SELECT * FROM rs_types").await?;
    let row = &rows[0];
    assert_eq!((row.get::<i64>("i")?, row.get::<f64>("r")?), (i64::MAX, -1.5));
    assert_eq!((row.get::<String>("t")?.as_str(), row.get::<Vec<u8>>("b")?), (text, blob));
    assert_eq!((row.get::<Option<String>>("n")?, row.get::<bool>("o")?), (None, true));
    println!("checked types");

    let both = vec!["INSERT INTO rs_foo(id) VALUES(10)", "INSERT INTO rs_foo(id) VALUES(1)"];
    let results = client.transaction(both).await?;
    assert!(
        matches!(&results[1], RqliteResult::Error(why) if why.error == "UNIQUE constraint failed: rs_foo.id")
    );
    let batch = client.batch(vec!["SELECT count(*) FROM rs_foo", "DELETE FROM rs_foo WHERE id = 3"]).await?;
    assert!(batch.iter().all(|result| matches!(result, RqliteResult::Success(_))), "{batch:?}");
    let count = client.fetch("SELECT count(*) AS n FROM rs_foo").await?[0].get::<i64>("n")?;
    assert_eq!(count, 2);
    client.queue(vec!["INSERT INTO rs_foo(name) VALUES('queued')"]).await?;
    println!("checked transactions");

    for (sql, said) in [
        ("INSERT INTO rs_foo(id) VALUES(1)", "UNIQUE constraint failed: rs_foo.id"),
        ("CREATE nonsense", "syntax error"),
        ("INSERT INTO rs_none VALUES(1)", "no such table: rs_none"),
    ] {
        let why = client.exec(sql).await.unwrap_err().to_string();
        assert!(why.contains(said), "{sql}: {why}");
    }
    let why = client.fetch("SELECT * FROM rs_none").await.unwrap_err().to_string();
    assert!(why.contains("no such table: rs_none"), "{why}");
    println!("checked errors");
    Ok(())
}

/// It goes to the next host where one can't be reached; a connection that breaks in the middle is an error, after which
/// a number may have been written: hence OR IGNORE.
async fn write(client: &RqliteClient, n: i64) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let created = client.exec("CREATE TABLE IF NOT EXISTS rs_t (n INTEGER PRIMARY KEY)").await;
        let insert = rqlite_rs::query!("INSERT OR IGNORE INTO rs_t VALUES(?)", n)?;
        let done = match created {
            Ok(_) => client.exec(insert).await,
            Err(why) => Err(why),
        };
        match done {
            Ok(_) => return Ok(()),
            Err(why) if Instant::now() > deadline => return Err(why.into()),
            Err(why) => eprintln!("{n}: {why}; once more"),
        }
    }
}

async fn run(hosts: &[String]) -> Outcome<()> {
    let builder = hosts.iter().fold(RqliteClientBuilder::new(), RqliteClientBuilder::known_host);
    let client = builder.build()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["check"] => check(&client, hosts).await?,
            ["write", first, last] => {
                for n in first.parse()?..=last.parse()? {
                    write(&client, n).await?;
                    println!("wrote {n}");
                }
            }
            _ => {
                let rows = client.fetch("SELECT count(*) AS n, sum(n) AS s FROM rs_t").await?;
                println!("read {} {}", rows[0].get::<i64>("n")?, rows[0].get::<i64>("s")?);
            }
        }
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let hosts: Vec<String> = std::env::args().skip(1).collect();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&hosts))
}
