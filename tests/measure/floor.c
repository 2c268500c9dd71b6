// What a quorum commit costs at least on a machine: an app asks a leader over a unix socket; the leader syncs 8 KiB to a
// preallocated file on one thread while two followers, each a process of its own on loopback UDP, do the same; one
// follower's answer and the leader's own sync make the commit. No SQLite, no Raft, no encryption. Beside it, one
// process that writes and syncs alone, as plain SQLite must at least.
//
//     cc -O2 -pthread -o floor tests/measure/floor.c && ./floor DIR
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ENTRY = 8300, FILE_MIB = 32, COUNT = 4000, PORT = 39100 };

struct log {
    int file, wanted, done;
    off_t end;
};

static const char *dir;

static void need(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void append(struct log *log) {
    static const char entry[ENTRY] = {7};
    need(pwrite(log->file, entry, ENTRY, log->end) == ENTRY, "pwrite");
    need(fdatasync(log->file) == 0, "fdatasync");
    log->end += ENTRY;
    if (log->end > (FILE_MIB - 1) << 20) log->end = 0;
}

static void *writer(void *arg) {
    struct log *log = arg;
    uint64_t count;
    for (;;) {
        need(read(log->wanted, &count, 8) == 8, "read");
        append(log);
        count = 1;
        need(write(log->done, &count, 8) == 8, "write");
    }
    return NULL;
}

static struct log *create(int id) {
    struct log *log = calloc(1, sizeof *log);
    char path[4096], *zeros = calloc(1, 1 << 20);
    snprintf(path, sizeof path, "%s/floor-%d", dir, id);
    log->file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    need(log->file >= 0, path);
    for (int i = 0; i < FILE_MIB; i++) need(pwrite(log->file, zeros, 1 << 20, (off_t)i << 20) == 1 << 20, "pwrite");
    need(fsync(log->file) == 0 && unlink(path) == 0, path);
    free(zeros);
    return log;
}

static struct log *start(int id) {
    struct log *log = create(id);
    pthread_t thread;
    log->wanted = eventfd(0, 0);
    log->done = eventfd(0, 0);
    need(pthread_create(&thread, NULL, writer, log) == 0, "pthread_create");
    return log;
}

static struct sockaddr_in address(int id) {
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(PORT + id), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int bound(int id) {
    struct sockaddr_in a = address(id);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    need(bind(fd, (void *)&a, sizeof a) == 0, "bind");
    return fd;
}

static void tell(int fd, int id, const void *data, size_t len) {
    struct sockaddr_in a = address(id);
    need(sendto(fd, data, len, 0, (void *)&a, sizeof a) == (ssize_t)len, "sendto");
}

static void follow(int id) {
    struct log *log = start(id);
    char entry[ENTRY];
    uint64_t count;
    for (int fd = bound(id);;) {
        need(recv(fd, entry, ENTRY, 0) > 0, "recv");
        count = 1;
        need(write(log->wanted, &count, 8) == 8 && read(log->done, &count, 8) == 8, "sync");
        tell(fd, 0, entry, 64);
    }
}

static void lead(int app) {
    struct log *log = start(0);
    char entry[ENTRY];
    uint64_t count;
    int late = 0; // Answers to earlier entries, which nobody waited for.
    for (int fd = bound(0);;) {
        for (int have = 0; have < ENTRY;) {
            int n = read(app, entry + have, ENTRY - have);
            if (n <= 0) exit(0);
            have += n;
        }
        count = 1;
        need(write(log->wanted, &count, 8) == 8, "write");
        tell(fd, 1, entry, ENTRY);
        tell(fd, 2, entry, ENTRY);
        int own = 0, others = 0;
        while (!own || !others) {
            struct pollfd fds[2] = {{log->done, POLLIN, 0}, {fd, POLLIN, 0}};
            need(poll(fds, 2, -1) > 0, "poll");
            if (fds[0].revents) own = read(log->done, &count, 8) == 8;
            if (fds[1].revents) {
                need(recv(fd, entry, ENTRY, 0) > 0, "recv");
                if (late) late--;
                else others++;
            }
        }
        late += 2 - others;
        need(write(app, "", 1) == 1, "write");
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double report(const char *what, double *took, double all) {
    qsort(took, COUNT, sizeof *took, by_value);
    printf("%-16s %6.0f/s  p50 %4.0f us  p99 %4.0f us\n", what, COUNT / all * 1e6, took[COUNT / 2], took[COUNT / 100 * 99]);
    return COUNT / all;
}

int main(int argc, char **argv) {
    static double took[COUNT];
    static char entry[ENTRY];
    int sockets[2];
    pid_t children[3];
    if (argc != 2) return fprintf(stderr, "usage: floor DIR\n"), 2;
    dir = argv[1];
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0, "socketpair");
    for (int id = 0; id < 3; id++) {
        if ((children[id] = fork()) == 0) {
            close(sockets[0]);
            id ? follow(id) : lead(sockets[1]);
        }
    }
    close(sockets[1]);
    struct log *alone = create(3);
    sleep(2); // The others create their files.
    double began = now();
    for (int i = 0; i < COUNT; i++) {
        double from = now();
        need(write(sockets[0], entry, ENTRY) == ENTRY && read(sockets[0], entry, 1) == 1, "commit");
        took[i] = now() - from;
    }
    double quorum = report("quorum of three", took, now() - began);
    began = now();
    for (int i = 0; i < COUNT; i++) {
        double from = now();
        append(alone);
        took[i] = now() - from;
    }
    double single = report("alone", took, now() - began);
    printf("ratio %.2f\n", quorum / single);
    for (int id = 0; id < 3; id++) kill(children[id], SIGKILL);
    return 0;
}
