// To be preloaded: counts the calls by which a program reaches its system, and has one of them fail, come back short, or kill the program. Linux.
//
// What it does stands in a page of shared memory, the file that FAULTS names (`struct page`; shim.py writes and reads it), so that the counts outlive the
// program. Calls that the C library makes for itself are not seen: those of its allocator, its threads and the loader. Nor are small anonymous mappings
// (stacks of signals, which the standard library makes for every thread), since Rust ends the program where these fail.
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
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { READ, WRITE, OPEN, NAME, SYNC, EXTEND, MAP, THREAD, LOCK, STAT, LIST, NET, KINDS };

enum { SHORT = -1, LEAST_MAPPING = 64 << 10, DIRECT_BLOCK = 4096, WHAT = 256 };

struct page {
    uint64_t counts[KINDS];
    uint64_t all;
    int64_t kind, number, how; // the call that fails: the number-th of its kind (from 1), with this errno, or SHORT
    uint64_t kill_at;          // the call of all kinds before which the program is killed; 0: none
    int64_t room;              // bytes that can still be written to files; negative: any number
    uint64_t hit;              // whether it has come to that
    char what[WHAT];           // which call it was
};

static struct page *page;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTS");
    int file = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = (void *)syscall(SYS_mmap, 0, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (mapped != MAP_FAILED) page = mapped;
}

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

#define NEXT(name)                                                                                                     \
    static __typeof__(name) *real;                                                                                     \
    if (!real) real = (__typeof__(name) *)next(#name)

// Says which call it was: the name of the function, and the file.
static void tell(const char *call, int file, const char *path) {
    char link[32], name[192] = "";
    if (!path && file >= 0) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        long length = syscall(SYS_readlinkat, AT_FDCWD, link, name, sizeof name - 1);
        name[length > 0 ? length : 0] = 0;
        path = name;
    }
    snprintf(page->what, sizeof page->what, "%s %d %s", call, file, path ? path : "");
}

// Counts a call. Whether it is to fail: 0, an errno, SHORT, or, where the program is to be killed in it, more than 16 bits.
static int fault(enum kind kind, const char *call, int file, const char *path) {
    if (!page) return 0;
    uint64_t number = __atomic_add_fetch(&page->counts[kind], 1, __ATOMIC_RELAXED);
    uint64_t all = __atomic_add_fetch(&page->all, 1, __ATOMIC_RELAXED);
    if (page->kill_at && all == page->kill_at) {
        tell(call, file, path);
        page->hit = 1;
        return SIGKILL << 16;
    }
    if (page->kind != kind || page->number != (int64_t)number) return 0;
    tell(call, file, path);
    page->hit = 1;
    return (int)page->how;
}

static void die(void) {
    syscall(SYS_kill, (pid_t)syscall(SYS_getpid), SIGKILL);
    for (;;) syscall(SYS_pause);
}

// Whether to fail, with errno set. For calls that cannot come back short.
static int fails(enum kind kind, const char *call, int file, const char *path) {
    int how = fault(kind, call, file, path);
    if (how > 0xffff) die();
    if (how > 0) errno = how;
    return how > 0;
}

// Which calls on a file are counted: on files, devices, sockets and the standard streams. What wakes threads (pipes, eventfd, epoll) does not fail.
static int counts(int file, int *socket) {
    struct stat found;
    *socket = 0;
    if (!page || syscall(SYS_fstat, file, &found) != 0) return 0;
    *socket = S_ISSOCK(found.st_mode);
    return S_ISREG(found.st_mode) || S_ISCHR(found.st_mode) || *socket || (S_ISFIFO(found.st_mode) && file <= 2);
}

// What becomes of a transfer: 0, or -1 with errno. `length` may become less.
static int transfer(enum kind kind, const char *call, int file, size_t *length) {
    int socket;
    if (!counts(file, &socket)) return 0;
    int how = fault(kind, call, file, NULL);
    if (how > 0xffff) {
        // Half of what was to be written is there.
        if (kind == WRITE && *length > 1) {
            *length /= 2;
            return 1;
        }
        die();
    }
    if (how == SHORT) {
        int direct = syscall(SYS_fcntl, file, F_GETFL) & O_DIRECT;
        if (!direct && *length > 1) *length = (*length + 1) / 2;
        if (direct && *length > DIRECT_BLOCK) *length = *length / 2 / DIRECT_BLOCK * DIRECT_BLOCK;
    }
    if (how > 0) {
        // A drive's errors are none of a network's.
        errno = socket && how != EINTR ? ECONNRESET : how;
        return -1;
    }
    if (kind == WRITE && !socket && page->room >= 0) {
        struct stat found;
        if (syscall(SYS_fstat, file, &found) == 0 && S_ISREG(found.st_mode)) {
            int64_t left = __atomic_fetch_sub(&page->room, (int64_t)*length, __ATOMIC_RELAXED);
            if (left < (int64_t)*length) {
                __atomic_store_n(&page->room, 0, __ATOMIC_RELAXED);
                tell(call, file, NULL);
                page->hit = 1;
                if (left <= 0) {
                    errno = ENOSPC;
                    return -1;
                }
                *length = (size_t)left;
            }
        }
    }
    return 0;
}

#define TRANSFER(kind, call, length)                                                                                   \
    int happens = transfer(kind, #call, file, &length);                                                                \
    if (happens < 0) return -1

ssize_t read(int file, void *into, size_t length) {
    NEXT(read);
    TRANSFER(READ, read, length);
    return real(file, into, length);
}

ssize_t pread64(int file, void *into, size_t length, off64_t offset) {
    NEXT(pread64);
    TRANSFER(READ, pread64, length);
    return real(file, into, length, offset);
}

ssize_t recv(int file, void *into, size_t length, int flags) {
    NEXT(recv);
    TRANSFER(READ, recv, length);
    return real(file, into, length, flags);
}

ssize_t write(int file, const void *from, size_t length) {
    NEXT(write);
    TRANSFER(WRITE, write, length);
    ssize_t done = real(file, from, length);
    if (happens > 0) die();
    return done;
}

ssize_t pwrite64(int file, const void *from, size_t length, off64_t offset) {
    NEXT(pwrite64);
    TRANSFER(WRITE, pwrite64, length);
    ssize_t done = real(file, from, length, offset);
    if (happens > 0) die();
    return done;
}

ssize_t send(int file, const void *from, size_t length, int flags) {
    NEXT(send);
    TRANSFER(WRITE, send, length);
    ssize_t done = real(file, from, length, flags);
    if (happens > 0) die();
    return done;
}

// Comes back short by giving the first piece only.
ssize_t writev(int file, const struct iovec *pieces, int count) {
    NEXT(writev);
    size_t all = 0;
    for (int i = 0; i < count; i++) all += pieces[i].iov_len;
    size_t length = all;
    TRANSFER(WRITE, writev, length);
    int first = 0;
    while (first + 1 < count && pieces[first].iov_len == 0) first++;
    struct iovec part = count ? pieces[first] : (struct iovec){0};
    if (part.iov_len > length) part.iov_len = length;
    ssize_t done = length < all ? real(file, &part, 1) : real(file, pieces, count);
    if (happens > 0) die();
    return done;
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

int open(const char *path, int flags, ...) {
    NEXT(open);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return fails(OPEN, "open", -1, path) ? -1 : real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    NEXT(open64);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return fails(OPEN, "open64", -1, path) ? -1 : real(path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    NEXT(openat64);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return fails(OPEN, "openat64", folder, path) ? -1 : real(folder, path, flags, mode);
}

int rename(const char *from, const char *to) {
    NEXT(rename);
    return fails(NAME, "rename", -1, to) ? -1 : real(from, to);
}

int unlink(const char *path) {
    NEXT(unlink);
    return fails(NAME, "unlink", -1, path) ? -1 : real(path);
}

int unlinkat(int folder, const char *path, int flags) {
    NEXT(unlinkat);
    return fails(NAME, "unlinkat", folder, path) ? -1 : real(folder, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    NEXT(mkdir);
    return fails(NAME, "mkdir", -1, path) ? -1 : real(path, mode);
}

int fsync(int file) {
    NEXT(fsync);
    return fails(SYNC, "fsync", file, NULL) ? -1 : real(file);
}

int fdatasync(int file) {
    NEXT(fdatasync);
    return fails(SYNC, "fdatasync", file, NULL) ? -1 : real(file);
}

int ftruncate64(int file, off64_t length) {
    NEXT(ftruncate64);
    return fails(EXTEND, "ftruncate64", file, NULL) ? -1 : real(file, length);
}

int fallocate64(int file, int mode, off64_t offset, off64_t length) {
    NEXT(fallocate64);
    return fails(EXTEND, "fallocate64", file, NULL) ? -1 : real(file, mode, offset, length);
}

void *mmap64(void *at, size_t length, int rights, int flags, int file, off64_t offset) {
    NEXT(mmap64);
    int seen = file >= 0 || length >= LEAST_MAPPING;
    return seen && fails(MAP, "mmap64", file, NULL) ? MAP_FAILED : real(at, length, rights, flags, file, offset);
}

void *mmap(void *at, size_t length, int rights, int flags, int file, off_t offset) {
    return mmap64(at, length, rights, flags, file, offset);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*main)(void *), void *with) {
    NEXT(pthread_create);
    // It returns the error.
    return fails(THREAD, "pthread_create", -1, "") ? EAGAIN : real(thread, how, main, with);
}

int flock(int file, int how) {
    NEXT(flock);
    return fails(LOCK, "flock", file, NULL) ? -1 : real(file, how);
}

int statx(int folder, const char *restrict path, int flags, unsigned mask, struct statx *restrict into) {
    NEXT(statx);
    // NULL where the standard library asks whether there is such a call.
    const char *name = path;
    __asm__("" : "+r"(name));
    return fails(STAT, "statx", folder, name && *name ? name : NULL) ? -1 : real(folder, path, flags, mask, into);
}

DIR *opendir(const char *path) {
    NEXT(opendir);
    return fails(LIST, "opendir", -1, path) ? NULL : real(path);
}

struct dirent64 *readdir64(DIR *folder) {
    NEXT(readdir64);
    return fails(LIST, "readdir64", dirfd(folder), NULL) ? NULL : real(folder);
}

int socket(int domain, int type, int protocol) {
    NEXT(socket);
    return fails(NET, "socket", -1, "") ? -1 : real(domain, type, protocol);
}

int accept4(int file, struct sockaddr *restrict from, socklen_t *restrict length, int flags) {
    NEXT(accept4);
    return fails(NET, "accept4", file, NULL) ? -1 : real(file, from, length, flags);
}
