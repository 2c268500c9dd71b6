"""`quire shell` at a terminal: prompts, several lines, completion, history, Ctrl-C and Ctrl-D.

Arguments: the program, a node's address, a directory for the history.
"""

import fcntl
import os
import pty
import re
import select
import stat
import struct
import sys
import termios
import time

program, address, directory = sys.argv[1:]
history = os.path.join(directory, "state", "history")
PATIENCE = 60
UP, TAB, INTERRUPT, END, ENTER = "\x1b[A", "\t", "\x03", "\x04", "\r"


class Terminal:
    """A shell at a terminal of its own."""

    def __init__(self):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", QUIRE_HISTORY=history)
            os.execv(program, [program, "shell", address])
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        self.text = ""

    def wait(self, pattern, patience=PATIENCE):
        """Waits for this in what came since the last `type`, without what moves the cursor; whether it came."""
        deadline = time.monotonic() + patience
        while not re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", self.text), re.S):
            left = deadline - time.monotonic()
            if left <= 0 and patience < PATIENCE:
                return False
            assert left > 0, f"waited for {pattern!r}; there is {self.text!r}"
            if select.select([self.fd], [], [], left)[0]:
                try:
                    self.text += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"it ended while {pattern!r} was waited for: {self.text!r}")
        return True

    def type(self, text, pattern):
        self.text = ""
        os.write(self.fd, text.encode())
        self.wait(pattern)

    def interrupt(self):
        """Ctrl-C until the statement has ended: when it runs can't be seen from here. Pressed once more than needed, it
        would end the next statement, so the answer to one is waited for."""
        self.text = ""
        deadline = time.monotonic() + PATIENCE
        while "interrupted" not in self.text:
            assert time.monotonic() < deadline, f"it isn't interrupted; there is {self.text!r}"
            os.write(self.fd, INTERRUPT.encode())
            self.wait("interrupted", patience=5)
        self.wait(r"Error: interrupted.*" + PROMPT)

    def end(self):
        """Ctrl-D; the exit status."""
        os.write(self.fd, END.encode())
        deadline = time.monotonic() + PATIENCE
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, "it doesn't end"
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    os.read(self.fd, 65536)
                except OSError:
                    pass


PROMPT = r"quire:main> $"
OPEN = r"\n\s*\.\.\.> $"

shell = Terminal()
shell.wait(r"Type \.help for help.*" + PROMPT)
shell.type("CREATE TABLE terminal(alpha, beta);" + ENTER, r"\n" + PROMPT)
# A statement of several lines, a table as its result.
shell.type("INSERT INTO terminal" + ENTER, OPEN)
shell.type("VALUES('one', 'a'||char(27)||'[2J');" + ENTER, r"changes: 1.*" + PROMPT)
# Nothing of a value reaches the terminal as a command.
shell.type("SELECT * FROM terminal;" + ENTER, r"\| alpha \| beta\s+\|.*\| one   \| a\^\[\[2J \|.*" + PROMPT)
assert "a\x1b[2J" not in shell.text, shell.text
# Completion of a table, a column, a keyword and a command.
shell.type("SELECT count(*) FROM term" + TAB, r"FROM terminal$")
shell.type(" WHERE alp" + TAB, r"WHERE alpha$")
shell.type(" isn" + TAB, r"isnull$")
shell.type(";" + ENTER, r"\| +0 \|.*" + PROMPT)
shell.type(".tab" + TAB, r"\.tables$")
shell.type(ENTER, r"terminal.*" + PROMPT)
# A table that was just made is known.
shell.type("CREATE TABLE afterwards(x);" + ENTER, r"\n" + PROMPT)
shell.type("SELECT 7 FROM afterw" + TAB, r"FROM afterwards$")
# Ctrl-C forgets a line, and a statement over lines.
shell.type(INTERRUPT, r"\n" + PROMPT)
shell.type("SELECT 'never" + ENTER, OPEN)
shell.type(INTERRUPT, r"\n" + PROMPT)
# It ends a statement that runs, and the shell goes on.
shell.type(
    "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c) SELECT max(n) FROM c;" + ENTER, r"\n$"
)
shell.interrupt()
# A write that it ends keeps nobody waiting.
shell.type(".timeout 10m" + ENTER, r"\n" + PROMPT)
shell.type(
    "INSERT INTO terminal(alpha) WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c) SELECT max(n) FROM c;"
    + ENTER,
    r"\n$",
)
shell.interrupt()
shell.type("DELETE FROM terminal WHERE alpha = 'none';" + ENTER, r"changes: 0.*" + PROMPT)
shell.type("SELECT 'goes on';" + ENTER, r"\| goes on +\|.*" + PROMPT)
# The prompt shows an open transaction.
shell.type("BEGIN;" + ENTER, r"quire:main\*> $")
shell.type("ROLLBACK;" + ENTER, r"\n" + PROMPT)
assert shell.end() == 0
assert stat.S_IMODE(os.stat(history).st_mode) == 0o600, oct(os.stat(history).st_mode)

# The next shell remembers, a statement of several lines as one.
shell = Terminal()
shell.wait(PROMPT)
shell.type(UP, r"ROLLBACK;$")
shell.type(UP * 2, r"goes on';$")
shell.type(ENTER, r"\| goes on +\|.*" + PROMPT)
lines = open(history).read()
assert "INSERT INTO terminal\\nVALUES" in lines and "never" not in lines, lines
assert shell.end() == 0
