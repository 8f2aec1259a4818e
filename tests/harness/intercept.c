/* File operations below one folder: counted, recorded, and made to fail once or for good.
 *
 * Loaded before the C library (LD_PRELOAD), it stands between a process and every file function that Python and SQLite
 * call. `intercept_arm` names the folder and the fault; `intercept_disarm` ends both. A record, for tests of lost
 * power, is six 64-bit integers (operation, three numbers, two lengths) and two byte strings.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))find(#name, (void *)name))
enum { LOOK = 1, OPEN = 2, LIST = 4, READ = 8, WRITE = 16, MAKE = 32, NAME = 64, SYNC = 128, CLOSE = 256 };
enum { ONCE = 1, FOR_GOOD = 2, SHORT = 3, KILL = 4 };
enum { HANDLES = 4096 };

static char root[4096];
static size_t root_length;
static int armed, kinds, manner, number, record = -1;
static long wanted, passed;
static char struck[600];
static unsigned char inside[HANDLES]; /* 1 for a handle below the folder, 2 for one that is written */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *find(const char *name, void *own) {
    void *found = dlsym(RTLD_NEXT, name);
    return found ? found : own;
}

/* Count calls of these kinds from now on; let the call `at` (from 1; 0: none) fail with `error`, end short or kill. */
void intercept_arm(const char *folder, int which, int how, int error, long at, const char *log) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    kinds = which, manner = how, number = error, wanted = at, passed = 0, struck[0] = 0;
    memset(inside, 0, sizeof inside);
    if (log && *log) record = REAL(open)(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    armed = 1;
}

/* Stop, and return the number of calls counted. */
long intercept_disarm(void) {
    armed = 0;
    return passed;
}

/* Return a description of the call that failed first. */
const char *intercept_struck(void) { return struck; }

static int below(int folder, const char *path) {
    if (!armed || !path) return 0;
    if (path[0] == '/') return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
    return folder == AT_FDCWD || (folder >= 0 && folder < HANDLES && inside[folder]);
}

static int held(int handle) { return armed && handle >= 0 && handle < HANDLES && inside[handle]; }

/* Return 0 for a call that passes, -1 for one that ends short, else its errno. */
static int strike(int kind, const char *call, const char *path) {
    if (!(kind & kinds)) return 0;
    pthread_mutex_lock(&lock);
    long here = ++passed;
    int hit = wanted && (here == wanted || (here > wanted && manner == FOR_GOOD));
    if (hit && !struck[0]) snprintf(struck, sizeof struck, "%s %s", call, path ? path : "");
    pthread_mutex_unlock(&lock);
    if (!hit) return 0;
    if (manner == KILL) kill(getpid(), SIGKILL);
    return manner == SHORT ? -1 : number;
}

static void note(int operation, int64_t a, int64_t b, int64_t c, const void *one, int64_t n, const void *two, int64_t m) {
    if (record < 0) return;
    int saved = errno;
    int64_t head[6] = {operation, a, b, c, n, m};
    pthread_mutex_lock(&lock);
    if (REAL(write)(record, head, sizeof head) < 0 || (n && REAL(write)(record, one, n) < 0) ||
        (m && REAL(write)(record, two, m) < 0))
        _exit(99);
    pthread_mutex_unlock(&lock);
    errno = saved;
}

#define FAIL_IF(kind, call, path)                  \
    do {                                           \
        int failure = strike(kind, call, path);    \
        if (failure > 0) return errno = failure, -1; \
    } while (0)

static int opened(int handle, int folder, const char *path, int flags) {
    if (handle >= 0 && handle < HANDLES) {
        inside[handle] = (flags & O_ACCMODE) == O_RDONLY ? 1 : 2;
        note('O', handle, folder, flags, path, strlen(path), 0, 0);
    }
    return handle;
}

static int open_below(int folder, const char *path, int flags, int mode) {
    if (!below(folder, path)) return REAL(openat)(folder, path, flags, mode);
    FAIL_IF((flags & (O_CREAT | O_TRUNC)) ? OPEN | MAKE : OPEN, "open", path);
    return opened(REAL(openat)(folder, path, flags, mode), folder, path, flags);
}

#define OPENER(name, folder, ...)                                      \
    int name(__VA_ARGS__, const char *path, int flags, ...) {          \
        va_list rest;                                                  \
        va_start(rest, flags);                                         \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest);                                                  \
        return open_below(folder, path, flags, mode);                  \
    }
OPENER(openat, folder, int folder)
OPENER(openat64, folder, int folder)
#undef OPENER
#define OPENER(name)                                                   \
    int name(const char *path, int flags, ...) {                       \
        va_list rest;                                                  \
        va_start(rest, flags);                                         \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
        va_end(rest);                                                  \
        return open_below(AT_FDCWD, path, flags, mode);                \
    }
OPENER(open)
OPENER(open64)

int close(int handle) {
    int was = held(handle) ? inside[handle] : 0;
    if (!was) return REAL(close)(handle);
    inside[handle] = 0;
    note('C', handle, 0, 0, 0, 0, 0, 0);
    int ended = REAL(close)(handle);
    if (was == 2) FAIL_IF(CLOSE, "close", 0); /* the handle is gone all the same, as on Linux */
    return ended;
}

static ssize_t written(int handle, const void *data, size_t count, off64_t at) {
    if (held(handle)) {
        int failure = strike(WRITE, "write", 0);
        if (failure > 0) return errno = failure, -1;
        if (failure < 0 && count > 1) count /= 2;
    }
    ssize_t done = at < 0 ? REAL(write)(handle, data, count) : REAL(pwrite64)(handle, data, count, at);
    if (done > 0 && held(handle))
        note('W', handle, at < 0 ? lseek64(handle, 0, SEEK_CUR) - done : at, done, data, done, 0, 0);
    return done;
}
ssize_t write(int handle, const void *data, size_t count) { return written(handle, data, count, -1); }
ssize_t pwrite(int handle, const void *data, size_t count, off_t at) { return written(handle, data, count, at); }
ssize_t pwrite64(int handle, const void *data, size_t count, off64_t at) { return written(handle, data, count, at); }

static ssize_t taken(int handle, void *data, size_t count, off64_t at) {
    if (held(handle)) {
        int failure = strike(READ, "read", 0);
        if (failure > 0) return errno = failure, -1;
        if (failure < 0 && count > 1) count /= 2;
    }
    return at < 0 ? REAL(read)(handle, data, count) : REAL(pread64)(handle, data, count, at);
}
ssize_t read(int handle, void *data, size_t count) { return taken(handle, data, count, -1); }
ssize_t pread(int handle, void *data, size_t count, off_t at) { return taken(handle, data, count, at); }
ssize_t pread64(int handle, void *data, size_t count, off64_t at) { return taken(handle, data, count, at); }

/* Copies inside the kernel are refused, so that Python copies by read and write, which are recorded. */
ssize_t sendfile64(int to, int from, off64_t *at, size_t count) {
    ssize_t (*real)(int, int, off64_t *, size_t) = find("sendfile64", 0);
    return held(to) ? (errno = EINVAL, -1) : real(to, from, at, count);
}
ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *place, size_t count, unsigned flags) {
    return held(to) ? (errno = EINVAL, -1) : REAL(copy_file_range)(from, at, to, place, count, flags);
}

#define SYNCER(name)                                            \
    int name(int handle) {                                      \
        if (held(handle)) FAIL_IF(SYNC, "fsync", 0);            \
        if (!held(handle)) return REAL(name)(handle);           \
        note('S', handle, 0, 0, 0, 0, 0, 0);                    \
        return 0; /* a disk that is waited for changes nothing here but the time */ \
    }
SYNCER(fsync)
SYNCER(fdatasync)

#define CUTTER(name)                                                 \
    int name(int handle, off64_t size) {                             \
        if (held(handle)) FAIL_IF(WRITE, "ftruncate", 0);            \
        int done = REAL(name)(handle, size);                         \
        if (!done && held(handle)) note('T', handle, size, 0, 0, 0, 0, 0); \
        return done;                                                 \
    }
CUTTER(ftruncate)
CUTTER(ftruncate64)

/* A change of names: `what` is its letter in the record. */
#define NAMING(name, kind, what, folder, path, call, ...)             \
    int name(__VA_ARGS__) {                                           \
        int ours = below(folder, path);                               \
        if (ours) FAIL_IF(kind, #name, path);                         \
        int done = call;                                              \
        if (!done && ours) note(what, folder, 0, 0, path, strlen(path), 0, 0); \
        return done;                                                  \
    }
NAMING(mkdir, MAKE, 'M', AT_FDCWD, path, REAL(mkdir)(path, mode), const char *path, mode_t mode)
NAMING(mkdirat, MAKE, 'M', folder, path, REAL(mkdirat)(folder, path, mode), int folder, const char *path, mode_t mode)
NAMING(unlink, NAME, 'U', AT_FDCWD, path, REAL(unlink)(path), const char *path)
NAMING(rmdir, NAME, 'D', AT_FDCWD, path, REAL(rmdir)(path), const char *path)
NAMING(unlinkat, NAME, flags & AT_REMOVEDIR ? 'D' : 'U', folder, path, REAL(unlinkat)(folder, path, flags), int folder,
       const char *path, int flags)

static int renamed(int a, const char *from, int b, const char *to, unsigned flags) {
    int ours = below(a, from) || below(b, to);
    if (ours) FAIL_IF(MAKE, "rename", to);
    int done = flags ? REAL(renameat2)(a, from, b, to, flags) : REAL(renameat)(a, from, b, to);
    if (!done && ours) note('R', a, b, flags, from, strlen(from), to, strlen(to));
    return done;
}
int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return renamed(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return renamed(a, from, b, to, flags); }

static int linked(int a, const char *from, int b, const char *to, int flags) {
    if (below(b, to)) FAIL_IF(MAKE, "link", to);
    int done = REAL(linkat)(a, from, b, to, flags);
    if (!done && below(b, to)) note('H', a, b, 0, from, strlen(from), to, strlen(to));
    return done;
}
int link(const char *from, const char *to) { return linked(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return linked(a, from, b, to, flags); }

#define LOOKING(name, folder, path, ...)                      \
    int name(__VA_ARGS__) {                                   \
        if (below(folder, path)) FAIL_IF(LOOK, "stat", path);
LOOKING(stat, AT_FDCWD, path, const char *path, struct stat *about) return REAL(stat)(path, about); }
LOOKING(stat64, AT_FDCWD, path, const char *path, struct stat64 *about) return REAL(stat64)(path, about); }
LOOKING(lstat, AT_FDCWD, path, const char *path, struct stat *about) return REAL(lstat)(path, about); }
LOOKING(lstat64, AT_FDCWD, path, const char *path, struct stat64 *about) return REAL(lstat64)(path, about); }
LOOKING(fstatat64, folder, path, int folder, const char *path, struct stat64 *about, int flags)
    return REAL(fstatat64)(folder, path, about, flags); }
LOOKING(access, AT_FDCWD, path, const char *path, int mode) return REAL(access)(path, mode); }

DIR *opendir(const char *path) {
    int failure = below(AT_FDCWD, path) ? strike(OPEN | LIST, "opendir", path) : 0;
    if (failure > 0) return errno = failure, NULL;
    DIR *done = REAL(opendir)(path);
    if (done && below(AT_FDCWD, path) && dirfd(done) < HANDLES) inside[dirfd(done)] = 1;
    return done;
}

#define LISTER(name, type)                                            \
    type *name(DIR *folder) {                                         \
        int failure = held(dirfd(folder)) ? strike(LIST, "readdir", 0) : 0; \
        return failure > 0 ? (errno = failure, (type *)NULL) : REAL(name)(folder); \
    }
LISTER(readdir, struct dirent)
LISTER(readdir64, struct dirent64)
int closedir(DIR *folder) {
    if (held(dirfd(folder))) inside[dirfd(folder)] = 0;
    return REAL(closedir)(folder);
}
