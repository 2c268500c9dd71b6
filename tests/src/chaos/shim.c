/* Preloaded into `quire node` by the chaos tests, and only there: shifts the wall clock, and makes writes under
 * the node's data directory slow or fail, as a control file says (see disk.rs for its layout). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    int64_t clock_offset_ns;
    uint32_t sync_delay_us;
    uint32_t write_delay_us;
    int32_t error;     /* errno of what fails */
    int32_t remaining; /* how many more fail; -1: all */
    uint64_t injected; /* how many have failed */
};

static volatile struct control *control;
static const char *directory;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("QUIRE_CHAOS_CONTROL");
    directory = getenv("QUIRE_CHAOS_DIR");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0 || !directory) return;
    void *map = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED) control = map;
    close(fd);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define NEXT(name) \
    static __typeof__(&name) real; \
    if (!real) real = REAL(name)

/* Whether a descriptor is of a file in the data directory. */
static int ours(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 0) return 0;
    path[len] = 0;
    size_t prefix = strlen(directory);
    return strncmp(path, directory, prefix) == 0 && path[prefix] == '/';
}

static void rest(uint32_t us) {
    struct timespec time = {us / 1000000, (long)(us % 1000000) * 1000};
    if (us) nanosleep(&time, NULL);
}

/* Whether this operation is to fail; errno says how. */
static int fails(int fd, int sync) {
    if (!control) return 0;
    uint32_t delay = sync ? control->sync_delay_us : control->write_delay_us;
    if (!delay && !control->error) return 0;
    int saved = errno;
    int is_ours = ours(fd);
    errno = saved;
    if (!is_ours) return 0;
    rest(delay);
    int error = control->error;
    /* A sync doesn't fail for want of room. */
    if (!error || (sync && error == ENOSPC)) return 0;
    int32_t left = control->remaining;
    do {
        if (left == 0) return 0;
    } while (left > 0 && !__atomic_compare_exchange_n(&control->remaining, &left, left - 1, 0, __ATOMIC_SEQ_CST,
                                                      __ATOMIC_SEQ_CST));
    __atomic_add_fetch(&control->injected, 1, __ATOMIC_SEQ_CST);
    errno = error;
    return 1;
}

/* With ENOSPC overwriting fails as well, as it does on file systems that never write in place. */
#define WRAP(type, name, params, args) \
    type name params { \
        NEXT(name); \
        if (fails(fd, 0)) return -1; \
        return real args; \
    }

WRAP(ssize_t, write, (int fd, const void *data, size_t len), (fd, data, len))
WRAP(ssize_t, pwrite, (int fd, const void *data, size_t len, off_t at), (fd, data, len, at))
WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t len, off64_t at), (fd, data, len, at))
WRAP(ssize_t, writev, (int fd, const struct iovec *data, int count), (fd, data, count))
WRAP(ssize_t, pwritev, (int fd, const struct iovec *data, int count, off_t at), (fd, data, count, at))
WRAP(ssize_t, pwritev64, (int fd, const struct iovec *data, int count, off64_t at), (fd, data, count, at))
WRAP(int, fallocate, (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))
WRAP(int, fallocate64, (int fd, int mode, off64_t at, off64_t len), (fd, mode, at, len))

int fsync(int fd) {
    NEXT(fsync);
    return fails(fd, 1) ? -1 : real(fd);
}

int fdatasync(int fd) {
    NEXT(fdatasync);
    return fails(fd, 1) ? -1 : real(fd);
}

int posix_fallocate(int fd, off_t at, off_t len) {
    NEXT(posix_fallocate);
    return fails(fd, 0) ? errno : real(fd, at, len);
}

int posix_fallocate64(int fd, off64_t at, off64_t len) {
    NEXT(posix_fallocate64);
    return fails(fd, 0) ? errno : real(fd, at, len);
}

static int64_t offset(void) { return control ? control->clock_offset_ns : 0; }

int clock_gettime(clockid_t clock, struct timespec *time) {
    NEXT(clock_gettime);
    int result = real(clock, time);
    if (result == 0 && clock == CLOCK_REALTIME && offset()) {
        int64_t ns = time->tv_nsec + offset() % 1000000000;
        time->tv_sec += offset() / 1000000000 + (ns < 0 ? -1 : ns / 1000000000);
        time->tv_nsec = ns < 0 ? ns + 1000000000 : ns % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
