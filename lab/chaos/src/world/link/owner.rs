//! Which process a client's end of a connection belongs to, as Linux tells it.
//!
//! ```text
//! /proc/net/tcp   the client's address, the link's ──► inode
//! /proc/PID/fd    a descriptor ──► socket:[inode]
//! ```

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;

use tokio::net::TcpStream;
use tokio::task::spawn_blocking;

/// Columns of `/proc/net/tcp`.
const LOCAL: usize = 1;
const REMOTE: usize = 2;
const INODE: usize = 9;

/// Whether the process holds the other end of this accepted connection. One that has ended holds
/// nothing.
pub(super) async fn is_client_of(accepted: &TcpStream, process: u32) -> bool {
    let Ok((client, link)) =
        accepted.peer_addr().and_then(|peer| Ok((peer, accepted.local_addr()?)))
    else {
        return false;
    };
    let looked = spawn_blocking(move || owns(process, client, link)).await;
    looked.expect("looking for an owner does not panic").unwrap_or_else(|error| {
        tracing::warn!(%error, process, %client, "find the owner of a connection");
        false
    })
}

/// Whether the process has a socket that is bound to `local` and connected to `remote`.
fn owns(process: u32, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
    let (SocketAddr::V4(local), SocketAddr::V4(remote)) = (local, remote) else {
        return Err(io::Error::new(ErrorKind::Unsupported, "links are of IPv4"));
    };
    let table = fs::read_to_string("/proc/net/tcp")?;
    let Some(inode) = inode(&table, local, remote) else { return Ok(false) };
    let socket = format!("socket:[{inode}]");
    let descriptors = match fs::read_dir(format!("/proc/{process}/fd")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        descriptors => descriptors?,
    };
    // One that cannot be read was closed just now.
    let mut targets = descriptors.flatten().flat_map(|fd| fs::read_link(fd.path()));
    Ok(targets.any(|target| target == Path::new(&socket)))
}

fn inode(table: &str, local: SocketAddrV4, remote: SocketAddrV4) -> Option<&str> {
    let (local, remote) = (in_table(local), in_table(remote));
    table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let found = columns.get(LOCAL) == Some(&local.as_str())
            && columns.get(REMOTE) == Some(&remote.as_str());
        found.then(|| columns.get(INODE).copied()).flatten()
    })
}

/// The address as the machine keeps it in memory, the port as a number, both in hexadecimal.
fn in_table(address: SocketAddrV4) -> String {
    let ip = u32::from_ne_bytes(address.ip().octets());
    format!("{ip:08X}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::process::{Command, id};

    use super::*;

    #[test]
    fn a_socket_is_its_own_process_and_no_other() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let link = listener.local_addr().unwrap();
        let stream = TcpStream::connect(link).unwrap();
        let client = stream.local_addr().unwrap();
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(owns(id(), client, link).unwrap());
        assert!(!owns(other.id(), client, link).unwrap());
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(!owns(other.id(), client, link).unwrap());
        drop(stream);
        assert!(!owns(id(), client, link).unwrap());
    }

    #[test]
    fn addresses_are_written_as_in_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                     uid  timeout inode\n   0: 0100007F:9C40 0100007F:1F90 01 00000000:00000000 \
                     00:00000000 00000000     0        0 4711 1 0000000000000000 20 4 30 10 -1\n";
        let address = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        if cfg!(target_endian = "little") {
            assert_eq!(inode(table, address(40_000), address(8080)), Some("4711"));
        }
        assert_eq!(inode(table, address(8080), address(40_000)), None);
    }
}
