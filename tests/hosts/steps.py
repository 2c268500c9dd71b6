"""What the Python hosts have in common: going from node to node, and being told what to do."""

import sys
import time

PATIENCE = 60


def run(nodes, failures, write, read):
    """`write(node, n)` and `read(node)` each open the database on a node, or find it open; `failures` are what they
    raise when it can't be done there now."""
    for line in sys.stdin:
        words = line.split()
        if words[0] == "write":
            for n in range(int(words[1]), int(words[2]) + 1):
                at = n % len(nodes)
                deadline = time.monotonic() + PATIENCE
                while True:
                    try:
                        write(nodes[at], n)
                        break
                    except failures:
                        if time.monotonic() > deadline:
                            raise
                        at = (at + 1) % len(nodes)
                        time.sleep(0.05)
                print(f"wrote {n}", flush=True)
        else:
            for i, node in enumerate(nodes):
                count, total = read(node)
                print(f"node {i} {count} {total}", flush=True)
            print("done", flush=True)
