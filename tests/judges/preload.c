/* Linked to SQLite's own test programs, which can't load extensions: before main() they learn to take URIs, and the
** VFS of the extension that QUIRE_EXTENSION names, if it does. */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>

__attribute__((constructor)) static void quire_preload(void) {
  const char *extension = getenv("QUIRE_EXTENSION");
  char *error = 0;
  sqlite3 *loader = 0;
  sqlite3_config(SQLITE_CONFIG_URI, 1);
  if (extension == 0) {
    return;
  }
  if (sqlite3_open(":memory:", &loader) != SQLITE_OK
      || sqlite3_db_config(loader, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL) != SQLITE_OK
      || sqlite3_load_extension(loader, extension, NULL, &error) != SQLITE_OK) {
    fprintf(stderr, "can't load %s: %s\n", extension, error ? error : sqlite3_errmsg(loader));
    exit(1);
  }
  sqlite3_close(loader);
}
