use std::net::{Ipv4Addr, TcpListener};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that the kernel gives to outgoing connections: a port that is free now is not
/// taken by one of them before its service listens.
const FIRST: u16 = 21_000;
const COUNT: u16 = 11_000;
/// Test processes that run side by side begin at different places.
const STRIDE: u32 = 97;

/// A port of loopback that nothing listens on, and that no other caller in this process is given.
pub(crate) fn free_port() -> u16 {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        let start = std::process::id().wrapping_mul(STRIDE) % u32::from(COUNT);
        AtomicU16::new(u16::try_from(start).expect("less than COUNT"))
    });
    for _ in 0..COUNT {
        let port = FIRST + next.fetch_add(1, Ordering::Relaxed) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("every port from {FIRST} to {} is taken", FIRST + COUNT - 1);
}
