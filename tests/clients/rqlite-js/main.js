// rqlite-js: a client for Node and browsers, with a list of hosts and retries of its own.

const assert = require('node:assert/strict')
const readline = require('node:readline')
const { DataApiClient } = require('rqlite-js')

const hosts = process.argv.slice(2).map((host) => `http://${host}`)

async function example(hosts) {
  const client = new DataApiClient(hosts)
  const created = await client.execute('CREATE TABLE IF NOT EXISTS js_foo (id INTEGER PRIMARY KEY, name TEXT, age INTEGER)')
  if (created.hasError()) throw created.getFirstError()
  const insert = 'INSERT INTO js_foo(name, age) VALUES(?, ?)'
  // All or nothing.
  const done = await client.execute([[insert, 'fiona', 20], [insert, 'declan', 22]], { transaction: true })
  if (done.hasError()) throw done.getFirstError()
  const rows = await client.query([['SELECT name FROM js_foo WHERE age > ?', 20]], { level: 'linearizable' })
  return rows.toArray()
}

const client = new DataApiClient(hosts)

async function execute(sql, options) {
  const results = await client.execute(sql, options)
  if (results.hasError()) throw results.getFirstError()
  return results
}

async function query(sql, options) {
  const results = await client.query(sql, options)
  if (results.hasError()) throw results.getFirstError()
  return results
}

async function* check() {
  assert.deepEqual((await query('SELECT 1 AS one')).toArray(), [{ one: 1 }])
  yield 'connect'
  await execute('CREATE TABLE js_types (i INTEGER, r REAL, t TEXT, b BLOB, n TEXT, o BOOLEAN)')
  const columns = await query("SELECT name FROM pragma_table_info('js_types')", { level: 'none' })
  assert.equal(columns.toArray().map((row) => row.name).join(''), 'irtbno')
  yield 'ddl'
  assert.deepEqual(await example(hosts), [{ name: 'declan' }])
  const named = await execute([['INSERT INTO js_foo(name, age) VALUES(:name, :age)', { name: 'ann', age: 25 }]])
  assert.deepEqual([named.get(0).getLastInsertId(), named.get(0).getRowsAffected()], [3, 1])
  yield 'parameters'
  // JavaScript's numbers hold 53 bits: larger ones have to be asked for as text.
  const values = [2 ** 53 - 1, -1.5, "it's 5 o'clock? \u20ac \u{1f600}", [0, 128, 255], null, true]
  await execute([['INSERT INTO js_types VALUES(?, ?, ?, ?, ?, ?)', ...values]])
  const [row] = (await query('SELECT * FROM js_types')).toArray()
  assert.deepEqual(Object.values(row), [...values.slice(0, 3), 'AID/', null, true])
  await execute("INSERT INTO js_types(i, t) VALUES(9223372036854775807, 'big')")
  const big = await query("SELECT CAST(i AS TEXT) AS i FROM js_types WHERE t = 'big'")
  assert.equal(BigInt(big.get(0).get('i')), 2n ** 63n - 1n)
  yield 'types'
  const both = ["INSERT INTO js_foo(id, name) VALUES(10, 'new')", "INSERT INTO js_foo(id, name) VALUES(1, 'taken')"]
  const failed = await client.execute(both, { transaction: true })
  assert.match(String(failed.getFirstError()), /UNIQUE constraint failed: js_foo.id/)
  assert.equal((await query('SELECT count(*) AS n FROM js_foo')).get(0).get('n'), 3)
  yield 'transactions'
  for (const [sql, said] of [
    ['INSERT INTO js_foo(id) VALUES(1)', /UNIQUE constraint failed: js_foo.id/],
    ['INSERT INTO js_none VALUES(1)', /no such table: js_none/],
    ['nonsense', /syntax error/],
    ['SAVEPOINT s', /transactions can't be begun or ended/],
  ]) {
    await assert.rejects(execute(sql), (why) => said.test(String(why)), sql)
  }
  await assert.rejects(query('DELETE FROM js_foo'), (why) => /attempt to change database/.test(String(why)))
  yield 'errors'
}

async function write(n) {
  // It goes on to the next host by itself, and may write twice what broke off: hence OR IGNORE. An outcome that is
  // unknown it leaves to the app.
  const deadline = Date.now() + 60_000
  for (;;) {
    try {
      await execute('CREATE TABLE IF NOT EXISTS js_t (n INTEGER PRIMARY KEY)')
      await execute([['INSERT OR IGNORE INTO js_t VALUES(?)', n]])
      return
    } catch (why) {
      if (!/outcome unknown/.test(String(why)) || Date.now() > deadline) throw why
    }
  }
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [what, first, last] = line.split(' ')
    if (what === 'check') {
      for await (const name of check()) console.log(`checked ${name}`)
    } else if (what === 'write') {
      for (let n = Number(first); n <= Number(last); n++) {
        await write(n)
        console.log(`wrote ${n}`)
      }
    } else {
      const row = (await query('SELECT count(*) AS n, sum(n) AS s FROM js_t', { level: 'linearizable' })).get(0)
      console.log(`read ${row.get('n')} ${row.get('s')}`)
    }
  }
}

main().catch((why) => {
  console.error(why)
  process.exit(1)
})
