//! How the ranks find each other.

use super::{Error, GATHERING, POLL, Place, Store, named, watch};
use std::{
    net::{ToSocketAddrs, UdpSocket},
    thread::sleep,
    time::Instant,
};

/// The error of a store that cannot be opened.
pub(super) fn unreachable(place: &Place, error: Error) -> Error {
    named(place, &format!("no store of the ranks at {}:{}", place.host, place.port), &error)
}

/// Waits for every rank to show up.
pub(super) fn gather(place: &Place, prefix: &str, store: &Store) -> Result<(), Error> {
    let start = Instant::now();
    store.add(&watch::beat_of(prefix, place.rank), 1)?;
    let key = format!("{prefix}here");
    let mut here = store.add(&key, 1)?;
    while here < place.size as i64 {
        if let Some(failure) = store.get(&watch::failed(prefix))? {
            return Err(Error(failure));
        }
        if start.elapsed() > GATHERING {
            let is_missing = |rank: &usize| matches!(store.get(&watch::beat_of(prefix, *rank)), Ok(None));
            let missing: Vec<String> = (0..place.size).filter(is_missing).map(|rank| rank.to_string()).collect();
            let (size, seconds) = (place.size, GATHERING.as_secs());
            let message = format!("rank {} of {size} ranks did not start within {seconds} s", missing.join(", "));
            return Err(Error(message));
        }
        sleep(POLL);
        here = store.add(&key, 0)?;
    }
    Ok(())
}

/// The address of this machine on the network where the store is.
pub(super) fn address_towards(place: &Place) -> Result<String, Error> {
    let reason = |error: std::io::Error| Error(format!("{}: {error}", place.host));
    let mut addresses = (place.host.as_str(), place.port).to_socket_addrs().map_err(reason)?;
    let address = addresses.next().ok_or_else(|| Error(format!("{}: no address", place.host)))?;
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // Connecting a UDP socket sends nothing; it chooses a route.
    let socket = UdpSocket::bind(any).and_then(|socket| socket.connect(address).map(|()| socket)).map_err(reason)?;
    Ok(socket.local_addr().map_err(reason)?.ip().to_string())
}
