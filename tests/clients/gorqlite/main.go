// gorqlite: a client for Go. It is given one node, and finds the others by itself.
package main

import (
	"bufio"
	"bytes"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/rqlite/gorqlite"
	_ "github.com/rqlite/gorqlite/stdlib"
)

func example(host string) ([]string, error) {
	db, err := gorqlite.Open("http://" + host + "/?level=linearizable&timeout=30")
	if err != nil {
		return nil, err
	}
	defer db.Close()
	if _, err := db.WriteOne("CREATE TABLE IF NOT EXISTS go_foo (id INTEGER PRIMARY KEY, name TEXT, age INTEGER)"); err != nil {
		return nil, err
	}
	insert := "INSERT INTO go_foo(name, age) VALUES(?, ?)"
	// One transaction, unless SetExecutionWithTransaction(false).
	_, err = db.WriteParameterized([]gorqlite.ParameterizedStatement{
		{Query: insert, Arguments: []any{"fiona", 20}},
		{Query: insert, Arguments: []any{"declan", 22}},
	})
	if err != nil {
		return nil, err
	}
	rows, err := db.QueryOneParameterized(gorqlite.ParameterizedStatement{
		Query:     "SELECT name FROM go_foo WHERE age > ?",
		Arguments: []any{20},
	})
	if err != nil {
		return nil, err
	}
	var names []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func expect(found, expected any) {
	if fmt.Sprint(found) != fmt.Sprint(expected) {
		panic(fmt.Sprintf("%v instead of %v", found, expected))
	}
}

func expectError(err error, said string) {
	if err == nil || !strings.Contains(err.Error(), said) {
		panic(fmt.Sprintf("%v instead of %q", err, said))
	}
}

func check(db *gorqlite.Connection, hosts []string) {
	leader, err := db.Leader()
	must(err)
	expect(leader, hosts[0])
	peers, err := db.Peers()
	must(err)
	expect(len(peers), len(hosts))
	fmt.Println("checked connect")

	_, err = db.WriteOne("CREATE TABLE go_types (i INTEGER, r REAL, t TEXT, b BLOB, n TEXT, o INTEGER, d DATETIME)")
	must(err)
	fmt.Println("checked ddl")

	names, err := example(hosts[0])
	must(err)
	expect(names, []string{"declan"})
	done, err := db.WriteOneParameterized(gorqlite.ParameterizedStatement{
		Query: "INSERT INTO go_foo(name) VALUES(:name)", Arguments: []any{map[string]any{"name": "ann"}},
	})
	must(err)
	expect([]int64{done.LastInsertID, done.RowsAffected}, []int64{3, 1})
	fmt.Println("checked parameters")

	// Its numbers are floats: integers beyond 53 bits have to be asked for as text, and BLOBs come as base64. The
	// parameter for one is an array of numbers; a []byte would become text.
	text := "it's 5 o'clock? € 😀"
	_, err = db.WriteOneParameterized(gorqlite.ParameterizedStatement{
		Query:     "INSERT INTO go_types VALUES(?, ?, ?, ?, ?, ?, '2026-11-25 12:00:00')",
		Arguments: []any{int64(1<<63 - 1), -1.5, text, []int{0, 128, 255}, nil, true},
	})
	must(err)
	row, err := db.QueryOne("SELECT CAST(i AS TEXT), r, t, b, n, o, d, typeof(i), typeof(b) FROM go_types")
	must(err)
	expect(row.Next(), true)
	var i int64
	var r float64
	var t, b, typeI, typeB string
	var n gorqlite.NullString
	var o bool
	var d gorqlite.NullTime
	must(row.Scan(&i, &r, &t, &b, &n, &o, &d, &typeI, &typeB))
	expect([]any{i, r, t, n.Valid, o, typeI, typeB}, []any{int64(1<<63 - 1), -1.5, text, false, true, "integer", "blob"})
	expect(d.Time.UTC().Format("2006-01-02 15:04:05"), "2026-11-25 12:00:00")
	blob, err := base64.StdEncoding.DecodeString(b)
	must(err)
	expect(bytes.Equal(blob, []byte{0, 128, 255}), true)
	fmt.Println("checked types")

	results, err := db.Write([]string{"INSERT INTO go_foo(id) VALUES(10)", "INSERT INTO go_foo(id) VALUES(1)"})
	expectError(err, "UNIQUE constraint failed: go_foo.id")
	expect(len(results), 2)
	mixed, err := db.Request([]string{"SELECT count(*) FROM go_foo", "DELETE FROM go_foo WHERE id = 3"})
	must(err)
	expect(mixed[0].Query.Next(), true)
	var count int64
	must(mixed[0].Query.Scan(&count))
	expect([]int64{count, mixed[1].Write.RowsAffected}, []int64{3, 1})
	sequence, err := db.QueueOne("INSERT INTO go_foo(name) VALUES('queued')")
	must(err)
	expect(sequence > 0, true)
	fmt.Println("checked transactions")

	_, err = db.WriteOne("INSERT INTO go_foo(id) VALUES(1)")
	var statement *gorqlite.StatementError
	expect(errors.As(err, &statement), true)
	expectError(err, "UNIQUE constraint failed: go_foo.id")
	_, err = db.QueryOne("SELECT * FROM go_none")
	expectError(err, "no such table: go_none")
	_, err = db.WriteOne("COMMIT")
	expectError(err, "transactions can't be begun or ended")
	// The driver for database/sql goes the same way; its transactions do nothing.
	std, err := sql.Open("rqlite", "http://"+hosts[0]+"/")
	must(err)
	must(std.QueryRow("SELECT count(*) FROM go_foo WHERE name = ?", "fiona").Scan(&count))
	expect(count, 1)
	must(std.Close())
	fmt.Println("checked errors")
}

// It asks one node after the other, and may write twice what broke off: hence OR IGNORE. An outcome that is unknown it
// leaves to the app.
func write(db *gorqlite.Connection, n int) error {
	deadline := time.Now().Add(time.Minute)
	for {
		_, err := db.WriteOne("CREATE TABLE IF NOT EXISTS go_t (n INTEGER PRIMARY KEY)")
		if err == nil {
			_, err = db.WriteOneParameterized(gorqlite.ParameterizedStatement{
				Query: "INSERT OR IGNORE INTO go_t VALUES(?)", Arguments: []any{n},
			})
		}
		if err == nil || !strings.Contains(err.Error(), "outcome unknown") || time.Now().After(deadline) {
			return err
		}
	}
}

func main() {
	hosts := os.Args[1:]
	db, err := gorqlite.Open("http://" + hosts[0] + "/?level=linearizable&timeout=30")
	must(err)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var first, last int
		switch words := strings.Fields(lines.Text()); words[0] {
		case "check":
			check(db, hosts)
		case "write":
			fmt.Sscan(words[1], &first)
			fmt.Sscan(words[2], &last)
			for n := first; n <= last; n++ {
				must(write(db, n))
				fmt.Println("wrote", n)
			}
		default:
			row, err := db.QueryOne("SELECT count(*), sum(n) FROM go_t")
			must(err)
			row.Next()
			must(row.Scan(&first, &last))
			fmt.Println("read", first, last)
		}
	}
}
