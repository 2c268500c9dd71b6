/* Linked to SQLite's `testfixture`. Its files of tests delete test.db and begin anew all the time, and look at
** test.db-wal; a node's files are the node's. So a default VFS named "names" stands above, which does one thing: it
** tells SQLite what a name stands for. Every other method is that of the VFS beneath.
**
** Through Quire (QUIRE_EXTENSION and QUIRE_FIXTURE_DB, a node's directory db/): a name that isn't there becomes a link
** to a database of the node that has never been, NAME-wal one to its WAL. Deleting test.db deletes the link, so that
** the next open finds a new database. A file that is there, as where a test restores one that it has saved, is copied
** into a new database of the node by the backup API, with what its WAL or journal says.
**
** On plain files, if QUIRE_FIXTURE_WAL is set: a database that is created begins as one of a node does, empty and in
** WAL mode. With QUIRE_FIXTURE_VACUUM it begins, here and there, as one with auto_vacuum, which can't be set later. */
#include "sqlite3.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 1024 /* what testfixture is built for */

static sqlite3_vfs names, *beneath;
static const char *directory; /* db/ of a node, or null */
static int is_wal, is_vacuum;
static __thread int is_copying; /* the names that are opened meanwhile are real ones */

/* A database's path at the node that has never been; 0 if there is no room. */
static int new_target(char *out, size_t size) {
  static int count = 0;
  int n = snprintf(out, size, "%s/f%d-%d.db", directory, (int)getpid(), __sync_add_and_fetch(&count, 1));
  return n > 0 && (size_t)n < size;
}

static int is_replicated(const char *path) {
  return directory != 0 && strncmp(path, directory, strlen(directory)) == 0;
}

/* Has the node create a database with a page size, of which its VFS is told by a parameter of the URI. SQLite's
** allocator isn't asked: the tests count its calls. */
static int create_replicated(const char *name, int page_size) {
  size_t length = strlen(name) + 1;
  char *text = calloc(1, length + 64); /* four zeros stand before the name; no journal, no WAL after it */
  sqlite3_file *file = calloc(1, beneath->szOsFile);
  int code = SQLITE_NOMEM, flags = 0;
  if (text != 0 && file != 0) {
    memcpy(text + 4, name, length);
    strcpy(text + 4 + length, "page_size");
    snprintf(text + 4 + length + sizeof "page_size", 8, "%d", page_size);
    code = beneath->xOpen(beneath, text + 4, file, SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                          &flags);
    if (file->pMethods) {
      file->pMethods->xClose(file);
    }
  }
  free(text);
  free(file);
  return code;
}

/* An empty database in WAL mode: one page (see "The SQLite Database File Format", 1.3 and 1.6). */
static int create_plain(const char *name) {
  unsigned char page[PAGE] = "SQLite format 3";
  char wal[PATH_MAX + 8];
  int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0644);
  page[16] = PAGE >> 8, page[18] = page[19] = 2;
  page[21] = 64, page[22] = page[23] = 32;
  page[27] = page[31] = page[95] = 1; /* change counter, size in pages, version valid for */
  page[100] = 13;                     /* a leaf of a table, without cells */
  page[105] = PAGE >> 8;
  page[55] = (unsigned char)is_vacuum; /* the largest root page */
  if (fd < 0 || write(fd, page, sizeof page) != sizeof page || close(fd) != 0) {
    return SQLITE_CANTOPEN;
  }
  /* Of a database that has been; SQLite deletes it when it finds an empty file. */
  snprintf(wal, sizeof wal, "%s-wal", name);
  unlink(wal);
  return SQLITE_OK;
}

/* Copies a database by the backup API. Sources are in plain files. */
static int copy_database(const char *from, const char *to) {
  sqlite3 *source = 0, *target = 0;
  int code = sqlite3_open_v2(from, &source, SQLITE_OPEN_READWRITE, "unix");
  if (code == SQLITE_OK) {
    code = sqlite3_open_v2(to, &target, SQLITE_OPEN_READWRITE, beneath->zName);
  }
  if (code == SQLITE_OK) {
    sqlite3_backup *backup = sqlite3_backup_init(target, "main", source, "main");
    if (backup != 0) {
      sqlite3_backup_step(backup, -1);
      sqlite3_backup_finish(backup);
    }
    code = sqlite3_errcode(target);
  }
  sqlite3_close(source);
  sqlite3_close(target);
  return code;
}

/* A plain file becomes a database of the node, if it is one of SQLite's. */
static void import(const char *path) {
  unsigned char head[18] = {0};
  char target[PATH_MAX], other[PATH_MAX + 16];
  int fd = open(path, O_RDONLY), n = 0, page_size;
  if (fd >= 0) {
    n = (int)read(fd, head, sizeof head);
    close(fd);
  }
  page_size = head[16] << 8 | head[17];
  page_size = page_size == 1 ? 65536 : page_size;
  if (n < (int)sizeof head || memcmp(head, "SQLite format 3", 16) != 0 || !new_target(target, sizeof target)
      || create_replicated(target, page_size) != SQLITE_OK || copy_database(path, target) != SQLITE_OK) {
    return;
  }
  unlink(path);
  snprintf(other, sizeof other, "%s-wal", path);
  unlink(other);
  if (symlink(target, path) != 0) {
    perror(path);
  }
}

static int full_pathname(sqlite3_vfs *vfs, const char *name, int size, char *out) {
  int code = beneath->xFullPathname(beneath, name, size, out);
  char link[PATH_MAX + 8], wal[PATH_MAX + 8], target[PATH_MAX];
  struct stat there;
  (void)vfs;
  if ((code & 0xff) != SQLITE_OK || directory == 0 || is_copying) {
    return code;
  }
  if (code == SQLITE_OK && !is_replicated(out)) {
    int is_there = lstat(out, &there) == 0 || (is_vacuum && errno == ENOENT && create_plain(out) == SQLITE_OK);
    if (!is_there) {
      if (errno != ENOENT || !new_target(target, sizeof target) || symlink(target, out) != 0) {
        return code;
      }
    } else if (lstat(out, &there) == 0 && S_ISREG(there.st_mode) && there.st_size > 0) {
      is_copying = 1;
      import(out);
      is_copying = 0;
    }
    snprintf(link, sizeof link, "%s", out);
    code = beneath->xFullPathname(beneath, link, size, out);
  } else if (name[0] == '/') {
    snprintf(link, sizeof link, "%s", name);
  } else if (getcwd(wal, sizeof wal) == 0 || snprintf(link, sizeof link, "%s/%s", wal, name) >= PATH_MAX) {
    return code;
  }
  if (is_replicated(out)) {
    /* The host's VFS follows links, and says so. It is no news to the test that there is one. */
    code = SQLITE_OK;
    strncat(link, "-wal", sizeof link - strlen(link) - 1);
    snprintf(wal, sizeof wal, "%s-wal", out);
    if (symlink(wal, link) != 0 && errno != EEXIST) {
      perror(link);
    }
  }
  return code;
}

/* A file that is to be created is one of a node's, or plain. */
static int is_new(const char *name, int flags) {
  return name != 0 && (flags & SQLITE_OPEN_MAIN_DB) && (flags & SQLITE_OPEN_CREATE) && access(name, F_OK) != 0;
}

static int open_file(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out) {
  int code = SQLITE_OK;
  (void)vfs;
  file->pMethods = 0;
  if (is_new(name, flags)) {
    if (is_replicated(name)) {
      code = create_replicated(name, PAGE);
    } else if (directory == 0 && is_wal) {
      create_plain(name); /* where it can't be, SQLite can't open it either, and says so */
    }
  }
  return code == SQLITE_OK ? beneath->xOpen(beneath, name, file, flags, out) : code;
}

static void load(const char *extension) {
  char *error = 0;
  sqlite3 *loader = 0;
  if (sqlite3_open(":memory:", &loader) != SQLITE_OK
      || sqlite3_db_config(loader, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL) != SQLITE_OK
      || sqlite3_load_extension(loader, extension, "sqlite3_quiredefault_init", &error) != SQLITE_OK) {
    fprintf(stderr, "can't load %s: %s\n", extension, error ? error : sqlite3_errmsg(loader));
    exit(1);
  }
  sqlite3_close(loader);
}

/* SQLite's SQLITE_EXTRA_INIT: called at the end of each sqlite3_initialize(), which makes the host's VFS the default. */
int fixture_names(const char *unused) {
  (void)unused;
  if (beneath == 0) {
    const char *extension = getenv("QUIRE_EXTENSION");
    directory = extension ? getenv("QUIRE_FIXTURE_DB") : 0;
    is_vacuum = getenv("QUIRE_FIXTURE_VACUUM") != 0;
    is_wal = is_vacuum || getenv("QUIRE_FIXTURE_WAL") != 0;
    if (extension != 0) {
      load(extension);
    }
    beneath = sqlite3_vfs_find(0);
    names = *beneath;
    names.pNext = 0;
    names.zName = "names";
    names.xOpen = open_file;
    names.xFullPathname = full_pathname;
  }
  return sqlite3_vfs_register(&names, 1);
}
