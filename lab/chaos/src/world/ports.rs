use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::Context;

/// How far taken ports are passed over.
const SPAN: u16 = 500;

/// Gives ports of loopback that nothing listens on, from one up.
pub(super) struct Ports {
    first: u16,
    next: u16,
}

impl Ports {
    pub(super) fn from(first: u16) -> Ports {
        Ports { first, next: first }
    }

    pub(super) fn take(&mut self) -> anyhow::Result<SocketAddr> {
        let last = self.first.saturating_add(SPAN);
        while self.next < last {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.next));
            self.next += 1;
            if TcpListener::bind(address).is_ok() {
                return Ok(address);
            }
        }
        anyhow::bail!("no port is free from {} up to {last}", self.first)
    }
}

/// That what was down can listen again: while it is, its ports are anybody's.
pub(super) fn check_free(name: &str, addresses: &[SocketAddr]) -> anyhow::Result<()> {
    for &address in addresses {
        TcpListener::bind(address).with_context(|| {
            format!("{name} was away, and something else has taken its port {address} meanwhile")
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_passed_over_and_none_is_given_twice() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut ports = Ports::from(port);
        let given = [ports.take().unwrap().port(), ports.take().unwrap().port()];
        assert!(given[0] > port && given[1] > given[0], "{given:?} from {port}");
    }
}
