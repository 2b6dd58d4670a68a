//! librdkafka's waits, by the monotonic clock.
//!
//! All of its waits that have a limit are C11's `cnd_timedwait`, until a time of the wall clock. A
//! clock that is set back by an hour has them wait an hour longer (librdkafka 2.12,
//! `cnd_timedwait_ms`). The linker takes this function before glibc's.

use std::ffi::c_int;
use std::time::Duration;

use libc::{CLOCK_MONOTONIC, CLOCK_REALTIME, clockid_t, pthread_cond_t, pthread_mutex_t, timespec};

/// How long one wait takes at most, since the clock may be set back just before it is read here.
/// librdkafka looks at the monotonic clock after each, and waits on if it ended too soon.
const LONGEST: Duration = Duration::from_secs(1);
/// What C11's function returns, as glibc numbers it.
const SUCCESS: c_int = 0;
const ERROR: c_int = 2;
const TIMED_OUT: c_int = 4;

unsafe extern "C" {
    fn pthread_cond_clockwait(
        condition: *mut pthread_cond_t,
        mutex: *mut pthread_mutex_t,
        clock: clockid_t,
        until: *const timespec,
    ) -> c_int;
}

/// As C11 says, but that it may time out too soon. glibc's `cnd_t` and `mtx_t` are those of
/// pthreads.
#[unsafe(no_mangle)]
unsafe extern "C" fn cnd_timedwait(
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    until: *const timespec,
) -> c_int {
    // SAFETY: the caller gives what `cnd_timedwait` needs: a time, a condition, and a mutex that it
    // holds. `pthread_cond_clockwait` needs the same.
    let result = unsafe {
        let left = since_epoch(*until).saturating_sub(now(CLOCK_REALTIME)).min(LONGEST);
        let until = now(CLOCK_MONOTONIC) + left;
        let until = timespec {
            tv_sec: until.as_secs().cast_signed(),
            tv_nsec: until.subsec_nanos().into(),
        };
        pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &raw const until)
    };
    match result {
        0 => SUCCESS,
        libc::ETIMEDOUT => TIMED_OUT,
        _ => ERROR,
    }
}

fn now(clock: clockid_t) -> Duration {
    let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written to a place of its own. Both clocks are always there.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    since_epoch(time)
}

/// Times before the epoch are taken as the epoch.
fn since_epoch(time: timespec) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}
