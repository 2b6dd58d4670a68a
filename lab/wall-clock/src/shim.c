// Preloaded into a process, it shows a wall clock that is as far off the machine's as a file says.
// Waits until a time of that clock end by it, as they do where the machine's own clock is stepped.
// The monotonic clock is the machine's.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
// How soon a wait notices that the clock was stepped, nanoseconds.
#define LOOK (SECOND / 10)

// The file, which whoever steps the clock writes and reads.
struct clock {
    _Atomic int64_t ahead; // nanoseconds
    _Atomic int64_t reads; // of a clock that was ahead or behind
};

typedef int tell(clockid_t, struct timespec *);
typedef int wait_until(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);

static struct clock *stepped;
static tell *real_tell;
static wait_until *real_wait;

__attribute__((constructor)) static void start(void) {
    real_tell = (tell *)dlsym(RTLD_NEXT, "clock_gettime");
    real_wait = (wait_until *)dlsym(RTLD_NEXT, "pthread_cond_clockwait");
    const char *path = getenv("TALLY_WALL_CLOCK");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *map = mmap(NULL, sizeof(struct clock), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (map != MAP_FAILED)
        stepped = map;
}

static int64_t ahead(void) {
    int64_t ahead = stepped ? atomic_load(&stepped->ahead) : 0;
    if (ahead)
        atomic_fetch_add(&stepped->reads, 1);
    return ahead;
}

static int64_t nanoseconds(const struct timespec *time) {
    return time->tv_sec * SECOND + time->tv_nsec;
}

static struct timespec time_of(int64_t nanoseconds) {
    struct timespec time = {nanoseconds / SECOND, nanoseconds % SECOND};
    return time;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    // Other libraries may ask before this one has started.
    int failed = real_tell ? real_tell(clock, time) : syscall(SYS_clock_gettime, clock, time);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        *time = time_of(nanoseconds(time) + ahead());
    return failed;
}

static int64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return nanoseconds(&time);
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    int64_t at = now(CLOCK_REALTIME);
    time->tv_sec = at / SECOND;
    time->tv_usec = at % SECOND / 1000;
    return 0;
}

time_t time(time_t *time) {
    time_t at = now(CLOCK_REALTIME) / SECOND;
    if (time)
        *time = at;
    return at;
}

int timespec_get(struct timespec *time, int base) {
    *time = time_of(now(CLOCK_REALTIME));
    return base;
}

// While the clock is stepped it is waited in pieces, because the step back ends the wait. A signal
// between two of them is missed, where it is given without the mutex. So otherwise it is waited as
// a whole.
static int wait_by_wall_clock(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t until) {
    for (;;) {
        int64_t left = until - now(CLOCK_REALTIME);
        if (left <= 0)
            return ETIMEDOUT;
        int64_t piece = ahead() && left > LOOK ? LOOK : left;
        struct timespec end = time_of(now(CLOCK_MONOTONIC) + piece);
        int result = real_wait(cond, mutex, CLOCK_MONOTONIC, &end);
        if (result != ETIMEDOUT)
            return result;
    }
}

int pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t clock,
                           const struct timespec *until) {
    if (clock == CLOCK_REALTIME)
        return wait_by_wall_clock(cond, mutex, nanoseconds(until));
    return real_wait(cond, mutex, clock, until);
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    // Where glibc notes which clock this is about.
    int is_monotonic = cond->__data.__wrefs & 2;
    clockid_t clock = is_monotonic ? CLOCK_MONOTONIC : CLOCK_REALTIME;
    return pthread_cond_clockwait(cond, mutex, clock, until);
}

// What glibc's own are: the same as those of pthreads, by other names.
int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex,
                  const struct timespec *restrict until) {
    int64_t end = nanoseconds(until);
    int result = wait_by_wall_clock((pthread_cond_t *)cond, (pthread_mutex_t *)mutex, end);
    return result == 0 ? thrd_success : result == ETIMEDOUT ? thrd_timedout : thrd_error;
}
