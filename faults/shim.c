/* Stands between a process and the calls that change a file system: counts them, and at one of them kills the process,
 * lets it fail, tears it or takes the directory away. Records them for what a loss of power may leave. For Linux with
 * glibc or musl; loaded by LD_PRELOAD, set up through the functions at the end, which faults/shim.py calls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN, WRITE, TRUNCATE, ALLOCATE, SYNC, RENAME, LINK, UNLINK, MKDIR, RMDIR, CHMOD, CLOSE };
enum { NOTHING, KILL, TEAR, ONCE, ALWAYS, SHORT, VANISH, DELAY };
enum { PASS, FAIL, HALF };

static char watched[PATH_MAX];
static unsigned kinds;
static long calls, at, fired;
static int action, number, delay, no_exchange, trace = -1;
static long long room = -1, clock_offset;
static ino_t lower[256]; /* directories that cannot be renamed, as those of a lower layer of overlayfs */
static int lowers;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int inside(const char *path) {
    size_t length = strlen(watched);
    return length && !strncmp(path, watched, length) && (path[length] == '/' || !path[length]);
}

static int of_fd(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    out[length < 0 ? 0 : length] = 0;
    return inside(out);
}

static int of_path(int folder, const char *path, char *out) {
    if (!*watched || !path) return 0;
    if (*path == '/') {
        snprintf(out, PATH_MAX, "%s", path);
    } else {
        char above[PATH_MAX];
        if (folder == AT_FDCWD) {
            if (!getcwd(above, sizeof above)) return 0;
        } else {
            of_fd(folder, above);
        }
        if (snprintf(out, PATH_MAX, "%s/%s", above, path) >= PATH_MAX) return 0;
    }
    return inside(out);
}

static int renamed(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    return real(from, to);
}

/* What becomes of a call that changes the directory; the caller holds the mutex. */
static int gate(int kind) {
    if (!(kinds >> kind & 1)) return PASS;
    long now = ++calls;
    if (now != at && !(now > at && (action == ALWAYS || action == SHORT)) && action != DELAY) return PASS;
    if (action == NOTHING) return PASS;
    fired = 1;
    char gone[PATH_MAX + 8];
    if (action == KILL) die();
    if (action == TEAR || (action == SHORT && now == at && kind == WRITE)) return HALF; /* the next call says why */
    if (action == VANISH) {
        snprintf(gone, sizeof gone, "%s.gone", watched);
        renamed(watched, gone);
        return PASS;
    }
    if (action == DELAY) {
        pthread_mutex_unlock(&mutex);
        usleep(delay);
        pthread_mutex_lock(&mutex);
        return PASS;
    }
    errno = number;
    return FAIL;
}

static void put(const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    for (const char *p = data; size;) {
        ssize_t done = real(trace, p, size);
        if (done <= 0) abort();
        p += done, size -= done;
    }
}

static void note(int kind, int flags, long long offset, const char *path, const char *other, const void *data,
                 size_t size) {
    if (trace < 0) return;
    struct { uint32_t kind, flags; int64_t offset; uint64_t size; uint32_t path, other; } head = {
        kind, flags, offset, size, strlen(path), other ? strlen(other) : 0};
    put(&head, sizeof head);
    put(path, head.path);
    if (other) put(other, head.other);
    put(data, size);
}

/* A call of the kind: refused, or carried out and noted; torn ones end the process after it. */
#define CALL(kind, expression, ...) \
    do { \
        pthread_mutex_lock(&mutex); \
        int way = gate(kind); \
        if (way == FAIL) { \
            int why = errno; \
            pthread_mutex_unlock(&mutex); \
            errno = why; \
            return -1; \
        } \
        __typeof__(expression) got = (expression); \
        int why = errno; \
        if (got >= 0) note(kind, __VA_ARGS__); \
        if (way == HALF) die(); \
        pthread_mutex_unlock(&mutex); \
        errno = why; \
        return got; \
    } while (0)

/* open */

#define OPENS(name, at_folder) \
    char path[PATH_MAX]; \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    } \
    int changes = flags & O_TRUNC || (flags & O_CREAT && of_path(at_folder, file, path) && \
                                      faccessat(at_folder, file, F_OK, 0) != 0)
#define OPENED(expression) \
    if (!changes || !of_path(folder, file, path)) return expression; \
    CALL(OPEN, expression, flags & O_TRUNC, 0, path, NULL, NULL, 0)

int open(const char *file, int flags, ...) {
    REAL(open);
    int folder = AT_FDCWD;
    OPENS(open, AT_FDCWD);
    OPENED(real(file, flags, mode));
}

int open64(const char *file, int flags, ...) {
    REAL(open64);
    int folder = AT_FDCWD;
    OPENS(open64, AT_FDCWD);
    OPENED(real(file, flags, mode));
}

int openat(int folder, const char *file, int flags, ...) {
    REAL(openat);
    OPENS(openat, folder);
    OPENED(real(folder, file, flags, mode));
}

int openat64(int folder, const char *file, int flags, ...) {
    REAL(openat64);
    OPENS(openat64, folder);
    OPENED(real(folder, file, flags, mode));
}

/* bytes */

static ssize_t written(int fd, const struct iovec *parts, int count, long long offset) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    static ssize_t (*plain)(int, const void *, size_t);
    if (!real) real = (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
    if (!plain) plain = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    const void *data = parts[0].iov_base;
    size_t size = parts[0].iov_len;
    char *joined = NULL;
    if (count > 1) {
        size = 0;
        for (int i = 0; i < count; i++) size += parts[i].iov_len;
        char *p = joined = malloc(size + 1);
        for (int i = 0; i < count; p += parts[i].iov_len, i++) memcpy(p, parts[i].iov_base, parts[i].iov_len);
        data = joined;
    }
    char path[PATH_MAX];
    ssize_t done;
    if (!*watched || !of_fd(fd, path)) {
        done = offset < 0 ? plain(fd, data, size) : real(fd, data, size, offset);
        free(joined);
        return done;
    }
    pthread_mutex_lock(&mutex);
    int way = gate(WRITE);
    long long place = offset < 0 ? lseek(fd, 0, SEEK_CUR) : offset;
    if (way == FAIL) {
        done = -1;
    } else {
        if (way == HALF) size = (size + 1) / 2;
        done = offset < 0 ? plain(fd, data, size) : real(fd, data, size, offset);
        if (done > 0) note(WRITE, 0, place, path, NULL, data, done);
        if (way == HALF && action == TEAR) die();
    }
    int why = errno;
    pthread_mutex_unlock(&mutex);
    free(joined);
    errno = why;
    return done;
}

ssize_t write(int fd, const void *data, size_t size) {
    return written(fd, &(struct iovec){(void *)data, size}, 1, -1);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    return written(fd, &(struct iovec){(void *)data, size}, 1, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    return written(fd, &(struct iovec){(void *)data, size}, 1, offset);
}
ssize_t writev(int fd, const struct iovec *parts, int count) { return written(fd, parts, count, -1); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return written(fd, parts, count, offset);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    return written(fd, parts, count, offset);
}

/* From file to file: carried out by reading and writing, so that what was written is known. */
static ssize_t moved(int from, off64_t *start, int to, off64_t *place, size_t size) {
    char data[1 << 16];
    size = size < sizeof data ? size : sizeof data;
    ssize_t got = start ? pread64(from, data, size, *start) : read(from, data, size);
    if (got <= 0) return got;
    ssize_t done = place ? pwrite64(to, data, got, *place) : write(to, data, got);
    if (done < 0) done = 0;
    if (start) *start += done;
    else lseek(from, done - got, SEEK_CUR);
    if (place) *place += done;
    return done ? done : -1;
}

ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *place, size_t size, unsigned flags) {
    REAL(copy_file_range);
    char path[PATH_MAX];
    return *watched && of_fd(to, path) ? moved(from, start, to, place, size) : real(from, start, to, place, size, flags);
}
ssize_t sendfile(int to, int from, off_t *start, size_t size) {
    REAL(sendfile);
    char path[PATH_MAX];
    return *watched && of_fd(to, path) ? moved(from, (off64_t *)start, to, NULL, size) : real(to, from, start, size);
}
ssize_t sendfile64(int to, int from, off64_t *start, size_t size) {
    REAL(sendfile64);
    char path[PATH_MAX];
    return *watched && of_fd(to, path) ? moved(from, start, to, NULL, size) : real(to, from, start, size);
}

/* what takes a descriptor */

#define BY_FD(kind, expression, flags, offset) \
    char path[PATH_MAX]; \
    if (!*watched || !of_fd(fd, path)) return expression; \
    CALL(kind, expression, flags, offset, path, NULL, NULL, 0)

int ftruncate(int fd, off_t size) { REAL(ftruncate); BY_FD(TRUNCATE, real(fd, size), 0, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); BY_FD(TRUNCATE, real(fd, size), 0, size); }
int fallocate(int fd, int mode, off_t from, off_t size) {
    REAL(fallocate);
    BY_FD(ALLOCATE, real(fd, mode, from, size), mode, from + size);
}
int fsync(int fd) { REAL(fsync); BY_FD(SYNC, real(fd), 0, 0); }
int fdatasync(int fd) { REAL(fdatasync); BY_FD(SYNC, real(fd), 0, 0); }
int fchmod(int fd, mode_t mode) { REAL(fchmod); BY_FD(CHMOD, real(fd, mode), mode, 0); }

int close(int fd) {
    REAL(close);
    char path[PATH_MAX];
    struct stat found;
    if (!*watched || (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY || !of_fd(fd, path) || fstat(fd, &found) ||
        !S_ISREG(found.st_mode))
        return real(fd);
    pthread_mutex_lock(&mutex);
    int way = gate(CLOSE), why = errno, got = real(fd);
    if (way == HALF) die();
    pthread_mutex_unlock(&mutex);
    errno = way == FAIL ? why : errno;
    return way == FAIL ? -1 : got; /* Linux closes it even so */
}

/* what takes names */

#define BY_NAME(kind, folder, file, flags, expression) \
    char path[PATH_MAX]; \
    if (!of_path(folder, file, path)) return expression; \
    CALL(kind, expression, flags, 0, path, NULL, NULL, 0)
#define BY_NAMES(kind, folder, file, beside, name, flags, expression) \
    char path[PATH_MAX], other[PATH_MAX]; \
    if (!of_path(folder, file, path) || !of_path(beside, name, other)) return expression; \
    CALL(kind, expression, flags, 0, path, other, NULL, 0)

int unlink(const char *file) { REAL(unlink); BY_NAME(UNLINK, AT_FDCWD, file, 0, real(file)); }
int rmdir(const char *file) { REAL(rmdir); BY_NAME(RMDIR, AT_FDCWD, file, 0, real(file)); }
int unlinkat(int folder, const char *file, int flags) {
    REAL(unlinkat);
    BY_NAME(flags & AT_REMOVEDIR ? RMDIR : UNLINK, folder, file, 0, real(folder, file, flags));
}
int mkdir(const char *file, mode_t mode) { REAL(mkdir); BY_NAME(MKDIR, AT_FDCWD, file, 0, real(file, mode)); }
int mkdirat(int folder, const char *file, mode_t mode) {
    REAL(mkdirat);
    BY_NAME(MKDIR, folder, file, 0, real(folder, file, mode));
}
int chmod(const char *file, mode_t mode) { REAL(chmod); BY_NAME(CHMOD, AT_FDCWD, file, mode, real(file, mode)); }
static int is_lower(int folder, const char *file) {
    struct stat found;
    if (!lowers || fstatat(folder, file, &found, AT_SYMLINK_NOFOLLOW) || !S_ISDIR(found.st_mode)) return 0;
    for (int i = 0; i < lowers; i++)
        if (lower[i] == found.st_ino) return 1;
    return 0;
}
#define REFUSE_LOWER(yes) \
    if (yes) { \
        errno = EXDEV; \
        return -1; \
    }

int rename(const char *file, const char *name) {
    REAL(rename);
    REFUSE_LOWER(is_lower(AT_FDCWD, file));
    BY_NAMES(RENAME, AT_FDCWD, file, AT_FDCWD, name, 0, real(file, name));
}
int renameat(int folder, const char *file, int beside, const char *name) {
    REAL(renameat);
    REFUSE_LOWER(is_lower(folder, file));
    BY_NAMES(RENAME, folder, file, beside, name, 0, real(folder, file, beside, name));
}
int renameat2(int folder, const char *file, int beside, const char *name, unsigned flags) {
    REAL(renameat2);
    if (flags && no_exchange) {
        errno = EINVAL;
        return -1;
    }
    REFUSE_LOWER(is_lower(folder, file) || (flags && is_lower(beside, name)));
    BY_NAMES(RENAME, folder, file, beside, name, flags, real(folder, file, beside, name, flags));
}
int link(const char *file, const char *name) {
    REAL(link);
    BY_NAMES(LINK, AT_FDCWD, file, AT_FDCWD, name, 0, real(file, name));
}

/* what a process asks of the system */

static int asked(int got, struct statvfs *found) {
    if (!got && room >= 0) found->f_bavail = found->f_bfree = room / found->f_frsize;
    return got;
}
int statvfs(const char *path, struct statvfs *found) { REAL(statvfs); return asked(real(path, found), found); }
int fstatvfs(int fd, struct statvfs *found) { REAL(fstatvfs); return asked(real(fd, found), found); }
int statvfs64(const char *path, struct statvfs64 *found) {
    REAL(statvfs64);
    return asked(real(path, found), (struct statvfs *)found);
}
int fstatvfs64(int fd, struct statvfs64 *found) {
    REAL(fstatvfs64);
    return asked(real(fd, found), (struct statvfs *)found);
}
int clock_gettime(clockid_t id, struct timespec *now) {
    REAL(clock_gettime);
    int got = real(id, now);
    if (!got && id == CLOCK_REALTIME) now->tv_sec += clock_offset;
    return got;
}

/* set up by faults/shim.py */

void faults_arm(const char *directory, unsigned mask, long n, int what, int error) {
    calls = fired = 0;
    kinds = mask, at = n, action = what, number = error;
    snprintf(watched, sizeof watched, "%s", directory);
}
long faults_calls(void) { return calls; }
int faults_fired(void) { return fired; }
void faults_trace(int fd) { trace = fd; }
void faults_delay(int microseconds) { delay = microseconds; }
void faults_room(long long bytes) { room = bytes; }
void faults_clock(long long seconds) { clock_offset = seconds; }
void faults_no_exchange(int yes) { no_exchange = yes; }
void faults_lower(const char *directory) {
    struct stat found;
    if (lowers < (int)(sizeof lower / sizeof *lower) && !lstat(directory, &found)) lower[lowers++] = found.st_ino;
}
