/* Between the program and the C library: counts the calls that concern one folder, and lets one of them fail.
 *
 * Loaded with LD_PRELOAD and idle until fault_arm is called, in the process that is to meet the fault.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { READS = 1, WRITES = 2, NAMES = 4, SYNCS = 8 };        /* groups of calls */
enum { OFF = 0, COUNT = 1, SIGNAL = 2, FAIL = 3, SHORT = 4 }; /* what happens */

static volatile int what, groups, number, on;
static volatile long left, seen;
static char scope[4096];
static size_t scope_length;

void fault_arm(int kind, int of, long at, int value, int go_on, const char *folder) {
    groups = of, left = at, number = value, on = go_on, seen = 0;
    strncpy(scope, folder, sizeof scope - 1);
    scope_length = strlen(scope);
    what = kind;
}
void fault_off(void) { what = OFF; }
long fault_seen(void) { return seen; }

static int below(const char *path) { return strncmp(path, scope, scope_length) == 0; }
static int holds(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > 0 && (path[length] = 0, below(path));
}
static int at(int folder, const char *path) { return path[0] == '/' || folder == AT_FDCWD ? below(path) : holds(folder); }

/* 1 where this call is to go wrong; a signal is sent here, before the call. */
static int hit(int group) {
    if (!(groups & group)) return 0;
    __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (what == COUNT) return 0;
    long now = __atomic_sub_fetch(&left, 1, __ATOMIC_SEQ_CST);
    if (now != 0 && !(now < 0 && on)) return 0;
    if (what == SIGNAL) { kill(getpid(), number); return 0; }
    return 1;
}
#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })
#define FAILS(group, inside) (what && (inside) && hit(group) && what == FAIL ? (errno = number, 1) : 0)
#define CUT(size) ((size) > 1 ? 1 + (size_t)random() % ((size) - 1) : (size))
#define TRANSFER(type, name, group, descriptor, size, params, call)                \
    type name params {                                                            \
        if (what && holds(descriptor) && hit(group)) {                            \
            if (what == FAIL) { errno = number; return -1; }                      \
            if (what == SHORT) { size = CUT(size); return REAL(name) call; }     \
        }                                                                         \
        return REAL(name) call;                                                   \
    }

TRANSFER(ssize_t, write, WRITES, fd, n, (int fd, const void *b, size_t n), (fd, b, n))
TRANSFER(ssize_t, pwrite, WRITES, fd, n, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o))
TRANSFER(ssize_t, pwrite64, WRITES, fd, n, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o))
TRANSFER(ssize_t, read, READS, fd, n, (int fd, void *b, size_t n), (fd, b, n))
TRANSFER(ssize_t, pread, READS, fd, n, (int fd, void *b, size_t n, off_t o), (fd, b, n, o))
TRANSFER(ssize_t, pread64, READS, fd, n, (int fd, void *b, size_t n, off64_t o), (fd, b, n, o))
TRANSFER(ssize_t, copy_file_range, WRITES, to, n, (int from, off64_t *a, int to, off64_t *b, size_t n, unsigned f), (from, a, to, b, n, f))

int fsync(int fd) { return FAILS(SYNCS, holds(fd)) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return FAILS(SYNCS, holds(fd)) ? -1 : REAL(fdatasync)(fd); }
int ftruncate(int fd, off_t n) { return FAILS(WRITES, holds(fd)) ? -1 : REAL(ftruncate)(fd, n); }
int ftruncate64(int fd, off64_t n) { return FAILS(WRITES, holds(fd)) ? -1 : REAL(ftruncate64)(fd, n); }
int rename(const char *a, const char *b) { return FAILS(NAMES, below(a)) ? -1 : REAL(rename)(a, b); }
int renameat2(int d, const char *a, int e, const char *b, unsigned f) { return FAILS(NAMES, at(d, a)) ? -1 : REAL(renameat2)(d, a, e, b, f); }
int unlink(const char *a) { return FAILS(NAMES, below(a)) ? -1 : REAL(unlink)(a); }
int unlinkat(int d, const char *a, int f) { return FAILS(NAMES, at(d, a)) ? -1 : REAL(unlinkat)(d, a, f); }
int rmdir(const char *a) { return FAILS(NAMES, below(a)) ? -1 : REAL(rmdir)(a); }
int mkdir(const char *a, mode_t m) { return FAILS(NAMES, below(a)) ? -1 : REAL(mkdir)(a, m); }
int chmod(const char *a, mode_t m) { return FAILS(NAMES, below(a)) ? -1 : REAL(chmod)(a, m); }
int madvise(void *a, size_t n, int advice) { return what && advice == 22 && hit(READS) && what == FAIL ? (errno = EFAULT, -1) : REAL(madvise)(a, n, advice); }

#define OPEN(name, params, call, folder)                                          \
    int name params {                                                             \
        mode_t mode = 0;                                                          \
        va_list list;                                                             \
        va_start(list, flags);                                                    \
        if (flags & (O_CREAT | __O_TMPFILE)) mode = va_arg(list, mode_t);         \
        va_end(list);                                                             \
        return FAILS(flags & O_CREAT ? NAMES : READS, at(folder, path)) ? -1 : REAL(name) call; \
    }
OPEN(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(openat, (int d, const char *path, int flags, ...), (d, path, flags, mode), d)
OPEN(openat64, (int d, const char *path, int flags, ...), (d, path, flags, mode), d)
