// Loaded into a program under test by LD_PRELOAD: counts the calls of libc that read or change files below a directory
// and makes one of them fail, or kills the program in it. See shim.rs, which compiles it and sets the environment:
//   LCF_FAULT_UNDER  directory whose files count
//   LCF_FAULT_SET    "write": calls that change something; "read": read and mmap
//   LCF_FAULT_AT     which call it happens at, counted from 1
//   LCF_FAULT_DO     "kill": SIGKILL before the call; "torn": half of a write, then SIGKILL;
//                    "once N": it returns errno N; "from N": so does every later call (a disk that is full stays full)
//   LCF_FAULT_LOG    file that gets a line "CALL PATH" for each call that counts
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

// The next definition of a function: libc's.
#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

enum kind { WRITES, READS };

static atomic_long counted;

static int below(const char *path) {
    const char *under = getenv("LCF_FAULT_UNDER");
    size_t length = under ? strlen(under) : 0;
    return length && !strncmp(path, under, length) && (path[length] == '/' || !path[length]);
}

// Whether the path, or the file open as fd where there is none, is below the directory; its name goes to `name`.
static int ours(const char *path, int fd, char name[PATH_MAX]) {
    name[0] = 0;
    if (path && path[0] == '/') {
        snprintf(name, PATH_MAX, "%s", path);
    } else if (fd >= 0) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, name, PATH_MAX - 1);
        name[n < 0 ? 0 : n] = 0;
        if (path) snprintf(name + strlen(name), PATH_MAX - strlen(name), "/%s", path);
    }
    return below(name);
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static void note(const char *call, const char *name) {
    const char *log = getenv("LCF_FAULT_LOG");
    if (!log) return;
    char line[PATH_MAX + 64];
    int n = snprintf(line, sizeof line, "%s %s\n", call, name);
    int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd >= 0) {
        syscall(SYS_write, fd, line, n);
        syscall(SYS_close, fd);
    }
}

enum verdict { PASS, TEAR, FAIL };

// Counts a call. FAIL: errno is set and the call has to return an error.
static enum verdict meet(enum kind kind, const char *call, const char *path, int fd) {
    const char *set = getenv("LCF_FAULT_SET");
    if (!set || (kind == READS) != !strcmp(set, "read")) return PASS;
    int saved = errno;
    char name[PATH_MAX];
    if (!ours(path, fd, name)) {
        errno = saved;
        return PASS;
    }
    note(call, name);
    long number = atomic_fetch_add(&counted, 1) + 1;
    const char *at = getenv("LCF_FAULT_AT"), *what = getenv("LCF_FAULT_DO");
    long place = at ? atol(at) : 0;
    errno = saved;
    if (!place || !what || number < place) return PASS;
    if (!strncmp(what, "from ", 5) || (number == place && !strncmp(what, "once ", 5))) {
        errno = atoi(what + 5);
        return FAIL;
    }
    if (number != place) return PASS;
    if (!strcmp(what, "torn")) return TEAR;
    if (!strcmp(what, "kill")) die();
    return PASS;
}

ssize_t write(int fd, const void *data, size_t n) {
    ssize_t (*next)(int, const void *, size_t) = NEXT(ssize_t (*)(int, const void *, size_t), "write");
    switch (meet(WRITES, "write", NULL, fd)) {
    case FAIL: return -1;
    case TEAR: next(fd, data, n / 2); die();
    default: return next(fd, data, n);
    }
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    ssize_t (*next)(int, const struct iovec *, int) = NEXT(ssize_t (*)(int, const struct iovec *, int), "writev");
    switch (meet(WRITES, "writev", NULL, fd)) {
    case FAIL: return -1;
    case TEAR: next(fd, parts, n / 2); die();
    default: return next(fd, parts, n);
    }
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    ssize_t (*next)(int, const void *, size_t, off64_t) =
        NEXT(ssize_t (*)(int, const void *, size_t, off64_t), "pwrite64");
    switch (meet(WRITES, "pwrite", NULL, fd)) {
    case FAIL: return -1;
    case TEAR: next(fd, data, n / 2, at); die();
    default: return next(fd, data, n, at);
    }
}

// The rest change something at once or not at all: a torn one is one that was killed before it.
#define MEET(kind, call, path, fd)                  \
    switch (meet(kind, call, path, fd)) {           \
    case FAIL: return -1;                           \
    case TEAR: die();                               \
    default: break;                                 \
    }

int fsync(int fd) {
    MEET(WRITES, "fsync", NULL, fd)
    return NEXT(int (*)(int), "fsync")(fd);
}

int fdatasync(int fd) {
    MEET(WRITES, "fdatasync", NULL, fd)
    return NEXT(int (*)(int), "fdatasync")(fd);
}

int ftruncate64(int fd, off64_t length) {
    MEET(WRITES, "ftruncate", NULL, fd)
    return NEXT(int (*)(int, off64_t), "ftruncate64")(fd, length);
}

int rename(const char *from, const char *to) {
    MEET(WRITES, "rename", to, -1)
    return NEXT(int (*)(const char *, const char *), "rename")(from, to);
}

int mkdir(const char *path, mode_t mode) {
    MEET(WRITES, "mkdir", path, -1)
    return NEXT(int (*)(const char *, mode_t), "mkdir")(path, mode);
}

int rmdir(const char *path) {
    MEET(WRITES, "rmdir", path, -1)
    return NEXT(int (*)(const char *), "rmdir")(path);
}

int unlink(const char *path) {
    MEET(WRITES, "unlink", path, -1)
    return NEXT(int (*)(const char *), "unlink")(path);
}

int unlinkat(int dir, const char *path, int flags) {
    MEET(WRITES, "unlinkat", path, dir)
    return NEXT(int (*)(int, const char *, int), "unlinkat")(dir, path, flags);
}

int symlink(const char *to, const char *path) {
    MEET(WRITES, "symlink", path, -1)
    return NEXT(int (*)(const char *, const char *), "symlink")(to, path);
}

static int opening(const char *path, int dir, int flags) {
    if ((flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT)) return 0;
    MEET(WRITES, "open", path, dir)
    return 0;
}

#define MODE(flags)                                 \
    mode_t mode = 0;                                \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {        \
        va_list rest;                               \
        va_start(rest, flags);                      \
        mode = va_arg(rest, mode_t);                \
        va_end(rest);                               \
    }

int open64(const char *path, int flags, ...) {
    MODE(flags)
    if (opening(path, -1, flags)) return -1;
    return NEXT(int (*)(const char *, int, ...), "open64")(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    MODE(flags)
    if (opening(path, -1, flags)) return -1;
    return NEXT(int (*)(const char *, int, ...), "open")(path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...) {
    MODE(flags)
    if (opening(path, dir, flags)) return -1;
    return NEXT(int (*)(int, const char *, int, ...), "openat64")(dir, path, flags, mode);
}

ssize_t read(int fd, void *data, size_t n) {
    MEET(READS, "read", NULL, fd)
    return NEXT(ssize_t (*)(int, void *, size_t), "read")(fd, data, n);
}

void *mmap64(void *at, size_t n, int protection, int flags, int fd, off64_t offset) {
    if (fd >= 0 && meet(READS, "mmap", NULL, fd) == FAIL) return MAP_FAILED;
    return NEXT(void *(*)(void *, size_t, int, int, int, off64_t), "mmap64")(at, n, protection, flags, fd, offset);
}

void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    if (fd >= 0 && meet(READS, "mmap", NULL, fd) == FAIL) return MAP_FAILED;
    return NEXT(void *(*)(void *, size_t, int, int, int, off_t), "mmap")(at, n, protection, flags, fd, offset);
}
