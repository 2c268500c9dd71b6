// Go's mattn/go-sqlite3. A driver with the extension loads it into each connection that it opens, which is too late
// for that connection itself: one in memory comes first.
package main

import (
	"bufio"
	"database/sql"
	"fmt"
	"os"
	"time"

	"github.com/mattn/go-sqlite3"
)

func connect(node, parameters string) (*sql.DB, error) {
	return sql.Open("sqlite3", "file:"+node+"?vfs=quire&_busy_timeout=300&_txlock=immediate"+parameters)
}

func write(db *sql.DB, n int) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.Exec("CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, who TEXT)"); err != nil {
		return err
	}
	if _, err := tx.Exec("INSERT OR IGNORE INTO t VALUES (?, 'go')", n); err != nil {
		return err
	}
	return tx.Commit()
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	extension, nodes := os.Args[1], os.Args[2:]
	sql.Register("loader", &sqlite3.SQLiteDriver{Extensions: []string{extension}})
	loader, err := sql.Open("loader", ":memory:")
	check(err)
	check(loader.Ping())

	var open []*sql.DB
	for _, node := range nodes {
		db, err := connect(node, "")
		check(err)
		// A connection of the pool that fails is not closed by it.
		db.SetMaxIdleConns(0)
		open = append(open, db)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var first, last int
		if _, err := fmt.Sscanf(lines.Text(), "write %d %d", &first, &last); err == nil {
			for n := first; n <= last; n++ {
				at := n % len(nodes)
				deadline := time.Now().Add(time.Minute)
				for err := write(open[at], n); err != nil; err = write(open[at], n) {
					if time.Now().After(deadline) {
						check(err)
					}
					at = (at + 1) % len(nodes)
					time.Sleep(50 * time.Millisecond)
				}
				fmt.Println("wrote", n)
			}
			continue
		}
		for i, node := range nodes {
			db, err := connect(node, "&reads=linearizable")
			check(err)
			var count, sum int
			check(db.QueryRow("SELECT count(*), sum(n) FROM t").Scan(&count, &sum))
			fmt.Println("node", i, count, sum)
		}
		fmt.Println("done")
	}
}
