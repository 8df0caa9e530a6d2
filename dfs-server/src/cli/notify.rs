//! Word to systemd of a `Type=notify` service: that it serves, that it stops.
//!
//! By hand, because it is one datagram. Source: sd_notify(3).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What is told.
#[derive(Clone, Copy, Debug)]
pub enum State {
    Ready,
    Stopping,
}

impl State {
    fn text(self) -> &'static str {
        match self {
            State::Ready => "READY=1",
            State::Stopping => "STOPPING=1",
        }
    }
}

/// Tells systemd, if it started us and asked to be told. That it cannot be told is logged: serving
/// goes on, and systemd acts on its own limits.
pub fn notify(state: State) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, ?state, "systemd cannot be told");
    }
}

fn send(socket: &OsStr, state: State) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.text().as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("@{}", path.display());
        let abstract_address = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let listeners = [
            (path.as_os_str(), UnixDatagram::bind(&path).unwrap()),
            (OsStr::new(&name), UnixDatagram::bind_addr(&abstract_address).unwrap()),
        ];
        for (socket, listener) in listeners {
            send(socket, State::Ready).unwrap();
            send(socket, State::Stopping).unwrap();
            let mut told = [0; 64];
            for expected in ["READY=1", "STOPPING=1"] {
                let count = listener.recv(&mut told).unwrap();
                assert_eq!(&told[..count], expected.as_bytes());
            }
        }
        assert!(send(OsStr::new("/nonexistent/socket"), State::Ready).is_err());
    }
}
