#!/usr/bin/python3
"""Figures of the storage engine, on real processes of a release build. Nothing here passes or fails.

    cargo build --release -p quire-node -p quire-vfs
    /usr/bin/python3 tests/measure/storage.py stall       # commit latency beside checkpoints, and without any
    /usr/bin/python3 tests/measure/storage.py restart     # from the start of a process to serving, 100 MB and 4 GB
    /usr/bin/python3 tests/measure/storage.py snapshot    # a new node gets 100 MB and 1 GB; then a few pages
    /usr/bin/python3 tests/measure/storage.py import      # memory of every process during a 1 GB import and a 500 MB UPDATE

The data directories are made under --dir (default: the target directory) and removed again; `restart` takes up to
13 GB there, `import` 16 GB.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUIRE = ROOT / "target/release/quire"
EXTENSION = ROOT / "target/release/libquire_vfs.so"
HOST = "127.83.7.1"
STEADY = ["--heartbeat-ms", "200", "--election-timeout-ms", "3000"]


def load_extension():
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(str(EXTENSION))


class Node:
    def __init__(self, number, directory, key, flags, join):
        self.http, self.raft = f"{HOST}:{4100 + number}", f"{HOST}:{4200 + number}"
        self.number, self.dir, self.process = number, directory / f"node{number}", None
        self.log = directory / f"node{number}.log"
        self.command = [QUIRE, "node", "--data-dir", self.dir, "--node-id", str(number), "--cluster-key", key]
        self.command += ["--http-addr", self.http, "--raft-addr", self.raft, *flags]
        self.command += ["--join", join] if join else []

    def start(self):
        with open(self.log, "ab") as log:
            env = {**os.environ, "NO_COLOR": "1"}
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=env)

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.http}{path}", timeout=10) as answer:
            return answer.read().decode()

    def status(self):
        return json.loads(self.get("/status"))["store"]

    def database(self, name):
        return next((db for db in self.status()["databases"] if db["name"] == name), None)

    def open(self, name):
        return sqlite3.connect(f"file:{self.dir}/db/{name}.db?vfs=quire", uri=True, timeout=30, isolation_level=None)

    def memory(self, key="VmHWM"):
        return memory(self.process.pid, key)


def memory(pid, key="VmHWM"):
    """MiB."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+)", text)[1]) / 1024


def wait(what, condition, patience=600):
    """Returns how long it took, in seconds."""
    began = time.monotonic()
    while True:
        try:
            if condition():
                return time.monotonic() - began
        except (OSError, sqlite3.Error, StopIteration, TypeError):
            pass
        if time.monotonic() - began > patience:
            sys.exit(f"waited {patience} s for {what}")
        time.sleep(0.002)


class Cluster:
    def __init__(self, place, count, flags=()):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="measure-", dir=place))
        self.key = self.dir / "cluster.key"
        with open(os.open(self.key, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as key:
            key.write(os.urandom(32))
        self.nodes, self.flags = [], [*STEADY, *flags]
        for _ in range(count):
            self.add().start()
        wait("all to vote", lambda: all(self.voters(node) == count for node in self.nodes))

    @staticmethod
    def voters(node):
        return sum(member["suffrage"] == "voter" for member in node.status()["nodes"])

    def add(self, *flags):
        join = self.nodes[0].raft if self.nodes else None
        node = Node(len(self.nodes) + 1, self.dir, self.key, [*self.flags, *flags], join)
        self.nodes.append(node)
        return node

    def leader(self):
        wait("a leader", lambda: any(n.status()["raft"]["state"] == "Leader" for n in self.nodes))
        return next(n for n in self.nodes if n.status()["raft"]["state"] == "Leader")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for node in self.nodes:
            if node.process and node.process.poll() is None:
                node.process.kill()
                node.process.wait()
        shutil.rmtree(self.dir)


def fill(app, megabytes):
    """Rows of 1 MB, 40 in a transaction."""
    app.execute("CREATE TABLE IF NOT EXISTS big(n INTEGER PRIMARY KEY, body BLOB)")
    for begin in range(0, megabytes, 40):
        rows = min(40, megabytes - begin)
        app.execute(
            "INSERT INTO big(body) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < ?) "
            "SELECT randomblob(1000000) FROM c", (rows,))


def stall(args):
    print("commits of 16 KiB rows at 100 per second, on the leader of three nodes")
    figures = {"on": [], "off": []}
    for round_number in range(args.rounds):
        for mode, mib in [("on", "16"), ("off", "16384")]:
            flags = ["--checkpoint-mib", mib, "--log", "info,openraft=error,quire_node::db::checkpoint=debug"]
            with Cluster(args.dir, 3, flags) as cluster:
                node = cluster.leader()
                app = node.open("app")
                app.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)")
                latencies = []
                began = time.monotonic()
                while (at := time.monotonic() - began) < args.seconds:
                    pause = len(latencies) / 100 - at
                    time.sleep(max(0, pause))
                    start = time.monotonic()
                    app.execute("INSERT INTO t(body) VALUES (randomblob(16000))")
                    latencies.append((time.monotonic() - start) * 1000)
                app.close()
                done = len(re.findall("checkpoint database.*done=true", node.log.read_text()))
            latencies.sort()
            at = lambda q: latencies[min(len(latencies) - 1, int(len(latencies) * q))]
            row = (at(0.5), at(0.99), at(0.999), latencies[-1])
            figures[mode].append(row)
            print(f"  checkpoints {mode:>3}: {len(latencies)} commits, {done} checkpoints; "
                  + "p50 %.2f  p99 %.2f  p99.9 %.2f  max %.2f ms" % row, flush=True)
    middle = lambda mode, n: sorted(row[n] for row in figures[mode])[len(figures[mode]) // 2]
    for n, name in enumerate(["p50", "p99", "p99.9", "max"]):
        on, off = middle("on", n), middle("off", n)
        print(f"  {name}: median {on:.2f} ms with, {off:.2f} ms without, ratio {on / off:.2f}", flush=True)


def restart(args):
    for megabytes in args.sizes or [100, 4000]:
        with Cluster(args.dir, 1) as cluster:
            node = cluster.nodes[0]
            app = node.open("app")
            fill(app, megabytes)
            app.execute("CREATE TABLE small(n)")
            app.close()
            for how in [signal.SIGTERM, signal.SIGKILL] * args.rounds:
                app = node.open("app")
                # What a kill leaves to be read again: some MB of pages, in any case.
                app.execute("UPDATE big SET body = randomblob(1000000) WHERE n <= 5")
                app.close()
                node.end(how)
                log = sum(f.stat().st_size for f in (node.dir / "raft/log").iterdir()) / 1e6
                began = time.monotonic()
                node.start()
                wait("readiness", lambda: node.get("/readyz"))
                ready = time.monotonic() - began

                def read():
                    app = node.open("app")
                    app.execute("SELECT count(*) FROM small").fetchone()
                    return app
                wait("a read", read)
                reads = time.monotonic() - began
                app = read()
                app.execute("INSERT INTO small VALUES (1)")
                wrote = time.monotonic() - began
                app.close()
                size = (node.dir / "db/app.db").stat().st_size / 1e6
                print(f"{size:.0f} MB, {how.name}: log {log:.0f} MB; ready {ready:.2f} s, read {reads:.2f} s, "
                      f"written {wrote:.2f} s after the start; {node.memory('VmRSS'):.0f} MiB", flush=True)


def said(node, pattern):
    return re.findall(pattern, node.log.read_text())


def snapshot(args):
    small = ["--log-segment-mib", "1", "--log-retain-mib", "0", "--checkpoint-mib", "4"]
    for megabytes in args.sizes or [100, 1000]:
        with Cluster(args.dir, 1, small) as cluster:
            leader = cluster.nodes[0]
            app = leader.open("app")
            fill(app, megabytes)
            app.execute("CREATE TABLE small(n, body)")
            size = leader.database("app")["pages"] * 4096
            wait("the log to be purged", lambda: leader.status()["raft"]["purged_index"] > 10)
            new = cluster.add("--non-voter")
            began = time.monotonic()
            new.start()
            index = leader.database("app")["index"]
            wait("the new node to have it", lambda: new.database("app")["index"] >= index)
            took = time.monotonic() - began
            begun = r"receiving state database=\"app\".*? pages=(\d+)"
            pages = said(new, begun)[-1]
            print(f"{size / 1e6:.0f} MB to a new node: {took:.1f} s from its start, {size / 1e6 / took:.0f} MB/s, "
                  f"{int(pages) * 4096 / 1e6:.0f} MB shipped, {new.memory():.0f} MiB there, {leader.memory():.0f} MiB "
                  "on the leader", flush=True)
            # Away while the log is purged past what it has; a few pages of rows change, and a small table grows.
            last = new.status()["raft"]["last_log_index"]
            new.end()
            before = len(said(new, begun))
            app.execute("UPDATE big SET body = randomblob(1000000) WHERE n = 1")
            for _ in range(200):
                app.execute("INSERT INTO small VALUES (1, randomblob(4000))")
                app.execute("DELETE FROM small")
            wait("the log to be purged", lambda: leader.status()["raft"]["purged_index"] > last)
            index = leader.database("app")["index"]
            began = time.monotonic()
            new.start()
            wait("it to catch up", lambda: new.database("app")["index"] >= index)
            took = time.monotonic() - began
            found = said(new, begun)[before:]
            shipped = sum(map(int, found)) * 4096
            print(f"{size / 1e6:.0f} MB, a few pages differ: {took:.1f} s from its start, {shipped / 1e6:.2f} MB "
                  f"shipped, {100 * shipped / size:.2f} % of it", flush=True)
            app.close()


def import_(args):
    megabytes = (args.sizes or [1000])[0]
    with tempfile.TemporaryDirectory(dir=args.dir) as directory, Cluster(args.dir, 3) as cluster:
        source = f"{directory}/source.db"
        file = sqlite3.connect(source, isolation_level=None)
        file.execute("PRAGMA synchronous=OFF")
        fill(file, megabytes)
        file.close()
        size = os.stat(source).st_size / 1e6
        leader = cluster.leader()
        began = time.monotonic()
        client = subprocess.Popen([QUIRE, "db", "import", source, "--db", "big", "--http-addr", leader.http, "--json"])
        peak = 0
        while client.poll() is None:
            try:
                peak = max(peak, memory(client.pid))
            except (OSError, TypeError):
                pass
            time.sleep(0.05)
        if client.returncode:
            sys.exit("the import failed")
        took = time.monotonic() - began
        index = leader.database("big")["index"]
        wait("all to have it", lambda: all(n.database("big")["index"] >= index and n.database("big")["queued"] == 0 for n in cluster.nodes))
        peaks = ", ".join(f"node {n.number} {n.memory():.0f}" + (" (leader)" if n is leader else "") for n in cluster.nodes)
        print(f"import of {size:.0f} MB on three nodes: {took:.1f} s, {size / took:.0f} MB/s; peaks in MiB: {peaks}, "
              f"client {peak:.0f}", flush=True)
        # In a process of its own, whose memory counts.
        code = ("import sqlite3, sys\nl = sqlite3.connect(':memory:')\nl.enable_load_extension(True)\n"
                "l.load_extension(sys.argv[1])\n"
                "d = sqlite3.connect(f'file:{sys.argv[2]}?vfs=quire', uri=True, timeout=30, isolation_level=None)\n"
                "d.execute('UPDATE big SET body = randomblob(1000000) WHERE n <= ?', (int(sys.argv[3]),))\n"
                "print([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1])")
        other = leader.open("other")
        other.execute("CREATE TABLE t(a)")
        latencies, ended = [], threading.Event()
        began = time.monotonic()
        update = subprocess.Popen([sys.executable, "-c", code, EXTENSION, f"{leader.dir}/db/big.db", str(megabytes // 2)],
                                  stdout=subprocess.PIPE, text=True)
        while update.poll() is None:
            start = time.monotonic()
            other.execute("INSERT INTO t VALUES (1)")
            latencies.append(time.monotonic() - start)
        took = time.monotonic() - began
        if update.returncode:
            sys.exit("the update failed")
        app = int(update.stdout.read()) / 1024
        latencies.sort()
        peaks = ", ".join(f"node {n.number} {n.memory():.0f}" for n in cluster.nodes)
        print(f"UPDATE of {megabytes // 2} MB: {took:.1f} s; peaks in MiB: {peaks}, app {app:.0f}; another database made "
              f"{len(latencies)} commits meanwhile, p50 {latencies[len(latencies) // 2] * 1000:.1f} ms, max "
              f"{latencies[-1] * 1000:.0f} ms", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stall", "restart", "snapshot", "import"])
    parser.add_argument("--dir", default=str(ROOT / "target"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=40)
    parser.add_argument("--sizes", type=int, nargs="*", help="in MB")
    parser.add_argument("--quire", help="another program; its extension is taken from beside it")
    args = parser.parse_args()
    if args.quire:
        global QUIRE, EXTENSION
        QUIRE = pathlib.Path(args.quire).resolve()
        EXTENSION = QUIRE.parent / "libquire_vfs.so"
    load_extension()
    {"stall": stall, "restart": restart, "snapshot": snapshot, "import": import_}[args.what](args)


if __name__ == "__main__":
    main()
