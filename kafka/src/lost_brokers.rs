//! Clients that know no broker any more.
//!
//! librdkafka forgets each broker that an answer about metadata does not name, and those that it
//! was given at its start. Where the answer names none, as that of a broker may do which has just
//! started and knows no other yet, nobody is left to be asked, and the client never finds its way
//! back (librdkafka 2.12, [its issue
//! 5301](https://github.com/confluentinc/librdkafka/issues/5301)). So a client that gets no answer
//! for a while is given the brokers of its start again. One that knows them takes no notice.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ptr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka_sys as sys;

/// How long a client gets no answer before it is given its brokers again. Then the wait doubles,
/// since librdkafka keeps each list that it is given.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);

/// The clients that get no answer, by their addresses.
static SILENT: Mutex<BTreeMap<usize, Silent>> = Mutex::new(BTreeMap::new());

#[derive(Clone, Copy, Debug)]
struct Silent {
    since: Instant,
    wait: Duration,
}

/// To be called when a broker has answered this client.
pub(crate) fn answered<C: ClientContext>(client: &Client<C>) {
    let mut silent = SILENT.lock().unwrap_or_else(PoisonError::into_inner);
    silent.remove(&(client.native_ptr() as usize));
}

/// To be called when no broker has answered this client. An answer that is of no use, as a refusal
/// is, may count as none: brokers that are known already change nothing.
pub(crate) fn unanswered<C: ClientContext>(client: &Client<C>) {
    let mut silent = SILENT.lock().unwrap_or_else(PoisonError::into_inner);
    if is_due(&mut silent, client.native_ptr() as usize, Instant::now()) {
        drop(silent);
        tracing::info!("no Kafka broker answers; naming those again that the client began with");
        name_brokers(client);
    }
}

/// Whether this client is to be given its brokers now.
fn is_due(silent: &mut BTreeMap<usize, Silent>, client: usize, now: Instant) -> bool {
    // What has not asked for so long is gone.
    silent.retain(|_, silent| now.duration_since(silent.since) <= 2 * LONGEST_WAIT);
    let silent = silent.entry(client).or_insert(Silent { since: now, wait: FIRST_WAIT });
    if now.duration_since(silent.since) < silent.wait {
        return false;
    }
    *silent = Silent { since: now, wait: LONGEST_WAIT.min(silent.wait * 2) };
    true
}

fn name_brokers<C: ClientContext>(client: &Client<C>) {
    let name = c"bootstrap.servers".as_ptr();
    // SAFETY: the client is alive, and its configuration with it. The first call tells only how
    // long the value is, with its zero; the buffer of the second is as long as is said. The zero is
    // looked for within it.
    unsafe {
        let config = sys::rd_kafka_conf(client.native_ptr());
        let mut length = 0;
        sys::rd_kafka_conf_get(config, name, ptr::null_mut(), &raw mut length);
        let mut brokers = vec![0_u8; length];
        let found =
            sys::rd_kafka_conf_get(config, name, brokers.as_mut_ptr().cast(), &raw mut length);
        let is_found = found == sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK;
        if let (true, Ok(brokers)) = (is_found, CStr::from_bytes_until_nul(&brokers)) {
            sys::rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_for_each_client_by_itself() {
        let (mut silent, begin) = (BTreeMap::new(), Instant::now());
        let mut at =
            |client, seconds| is_due(&mut silent, client, begin + Duration::from_secs(seconds));
        assert!(!at(1, 0) && !at(1, 9));
        assert!(at(1, 10) && !at(1, 29) && at(1, 30));
        assert!(!at(2, 30) && !at(2, 39) && at(2, 40));
        assert!(!at(1, 40 + 4 * 3_600), "it is another by now");
    }
}
