// Node's better-sqlite3, which takes no URIs: the VFS becomes the default one. Then paths inside a node's directory are
// replicated, all others are as ever.
"use strict";
const readline = require("node:readline");
const Database = require("better-sqlite3");

const [extension, ...nodes] = process.argv.slice(2);
// Where it was built, if not in the usual place.
const nativeBinding = process.env.BETTER_SQLITE3_BINDING;

new Database(":memory:", { nativeBinding }).loadExtension(extension, "sqlite3_quiredefault_init");

const open = new Map();

function connect(node) {
  return new Database(node, { nativeBinding, timeout: 300 });
}

function write(node, n) {
  try {
    if (!open.has(node)) open.set(node, connect(node));
    const db = open.get(node);
    db.transaction(() => {
      db.exec("CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, who TEXT)");
      db.prepare("INSERT OR IGNORE INTO t VALUES (?, 'node')").run(n);
    }).immediate();
  } catch (error) {
    open.get(node)?.close();
    open.delete(node);
    throw error;
  }
}

function read(node) {
  const db = connect(node);
  db.pragma("quire_reads = linearizable");
  return db.prepare("SELECT count(*), sum(n) FROM t").raw().get();
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [what, first, last] = line.split(" ");
    if (what === "write") {
      for (let n = Number(first); n <= Number(last); n++) {
        let at = n % nodes.length;
        const deadline = Date.now() + 60_000;
        for (;;) {
          try {
            write(nodes[at], n);
            break;
          } catch (error) {
            if (!(error instanceof Database.SqliteError) || Date.now() > deadline) throw error;
            at = (at + 1) % nodes.length;
            await sleep(50);
          }
        }
        console.log(`wrote ${n}`);
      }
    } else {
      nodes.forEach((node, i) => console.log(`node ${i} ${read(node).join(" ")}`));
      console.log("done");
    }
  }
}

main();
