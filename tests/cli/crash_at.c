// Kills the process at one chosen system call that changes the disk, or lets the disk run full.
// Preloaded (LD_PRELOAD) into the trainer by tests/cli/test_crash.py.
//
// CRASH_FOLDER: only calls on files below this folder count. CRASH_AT=n: at the n-th call (from
// 0) the process is gone; a write leaves half of its bytes. CRASH_BYTES=n: from n bytes written
// on, writes fail with ENOSPC, as on a full disk. CRASH_COUNT: a file to which every call is
// noted, a letter each.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *folder;
static long left_calls = -1, left_bytes = -1;
static int count_fd = -1;
static ssize_t (*real_write)(int, const void *, size_t);

__attribute__((constructor)) static void begin(void) {
  real_write = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
  folder = getenv("CRASH_FOLDER");
  if (getenv("CRASH_AT")) left_calls = atol(getenv("CRASH_AT"));
  if (getenv("CRASH_BYTES")) left_bytes = atol(getenv("CRASH_BYTES"));
  if (getenv("CRASH_COUNT")) count_fd = open(getenv("CRASH_COUNT"), O_WRONLY | O_CREAT | O_APPEND, 0644);
}

static int below(const char *path) {
  return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int named(const char *path) {
  char whole[PATH_MAX];
  if (!path) return 0;
  if (path[0] == '/') return below(path);
  if (!getcwd(whole, sizeof whole - 1)) return 0;
  strncat(whole, "/", sizeof whole - strlen(whole) - 1);
  strncat(whole, path, sizeof whole - strlen(whole) - 1);
  return below(whole);
}

static int of(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

// Counts a call; 1: this is the one.
static int now(char kind) {
  if (count_fd >= 0) real_write(count_fd, &kind, 1);
  return left_calls >= 0 && left_calls-- == 0;
}

static void die(void) { kill(getpid(), SIGKILL); }

ssize_t write(int fd, const void *data, size_t size) {
  if (!folder || !of(fd)) return real_write(fd, data, size);
  if (now('w')) {
    real_write(fd, data, size / 2);
    die();
  }
  if (left_bytes >= 0) {
    if (left_bytes == 0 && size) { errno = ENOSPC; return -1; }
    if ((long)size > left_bytes) size = (size_t)left_bytes;
    left_bytes -= (long)size;
  }
  return real_write(fd, data, size);
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

int fsync(int fd) {
  REAL(int, "fsync", int);
  if (of(fd) && now('s')) die();
  return real(fd);
}
int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *);
  if (named(from) && now('r')) die();
  return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
  REAL(int, "renameat", int, const char *, int, const char *);
  if (named(from) && now('r')) die();
  return real(a, from, b, to);
}
int link(const char *from, const char *to) {
  REAL(int, "link", const char *, const char *);
  if (named(to) && now('l')) die();
  return real(from, to);
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
  REAL(int, "linkat", int, const char *, int, const char *, int);
  if (named(to) && now('l')) die();
  return real(a, from, b, to, flags);
}
int mkdir(const char *path, mode_t mode) {
  REAL(int, "mkdir", const char *, mode_t);
  if (named(path) && now('m')) die();
  return real(path, mode);
}
int mkdirat(int at, const char *path, mode_t mode) {
  REAL(int, "mkdirat", int, const char *, mode_t);
  if (named(path) && now('m')) die();
  return real(at, path, mode);
}
int unlink(const char *path) {
  REAL(int, "unlink", const char *);
  if (named(path) && now('u')) die();
  return real(path);
}
// Python removes trees relative to an open folder.
int unlinkat(int at, const char *path, int flags) {
  REAL(int, "unlinkat", int, const char *, int);
  if ((at == AT_FDCWD ? named(path) : of(at)) && now('u')) die();
  return real(at, path, flags);
}
int rmdir(const char *path) {
  REAL(int, "rmdir", const char *);
  if (named(path) && now('d')) die();
  return real(path);
}
