"""What the Python clients have in common: being told what to do."""

import sys
import time

PATIENCE = 60


def run(check, write, read):
    """`check(host)` yields the name of each check that went well, `write(n)` writes a number, whatever has happened to
    its node, and `read()` gives how many there are and their sum."""
    for line in sys.stdin:
        match line.split():
            case ["check"]:
                for name in check():
                    print(f"checked {name}", flush=True)
            case ["write", first, last]:
                for n in range(int(first), int(last) + 1):
                    write(n)
                    print(f"wrote {n}", flush=True)
            case ["read"]:
                count, total = read()
                print(f"read {count} {total}", flush=True)


def anywhere(hosts, failures, work):
    """For a client that knows one host: does `work(host)` at the first of `hosts` that can, and moves that to the front."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return work(hosts[0])
        except failures as why:
            if time.monotonic() > deadline:
                raise
            print(f"{hosts[0]}: {why}; the next is asked", file=sys.stderr, flush=True)
            hosts.append(hosts.pop(0))
            time.sleep(0.05)
