use super::*;
use crate::sql::guard::Mode;
use crate::sql::request::parse_json;

/// Runs a body on a new database and returns the document.
struct Bench {
    connection: Connection,
    guard: Guard,
}

impl Bench {
    fn new() -> Bench {
        let mut connection = Connection::open_in_memory().unwrap();
        let guard = Guard::install(&mut connection, false).unwrap();
        Bench { connection, guard }
    }

    fn run(&self, kind: Kind, output: Output, body: &str) -> String {
        let mut json = begin(&output);
        let runner = Runner { connection: &self.connection, guard: &self.guard, kind, output };
        for statement in parse_json(body.as_bytes()).unwrap() {
            self.guard.enter(Mode::Shared, None);
            let _ = runner.statement(&statement, &mut json, &mut Bounded(1 << 20));
            self.guard.leave();
        }
        end(&mut json, &output, None, Instant::now(), None);
        String::from_utf8(json.out).unwrap()
    }

    fn execute(&self, body: &str) -> String {
        self.run(Kind::Execute, Output::default(), body)
    }

    fn query(&self, body: &str) -> String {
        self.run(Kind::Query, Output::default(), body)
    }
}

fn associative() -> Output {
    Output { associative: true, ..Output::default() }
}

#[test]
fn writes() {
    let bench = Bench::new();
    let create = r#"["CREATE TABLE foo (id INTEGER NOT NULL PRIMARY KEY, name TEXT, age INTEGER)"]"#;
    assert_eq!(bench.execute(create), r#"{"results":[{}]}"#);
    let insert = r#"["INSERT INTO foo(name) VALUES(\"fiona\")"]"#;
    assert_eq!(bench.execute(insert), r#"{"results":[{"last_insert_id":1,"rows_affected":1}]}"#);
    let insert = r#"[["INSERT INTO foo(name, age) VALUES(?, ?)","fiona",20]]"#;
    assert_eq!(bench.execute(insert), r#"{"results":[{"last_insert_id":2,"rows_affected":1}]}"#);
    let named = r#"[["INSERT INTO foo(name, age) VALUES(:name, @age)",{"name":"x","age":1,"more":2}]]"#;
    assert_eq!(bench.execute(named), r#"{"results":[{"last_insert_id":3,"rows_affected":1}]}"#);
    let taken = r#"["INSERT INTO foo(id) VALUES(1)"]"#;
    assert_eq!(bench.execute(taken), r#"{"results":[{"error":"UNIQUE constraint failed: foo.id"}]}"#);
    assert_eq!(bench.execute(r#"["CREATE INDEX i ON foo(name)"]"#), r#"{"results":[{}]}"#);
    assert_eq!(bench.execute(r#"["UPDATE foo SET age = 7 WHERE id > 99"]"#), r#"{"results":[{}]}"#);
    let updated = bench.execute(r#"["UPDATE foo SET age = 7"]"#);
    assert_eq!(updated, r#"{"results":[{"last_insert_id":3,"rows_affected":3}]}"#);
    assert_eq!(bench.execute(r#"["SELECT * FROM foo"]"#), r#"{"results":[{}]}"#);
    let returning = r#"["INSERT INTO foo(name) VALUES('r') RETURNING id, name"]"#;
    let expected = r#"{"results":[{"columns":["id","name"],"types":["integer","text"],"values":[[4,"r"]]}]}"#;
    assert_eq!(bench.execute(returning), expected);
    // The word alone makes no RETURNING.
    let word = r#"["INSERT INTO foo(name) VALUES(' RETURNING id')"]"#;
    assert_eq!(bench.execute(word), r#"{"results":[{"last_insert_id":5,"rows_affected":1}]}"#);
    for nothing in [r#"[""]"#, r#"["-- nothing"]"#, r#"[";"]"#] {
        assert_eq!(bench.execute(nothing), r#"{"results":[{}]}"#, "{nothing}");
    }
}

#[test]
fn queries() {
    let bench = Bench::new();
    bench.execute(r#"["CREATE TABLE foo (id INTEGER PRIMARY KEY, name TEXT)"]"#);
    let query = r#"["SELECT * FROM foo"]"#;
    let empty = r#"{"results":[{"columns":["id","name"],"types":["integer","text"]}]}"#;
    assert_eq!(bench.query(query), empty);
    let empty = r#"{"results":[{"types":{"id":"integer","name":"text"},"rows":[]}]}"#;
    assert_eq!(bench.run(Kind::Query, associative(), query), empty);
    bench.execute(r#"["INSERT INTO foo VALUES(1,'fiona')"]"#);
    let one = r#"{"results":[{"columns":["id","name"],"types":["integer","text"],"values":[[1,"fiona"]]}]}"#;
    assert_eq!(bench.query(query), one);
    bench.execute(r#"["INSERT INTO foo VALUES(2,'declan')"]"#);
    let rows = r#"{"results":[{"types":{"id":"integer","name":"text"},"rows":[{"id":1,"name":"fiona"},{"id":2,"name":"declan"}]}]}"#;
    assert_eq!(bench.run(Kind::Query, associative(), query), rows);
    let typed = r#"{"results":[{"columns":["count(*)","x","NULL"],"types":["integer","text",""],"values":[[2,"x",null]]}]}"#;
    assert_eq!(bench.query(r#"["SELECT count(*), 'x' AS x, NULL FROM foo"]"#), typed);
    let twice = r#"{"results":[{"types":{"a":"integer"},"rows":[{"a":2}]}]}"#;
    assert_eq!(bench.run(Kind::Query, associative(), r#"["SELECT 1 AS a, 2 AS a"]"#), twice);
    let write = r#"{"results":[{"error":"attempt to change database via query operation"}]}"#;
    assert_eq!(bench.query(r#"["DELETE FROM foo"]"#), write);
    assert_eq!(bench.query(r#"["SELECT * FROM bar"]"#), r#"{"results":[{"error":"no such table: bar"}]}"#);
    assert_eq!(
        bench.query(r#"["nonsense"]"#),
        r#"{"results":[{"error":"near \"nonsense\": syntax error"}]}"#
    );
}

#[test]
fn both() {
    let bench = Bench::new();
    let body = r#"["CREATE TABLE foo(id INTEGER PRIMARY KEY)","INSERT INTO foo VALUES(7)","SELECT * FROM foo","SELECT * FROM bar"]"#;
    let expected = r#"{"results":[{},{"last_insert_id":7,"rows_affected":1},{"columns":["id"],"types":["integer"],"values":[[7]]},{"error":"no such table: bar"}]}"#;
    assert_eq!(bench.run(Kind::Request, Output::default(), body), expected);
    let expected = r#"{"results":[{"last_insert_id":8,"rows_affected":1,"rows":null},{"types":{"id":"integer"},"rows":[{"id":7},{"id":8}]}]}"#;
    let body = r#"["INSERT INTO foo VALUES(8)","SELECT * FROM foo"]"#;
    assert_eq!(bench.run(Kind::Request, associative(), body), expected);
}

#[test]
fn timings_and_pretty() {
    let bench = Bench::new();
    let timings = Output { timings: true, ..Output::default() };
    let body = r#"["CREATE TABLE foo(id INTEGER PRIMARY KEY)","SELECT 1","x"]"#;
    let value: serde_json::Value = serde_json::from_str(&bench.run(Kind::Request, timings, body)).unwrap();
    assert!(value["time"].as_f64().unwrap() > 0.0);
    assert!(value["results"][0]["time"].as_f64().unwrap() > 0.0);
    assert!(value["results"][1]["time"].as_f64().unwrap() > 0.0);
    assert_eq!(value["results"][2]["error"], "near \"x\": syntax error");
    let pretty = Output { pretty: true, ..Output::default() };
    let expected = "{\n    \"results\": [\n        {\n            \"last_insert_id\": 1,\n            \"rows_affected\": 1\n        }\n    ]\n}";
    assert_eq!(bench.run(Kind::Execute, pretty, r#"["INSERT INTO foo VALUES(1)"]"#), expected);
}

#[test]
fn values_as_columns_declare_them() {
    let bench = Bench::new();
    bench.execute(
        r#"["CREATE TABLE t(b BLOB, f BOOLEAN, d DATETIME, day DATE, n TIMESTAMP, r REAL)",
            ["INSERT INTO t VALUES(?,?,?,?,?,?)",[0,255],true,"2024-05-01 10:20:30","2024-05-01",0,1.5],
            "INSERT INTO t VALUES(NULL,7,'some day',NULL,'2024-05-01T10:20:30Z',9e999)"]"#,
    );
    let expected = r#"{"results":[{"columns":["b","f","d","day","n","r"],"types":["blob","boolean","datetime","date","timestamp","real"],"values":[["AP8=",true,"2024-05-01T10:20:30Z","2024-05-01T00:00:00Z","1970-01-01T00:00:00Z",1.5],[null,7,"some day",null,"2024-05-01T10:20:30Z",9e999]]}]}"#;
    assert_eq!(bench.query(r#"["SELECT * FROM t"]"#), expected);
    let array = Output { blob_array: true, ..Output::default() };
    let expected = r#"{"results":[{"columns":["b"],"types":["blob"],"values":[[[0,255]]]}]}"#;
    assert_eq!(bench.run(Kind::Query, array, r#"["SELECT b FROM t LIMIT 1"]"#), expected);
}

#[test]
fn parameters_that_do_not_fit() {
    let bench = Bench::new();
    for (body, error) in [
        (r#"[["SELECT ?, ?", 1]]"#, "not enough args to execute query: want 2 got 1"),
        (r#"["SELECT ?"]"#, "not enough args to execute query: want 1 got 0"),
        (r#"[["SELECT :a", {"b": 1}]]"#, "not enough args to execute query: want 1 got 0"),
        (r#"[["SELECT 1", 1]]"#, "too many args to execute query: want 0 got 1"),
    ] {
        let expected = serde_json::json!({ "results": [{ "error": error }] });
        assert_eq!(bench.query(body), expected.to_string());
    }
    let many = format!("[[\"SELECT {}\"{}]]", vec!["?"; 10_000].join("+"), ",1".repeat(10_000));
    assert!(bench.query(&many).contains("error"), "deeper than SQLite's expression depth");
    let many =
        format!("[[\"SELECT 1 WHERE 1 IN ({})\"{}]]", vec!["?"; 10_000].join(","), ",1".repeat(10_000));
    assert!(bench.query(&many).contains("[[1]]"));
}

#[test]
fn several_statements_in_one_text() {
    let bench = Bench::new();
    let body = r#"["CREATE TABLE a(x); INSERT INTO a VALUES(1); INSERT INTO a VALUES(2);"]"#;
    assert_eq!(bench.execute(body), r#"{"results":[{"last_insert_id":2,"rows_affected":1}]}"#);
    let body = r#"[["INSERT INTO a VALUES(?); SELECT x + ? FROM a WHERE x = 9", 9, 1]]"#;
    let expected = r#"{"results":[{"columns":["x + ?"],"types":["integer"],"values":[[10]]}]}"#;
    assert_eq!(bench.run(Kind::Request, Output::default(), body), expected);
    let body = r#"["INSERT INTO a VALUES(3); INSERT INTO b VALUES(1)"]"#;
    assert_eq!(bench.execute(body), r#"{"results":[{"error":"no such table: b"}]}"#);
    let trigger = r#"["CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1; SELECT 2; END;"]"#;
    assert_eq!(bench.execute(trigger), r#"{"results":[{}]}"#);
    let refused = bench.execute(r#"["SELECT 1; BEGIN"]"#);
    assert!(refused.contains("transactions can't be begun"), "{refused}");
}

#[test]
fn denials_say_why() {
    let bench = Bench::new();
    for (sql, why) in [
        ("BEGIN", "transactions can't be begun or ended"),
        ("ATTACH '/tmp/x.db' AS x", "databases can't be attached"),
        ("PRAGMA journal_mode=DELETE", "PRAGMA journal_mode can't be set"),
        ("PRAGMA wal_checkpoint", "only the node checkpoints"),
        ("SELECT load_extension('x')", "extensions can't be loaded"),
    ] {
        let body = serde_json::json!([sql]).to_string();
        for kind in [Kind::Execute, Kind::Query, Kind::Request] {
            let said = bench.run(kind, Output::default(), &body);
            assert!(said.contains(why), "{sql}: {said}");
        }
    }
}

#[test]
fn results_that_are_too_large_end() {
    let bench = Bench::new();
    let body = r#"["WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c) SELECT hex(zeroblob(5000)) FROM c"]"#;
    let said = bench.query(body);
    let value: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(value["results"][0]["error"], "the results of the request exceed 1 MiB");
    assert!(said.len() < 2 << 20);
}
